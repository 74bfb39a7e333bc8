// The 16 values of a 4-bit code, and bf16 for single numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace dsv2 {

// Internal linkage throughout: each file is compiled for another instruction set, and the linker
// must not merge their versions of one function.
namespace {

// Fitted to groups of 64 normal numbers whose scale is chosen for the least error; see
// benchmarks/codebook.py. kernels/formats.py has the same numbers, held together by a test.
alignas(16) constexpr int8_t kCodebook[16] = {-127, -99, -78, -61, -47, -33, -21, -10,
                                              2, 13, 24, 36, 50, 65, 83, 108};
alignas(16) constexpr uint8_t kCodebookBiased[16] = {1, 29, 50, 67, 81, 95, 107, 118,
                                                     130, 141, 152, 164, 178, 193, 211, 236};

[[maybe_unused]] inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

[[maybe_unused]] inline float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace
}  // namespace dsv2
