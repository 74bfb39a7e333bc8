#include "isa_amx.h"
#include "instance.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dsv2 {
namespace {

// Whether the processor has tiles with bf16 and bytes, and the system lets this process use them.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Backend* amx_backend() {
  static const Instance<Amx> instance("amx");
  static const bool is_here = avx512_bf16_backend() != nullptr && has_amx();
  return is_here ? &instance : nullptr;
}

}  // namespace dsv2
