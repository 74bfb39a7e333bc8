// The products of flash.h on a matrix unit: a block of up to 64 keys is four tiles of 16. Rows behind
// the last key are read up to their tile's end, and what comes of them is nobody's.
#pragma once

#include "elementwise.h"
#include "tiles.h"
#include "types.h"

namespace dsv2 {
namespace {

// Memory that is read next, asked for line by line.
struct Ahead {
  const uint8_t* start = nullptr;
  int lines = 0;

  template <class V>
  void ask(int count) {
    if (count > lines) count = lines;
    for (int i = 0; i < count; ++i, start += 64) V::prefetch(start);
    lines -= count;
  }
};

template <class V>
struct FlashTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kHalf = 32;  // keys, or columns of keys, in a row of a tile

  static bool takes(int width) { return width % kHalf == 0; }

  // s[key][16] of `count` <= 64 keys. Meanwhile half of what is ahead is asked for: tiles take lines
  // that lie too far from each other for the processor to guess them.
  static void scores(const int32_t* query, int width, const uint16_t* keys, size_t stride, int count, float* s,
                     Ahead& ahead) {
    const int lines = ceil_div(ahead.lines, 2 * (width / kHalf));
    const int tiles = ceil_div(count, kLanes);
    V::shape({kLanes, kStepWords});
    each_tile(tiles, [](auto tile) { V::template tile_zero<tile>(); });
    for (int step = 0; step < width / kHalf; ++step, query += kStepWords * kLanes, keys += kHalf) {
      V::template tile_load<6>(query, 64);
      each_tile(tiles, [&](auto tile) {
        constexpr int own = 4 + tile % 2;
        V::template tile_load<own>(keys + tile * kLanes * stride, stride * sizeof(uint16_t));
        V::template dot_halves<tile, own, 6>();
      });
      ahead.ask<V>(lines);
    }
    each_tile(tiles, [&](auto tile) { V::template tile_store<tile>(s + tile * kLanes * kLanes, 64); });
  }

  // Weights [count][16] of a block as tiles [2][16][16] of bf16: rows of 32 keys, zero behind the last.
  static void turn(const float* weights, int count, int32_t* tiles) {
    half(weights, count, tiles);
    if (count > kHalf) half(weights + kHalf * kLanes, count - kHalf, tiles + kTile);
  }

  // o[16][values], row by row times its factor.
  static void scale(const float* factors, int values, float* o) {
    for (int r = 0; r < kLanes; ++r) {
      if (factors[r] == 1.0f) continue;
      const F factor = V::set(factors[r]);
      float* row = o + static_cast<size_t>(r) * values;
      for (int c = 0; c < values; c += kLanes) V::store(row + c, V::mul(V::load(row + c), factor));
    }
  }

  // o[r][c] += sum over `count` keys of weight[key][r] * value[key][c], for turned weights; `values` are
  // columns, a multiple of 32. Meanwhile what is ahead is asked for.
  static void mix(const int32_t* weights, const uint16_t* values_in, size_t stride, int values, int count, float* o,
                  Ahead& ahead) {
    const int lines = ceil_div(ahead.lines, values / kHalf);
    const bool both = count > kHalf;
    V::shape({kLanes, kStepWords});
    alignas(64) int32_t pairs[2][4 * kTile];
    pair(values_in, stride, count, pairs[0]);
    const size_t bytes = static_cast<size_t>(values) * sizeof(float);
    V::template tile_load<2>(weights, 64);
    if (both) V::template tile_load<3>(weights + kTile, 64);
    for (int c = 0; c < values; c += kHalf) {
      // One ahead of their use: a tile cannot be loaded from stores that are still under way.
      const int32_t* own = pairs[c / kHalf % 2];
      if (c + kHalf < values) pair(values_in + c + kHalf, stride, count, pairs[(c / kHalf + 1) % 2]);
      V::template tile_load<4>(own, 64);
      V::template tile_load<5>(own + kTile, 64);
      if (both) {
        V::template tile_load<6>(own + 2 * kTile, 64);
        V::template tile_load<7>(own + 3 * kTile, 64);
      }
      add(o + c, bytes, both);
      ahead.ask<V>(lines);
    }
  }

 private:
  static constexpr int kTile = kLanes * kLanes;  // words

  static void half(const float* weights, int count, int32_t* rows) {
    I pairs[kLanes];
    for (int t = 0; t < kLanes; ++t) {
      const F even = 2 * t < count ? V::load(weights + 2 * t * kLanes) : V::zero();
      const F odd = 2 * t + 1 < count ? V::load(weights + (2 * t + 1) * kLanes) : V::zero();
      pairs[t] = V::pair_bf16(even, odd);
    }
    V::transpose(pairs);
    for (int r = 0; r < kLanes; ++r) V::store_int(rows + r * kLanes, pairs[r]);
  }

  // 32 columns of `count` values as pairs of keys: tiles of columns 0-15 of the first 32 keys, 16-31
  // of them, then of the other keys. Values behind the last are zero.
  static void pair(const uint16_t* values, size_t stride, int count, int32_t* out) {
    alignas(64) static const uint16_t nothing[kHalf] = {};
    const int keys = count > kHalf ? 2 * kHalf : kHalf;
    for (int n = 0; n < keys; n += 2) {
      const uint16_t* even = n < count ? values + n * stride : nothing;
      const uint16_t* odd = n + 1 < count ? values + (n + 1) * stride : nothing;
      I first, second;
      V::interleave_bf16(even, odd, first, second);
      int32_t* place = out + n / kHalf * 2 * kLanes * kLanes + n % kHalf / 2 * kLanes;
      V::store_int(place, first);
      V::store_int(place + kLanes * kLanes, second);
    }
  }

  // 32 columns of an output: weights in tiles 2 and 3, values in 4 to 7.
  static void add(float* o, size_t bytes, bool both) {
    V::template tile_load<0>(o, bytes);
    V::template tile_load<1>(o + kLanes, bytes);
    V::template dot_halves<0, 2, 4>();
    V::template dot_halves<1, 2, 5>();
    if (both) {
      V::template dot_halves<0, 3, 6>();
      V::template dot_halves<1, 3, 7>();
    }
    V::template tile_store<0>(o, bytes);
    V::template tile_store<1>(o + kLanes, bytes);
  }
};

}  // namespace
}  // namespace dsv2
