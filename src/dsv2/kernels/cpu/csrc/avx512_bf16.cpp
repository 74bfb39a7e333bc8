#include "isa_avx512.h"
#include "instance.h"

namespace dsv2 {

const Backend* avx512_bf16_backend() {
  static const Instance<Avx512<true>> instance("avx512_bf16");
  return avx512_backend() != nullptr && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512vbmi") ? &instance : nullptr;
}

}  // namespace dsv2
