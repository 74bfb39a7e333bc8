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

// Takes `rounds` steps on each of as many sums as the kernels keep at a time, and the lot together.
// Every loop over the sums is unrolled: one that is not keeps them in memory. And memory may change
// between rounds, so that nothing is multiplied once for all of them.
template <class V, class T, class Add, class Step>
T probe_rounds(int rounds, T start, Add add, Step step) {
  T sums[V::kTile];
#pragma GCC unroll 16
  for (int i = 0; i < V::kTile; ++i) sums[i] = start;
  for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < V::kTile; ++i) sums[i] = step(sums[i], i);
    asm volatile("" ::: "memory");
  }
#pragma GCC unroll 16
  for (int i = 1; i < V::kTile; ++i) sums[0] = add(sums[0], sums[i]);
  return sums[0];
}

// Operations (a multiply and an add are two) per second of the dot product for a format, on
// registers alone.
template <class V>
double probe_multiply(Format format, int rounds, Pool& pool) {
  const bool levels = format == Format::kInt4, bytes = format == Format::kInt8;
  const bool halves = format == Format::kBf16 && V::kBf16;
  std::atomic<int32_t> sink{0};
  alignas(64) int32_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = 0x01010101 * (i % 3);
  const auto start = std::chrono::steady_clock::now();
  pool.run([&](Team&) {
    const typename V::I weights = V::load_int(words);
    const typename V::F floats = V::to_float(weights);
    if (levels) {
      sink += V::sum_int(probe_rounds<V>(rounds, V::zero_int(), V::add_int, [&](auto sum, int i) {
        return V::dot_levels(sum, weights, weights, words + i, words + 1 + i);
      }));
    } else if (bytes) {
      sink += V::sum_int(probe_rounds<V>(rounds, V::zero_int(), V::add_int, [&](auto sum, int i) {
        return V::dot_bytes(sum, weights, words + i);
      }));
    } else if (halves) {
      sink += V::sum(probe_rounds<V>(rounds, V::zero(), V::add, [&](auto sum, int i) {
        return V::dot_bf16(sum, weights, words + i);
      })) > 1e30f;
    } else {
      sink += V::sum(probe_rounds<V>(rounds, V::zero(), V::add, [&](auto sum, int) {
        return V::fma(floats, floats, sum);
      })) > 1e30f;
    }
  });
  const double per_step = 2.0 * kLanes * (levels ? 8 : bytes ? 4 : halves ? 2 : 1);
  return per_step * V::kTile * rounds * pool.threads() / seconds_since(start);
}

}  // namespace
}  // namespace dsv2
