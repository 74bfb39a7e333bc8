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
alignas(16) constexpr int8_t kCodebook[16] = {-34, -27, -21, -16, -12, -9, -6, -3,
                                              0, 3, 6, 10, 13, 17, 22, 29};
// The kernels multiply them without sign, kRaise higher. At most 63 then, four products with an int8
// fit 16 bits, so that AVX2 adds two pairs of columns before it widens them.
constexpr int kRaise = 34;
alignas(16) constexpr uint8_t kCodebookRaised[16] = {0, 7, 13, 18, 22, 25, 28, 31,
                                                     34, 37, 40, 44, 47, 51, 56, 63};

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
