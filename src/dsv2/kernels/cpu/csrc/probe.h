// What the machine can do at most: bytes read and operations per second, by the same threads and
// instructions that the kernels use. Benchmarks put every figure beside these.
#pragma once

#include <chrono>

#include "pool.h"
#include "types.h"

namespace dsv2 {
namespace {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Bytes per second of a sum over memory that is walked once, in parts dealt out to the threads.
template <class V>
double probe_read(const uint8_t* data, size_t bytes, Pool& pool) {
  constexpr size_t kPart = 1 << 20;
  std::atomic<int32_t> sink{0};
  const auto start = std::chrono::steady_clock::now();
  pool.run([&](Team& team) {
    team.each(bytes / kPart, 1, [&](int64_t first, int64_t last) {
      typename V::I sums[4] = {V::zero_int(), V::zero_int(), V::zero_int(), V::zero_int()};
      for (const uint8_t* p = data + first * kPart; p < data + last * kPart; p += 256) {
        for (int i = 0; i < 4; ++i) sums[i] = V::add_int(sums[i], V::load_int(p + 64 * i));
      }
      for (int i = 1; i < 4; ++i) sums[0] = V::add_int(sums[0], sums[i]);
      sink += V::sum_int(sums[0]);
    });
  });
  return bytes / kPart * kPart / seconds_since(start);
}

// Operations (a multiply and an add are two) per second of the dot product for a format, on
// registers alone.
template <class V>
double probe_multiply(Format format, int rounds, Pool& pool) {
  constexpr int kChains = 12;
  const bool bytes = format == Format::kInt8 || format == Format::kInt4;
  const bool halves = format == Format::kBf16 && V::kBf16;
  std::atomic<int32_t> sink{0};
  alignas(64) int32_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = 0x01010101 * (i % 3);
  const auto start = std::chrono::steady_clock::now();
  pool.run([&](Team&) {
    typename V::I ints[kChains];
    typename V::F floats[kChains];
    for (int c = 0; c < kChains; ++c) {
      ints[c] = V::set_int(c);
      floats[c] = V::set(static_cast<float>(c));
    }
    const typename V::I weights = V::load_int(words);
    const typename V::F wide = V::to_float(weights);
    for (int r = 0; r < rounds; ++r) {
      for (int c = 0; c < kChains; ++c) {
        if (bytes) {
          ints[c] = V::dot_bytes(ints[c], weights, words + c);
        } else if (halves) {
          floats[c] = V::dot_bf16(floats[c], weights, words + c);
        } else {
          floats[c] = V::fma(wide, wide, floats[c]);
        }
      }
    }
    for (int c = 0; c < kChains; ++c) sink += V::sum_int(ints[c]) + (V::sum(floats[c]) > 1e30f);
  });
  const double per_step = 2.0 * kLanes * (bytes ? 4 : halves ? 2 : 1);
  return per_step * kChains * rounds * pool.threads() / seconds_since(start);
}

}  // namespace
}  // namespace dsv2
