// What the machine can do at most: bytes read and operations per second, by the same threads and
// instructions that the kernels use. Benchmarks put every figure beside these.
#pragma once

#include <chrono>
#include <cstring>

#include "panels.h"
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

// Takes `rounds` steps on each of kSums sums, as many as the kernels keep; returns their ends' mix.
// Every loop over the sums is unrolled: one that is not keeps them in memory. Sums begin apart, or one
// would be computed for all. And memory may change between rounds, so that nothing is multiplied once
// for all of them.
template <int kSums, class Start, class Step, class End>
int32_t probe_rounds(int rounds, Start start, Step step, End end) {
  decltype(start(0)) sums[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = start(i);
  for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = step(sums[i], i);
    asm volatile("" ::: "memory");
  }
  int32_t total = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) total ^= end(sums[i]);
  return total;
}

// A thread's rounds of four products of tiles, as wide as the format's steps.
template <class V>
void probe_tiles(Format format, int rounds) {
  alignas(64) static const uint8_t nothing[1024] = {};
  V::shape({kLanes, run_of<V>(format, tile_of<V>(format))});
  V::template tile_load<4>(nothing, 64);
  V::template tile_load<5>(nothing, 64);
  V::template tile_load<6>(nothing, 64);
  V::template tile_load<7>(nothing, 64);
  for (int r = 0; r < rounds; ++r) {
    if (format == Format::kBf16) {
      V::template dot_halves<0, 4, 6>();
      V::template dot_halves<1, 4, 7>();
      V::template dot_halves<2, 5, 6>();
      V::template dot_halves<3, 5, 7>();
    } else {
      V::template dot_byte_tiles<0, 4, 6, true, true>();
      V::template dot_byte_tiles<1, 4, 7, true, true>();
      V::template dot_byte_tiles<2, 5, 6, true, true>();
      V::template dot_byte_tiles<3, 5, 7, true, true>();
    }
  }
  V::leave();
}

// Operations (a multiply and an add are two) per second of the dot product for a format, on
// registers alone.
template <class V>
double probe_multiply(Format format, int rounds, Pool& pool) {
  if constexpr (V::kMatrixUnit) {
    if (format != Format::kF32) {
      const auto start = std::chrono::steady_clock::now();
      pool.run([&](Team&) { probe_tiles<V>(format, rounds); });
      const double columns = run_of<V>(format, tile_of<V>(format)) * columns_per_word(form_of<V>(format));
      return 2.0 * 4 * kLanes * kLanes * columns * rounds * pool.threads() / seconds_since(start);
    }
  }
  using W = typename V::Part;
  const bool levels = format == Format::kInt4, bytes = format == Format::kInt8;
  const bool halves = format == Format::kBf16 && V::kBf16;
  std::atomic<int32_t> sink{0};
  // As in the kernels no two products share what they multiply with.
  alignas(64) int32_t words[2 * V::kTile + 16];
  for (int i = 0; i < 2 * V::kTile + 16; ++i) words[i] = 0x01010101 * (i % 3);
  const auto start = std::chrono::steady_clock::now();
  pool.run([&](Team&) {
    const typename W::I codes = W::load_bytes(reinterpret_cast<const uint8_t*>(words));
    const typename V::I pairs = V::load_int(words);
    const typename V::F floats = V::to_float(pairs);
    const auto end = [](auto sum) {
      int32_t lanes[sizeof sum / 4];
      std::memcpy(lanes, &sum, sizeof sum);
      return lanes[0];
    };
    const auto float_end = [](auto sum) { return static_cast<int32_t>(V::sum(sum) > 1e30f); };
    if (levels) {
      sink += probe_rounds<V::kTile>(rounds, [](int i) { return W::set_int(i); }, [&](auto sum, int i) {
        return W::dot_levels(sum, codes, codes, words + 2 * i, words + 2 * i + 1);
      }, end);
    } else if (bytes) {
      sink += probe_rounds<V::kTile>(rounds, [](int i) { return W::set_int(i); }, [&](auto sum, int i) {
        return W::dot_bytes(sum, codes, words + i);
      }, end);
    } else if (halves) {
      sink += probe_rounds<V::kFloatTile>(rounds, [](int i) { return V::set(i); }, [&](auto sum, int i) {
        return V::dot_bf16(sum, pairs, words + i);
      }, float_end);
    } else {
      sink += probe_rounds<V::kFloatTile>(rounds, [](int i) { return V::set(i); }, [&](auto sum, int) {
        return V::fma(floats, floats, sum);
      }, float_end);
    }
  });
  const double per_round = levels  ? 8.0 * W::kPartLanes * V::kTile
                           : bytes ? 4.0 * W::kPartLanes * V::kTile
                                   : (halves ? 2.0 : 1.0) * kLanes * V::kFloatTile;
  return 2.0 * per_round * rounds * pool.threads() / seconds_since(start);
}

}  // namespace
}  // namespace dsv2
