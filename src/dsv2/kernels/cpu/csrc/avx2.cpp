#include "isa_avx2.h"
#include "instance.h"

namespace dsv2 {

const Backend* avx2_backend() {
  static const Instance<Avx2> instance("avx2");
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &instance : nullptr;
}

}  // namespace dsv2
