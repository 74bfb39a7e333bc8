#include "isa_avx512.h"
#include "instance.h"

namespace dsv2 {

const Backend* avx512_backend() {
  static const Instance<Avx512<false>> instance("avx512");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni") ? &instance : nullptr;
}

}  // namespace dsv2
