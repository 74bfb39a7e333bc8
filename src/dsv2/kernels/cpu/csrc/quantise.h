// Weights to 4 or 8 bits, group by group, with the scale that leaves the least squared error.
//
// A group's scale is an int8 times its row's fp32. Every scale code from kLow to kHigh times the
// one that maps the group's extreme to the end of the levels is tried, with either sign (the levels
// are not symmetric); above kMost codes, evenly spaced ones.
#pragma once

#include <cmath>
#include <cstring>

#include "codebook.h"
#include "elementwise.h"
#include "pool.h"
#include "types.h"

namespace dsv2 {
namespace {

constexpr float kLow[2] = {0.80f, 0.99f};   // 4 and 8 bits
constexpr float kHigh[2] = {1.12f, 1.12f};
constexpr int kMost = 16;

// Squared error of a group at a scale; with `codes`, also the codes.
template <class V, int G>
float group_error(const float* x, float scale, int8_t* codes) {
  using F = typename V::F;
  const F s = V::set(scale), inverse = V::set(scale != 0 ? 1.0f / scale : 0.0f);
  F error = V::zero();
  for (int i = 0; i < G; i += kLanes) {
    const F value = V::load(x + i), t = V::mul(value, inverse);
    F level;
    if constexpr (G == kGroup4) {
      level = V::set(kCodebook[0]);
      F code = V::zero();
      for (int k = 1; k < 16; ++k) {
        const F middle = V::set(0.5f * (kCodebook[k - 1] + kCodebook[k]));
        level = V::add_above(level, t, middle, V::set(kCodebook[k] - kCodebook[k - 1]));
        if (codes) code = V::add_above(code, t, middle, V::set(1.0f));
      }
      if (codes) V::store_int8(codes + i, V::round_int(code));
    } else {
      const auto rounded = V::round_int(V::max(V::set(-128.0f), V::min(V::set(127.0f), t)));
      level = V::to_float(rounded);
      if (codes) V::store_int8(codes + i, rounded);
    }
    const F off = V::sub(V::mul(level, s), value);
    error = V::fma(off, off, error);
  }
  return V::sum(error);
}

// One row; returns the squared error.
template <class V, int G>
double quantise_row(const float* x, int cols, uint8_t* codes, int8_t* scales, float* row_scale) {
  constexpr int kind = G == kGroup4 ? 0 : 1;
  constexpr float kEnd = G == kGroup4 ? kCodebook[0] : -128.0f;
  float most = 0;
  for (int i = 0; i < cols; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  const float unit = most * kHigh[kind] / -kEnd / 127.0f;
  *row_scale = unit;
  double total = 0;
  for (int g = 0; g < cols / G; ++g) {
    const float* group = x + g * G;
    float extreme = 0;
    for (int i = 0; i < G; ++i) extreme = std::fabs(group[i]) > std::fabs(extreme) ? group[i] : extreme;
    const float base = unit > 0 ? extreme / kEnd / unit : 0.0f;  // in scale codes, signed
    const int low = std::fabs(base) * kLow[kind];
    const int high = smaller(std::ceil(std::fabs(base) * kHigh[kind]), 127);
    const int step = (high - low + kMost) / kMost;
    int best = 0;
    float least = group_error<V, G>(group, 0.0f, nullptr);
    for (int code = low > 0 ? low : 1; code <= high; code += step) {
      for (const int sign : {1, -1}) {
        const int signed_code = base < 0 ? -sign * code : sign * code;
        const float error = group_error<V, G>(group, static_cast<float>(signed_code) * unit, nullptr);
        if (error < least) {
          least = error;
          best = signed_code;
        }
      }
    }
    int8_t found[G];
    total += group_error<V, G>(group, static_cast<float>(best) * unit, found);
    scales[g] = static_cast<int8_t>(best);
    if constexpr (G == kGroup4) {
      for (int i = 0; i < G; i += 2) codes[(g * G + i) / 2] = static_cast<uint8_t>(found[i] | found[i + 1] << 4);
    } else {
      std::memcpy(codes + g * G, found, G);
    }
  }
  return total;
}

// rows x cols of fp32 or bf16; codes, scales and row_scales as in Source. errors[rows]: squared.
template <class V>
void quantise_matrix(Format format, int rows, int cols, Format source, const void* data, uint8_t* codes,
                     int8_t* scales, float* row_scales, double* errors, float* scratch, Pool& pool) {
  const size_t code_bytes = format == Format::kInt4 ? cols / 2 : cols, groups = cols / group_of(format);
  pool.run([&](Team& team) {
    float* x = scratch + static_cast<size_t>(team.member()) * cols;
    team.each(rows, 4, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const size_t size = source == Format::kF32 ? 4 : 2;
        load_row<V>(source, static_cast<const uint8_t*>(data) + r * cols * size, x, cols);
        uint8_t* out = codes + r * code_bytes;
        errors[r] = format == Format::kInt4
                        ? quantise_row<V, kGroup4>(x, cols, out, scales + r * groups, row_scales + r)
                        : quantise_row<V, kGroup8>(x, cols, out, scales + r * groups, row_scales + r);
      }
    });
  });
}

}  // namespace
}  // namespace dsv2
