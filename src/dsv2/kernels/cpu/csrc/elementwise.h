// Norms, rotation, exponentials: what happens to a row of fp32 between two multiplications.
#pragma once

#include <cmath>

#include "codebook.h"
#include "types.h"

namespace dsv2 {
namespace {

// exp(x) with a relative error below 2e-7; 0 below -87, infinity is not reached (x is capped at 88).
// NaN stays NaN: the operands' order in min and max lets it through.
template <class V>
typename V::F exponential(typename V::F x) {
  using F = typename V::F;
  x = V::min(V::set(88.0f), V::max(V::set(-87.0f), x));
  // n = round(x / ln 2) by the magic number that leaves no fraction bits.
  const F magic = V::set(12582912.0f);
  const F n = V::sub(V::add(V::mul(x, V::set(1.44269504f)), magic), magic);
  F r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  // Taylor's coefficients fitted on |r| <= ln 2 / 2.
  F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.0f)));
  return V::mul(p, V::power_of_two(n));
}

// silu(gate) * up for 16 numbers: gate / (1 + exp(-gate)) * up.
template <class V>
typename V::F gated(typename V::F gate, typename V::F up) {
  const typename V::F minus = V::sub(V::zero(), gate);
  return V::mul(V::div(gate, V::add(exponential<V>(minus), V::set(1.0f))), up);
}

// out = x / sqrt(mean(x^2) + eps) * weight.
template <class V>
void rms_norm(const float* x, const float* weight, int count, float eps, float* out) {
  using F = typename V::F;
  F squares = V::zero();
  const int whole = count / kLanes * kLanes;
  for (int i = 0; i < whole; i += kLanes) {
    const F v = V::load(x + i);
    squares = V::fma(v, v, squares);
  }
  float total = V::sum(squares);
  for (int i = whole; i < count; ++i) total += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(total / static_cast<float>(count) + eps);
  const F by = V::set(factor);
  for (int i = 0; i < whole; i += kLanes) {
    V::store(out + i, V::mul(V::mul(V::load(x + i), by), V::load(weight + i)));
  }
  for (int i = whole; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

// Rotates neighbouring pairs in place: (a, b) -> (a cos - b sin, a sin + b cos).
inline void rotate(float* x, const float* cos, const float* sin, int width) {
  for (int i = 0; i < width / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

template <class V>
void store_row(Format format, void* out, const float* x, int count) {
  if (format == Format::kF32) {
    __builtin_memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* halves = static_cast<uint16_t*>(out);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) V::store_bf16(halves + i, V::load(x + i));
  for (; i < count; ++i) halves[i] = to_bf16(x[i]);
}

template <class V>
void load_row(Format format, const void* in, float* x, int count) {
  if (format == Format::kF32) {
    __builtin_memcpy(x, in, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(in);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) V::store(x + i, V::load_bf16(halves + i));
  for (; i < count; ++i) x[i] = from_bf16(halves[i]);
}

template <class V>
void add_row(float* into, const float* x, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) V::store(into + i, V::add(V::load(into + i), V::load(x + i)));
  for (; i < count; ++i) into[i] += x[i];
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace
}  // namespace dsv2
