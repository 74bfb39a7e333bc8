// The products of flash.h on a matrix unit: a block of up to 64 keys is four tiles of 16. Rows behind
// the last key are read up to their tile's end, and what comes of them is nobody's.
#pragma once

#include "elementwise.h"
#include "tiles.h"
#include "types.h"

namespace dsv2 {
namespace {

template <class V>
struct FlashTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kHalf = 32;  // keys, or columns of keys, in a row of a tile

  static bool takes(int width) { return width % kHalf == 0; }

  // s[key][16] of `count` <= 64 keys.
  static void scores(const int32_t* query, int width, const uint16_t* keys, size_t stride, int count, float* s) {
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
    }
    each_tile(tiles, [&](auto tile) { V::template tile_store<tile>(s + tile * kLanes * kLanes, 64); });
  }

  // o[r][c] = o[r][c] * factor[r] + sum over keys of weight[key][r] * value[key][c]; `values` are
  // columns, a multiple of 32.
  static void mix(const float* weights, const uint16_t* values_in, size_t stride, int values, int count,
                  const float* factors, float* o) {
    const bool both = count > kHalf;
    alignas(64) int32_t rows[2][kLanes * kLanes];
    turn(weights, count, rows[0]);
    if (both) turn(weights + kHalf * kLanes, count - kHalf, rows[1]);
    for (int r = 0; r < kLanes; ++r) {
      if (factors[r] == 1.0f) continue;
      const F factor = V::set(factors[r]);
      float* row = o + static_cast<size_t>(r) * values;
      for (int c = 0; c < values; c += kLanes) V::store(row + c, V::mul(V::load(row + c), factor));
    }
    V::shape({kLanes, kStepWords});
    V::template tile_load<4>(rows[0], 64);
    V::template tile_load<5>(rows[both ? 1 : 0], 64);
    alignas(64) int32_t pairs[2][kColumns];
    pair(values_in, stride, count, pairs[0]);
    const size_t bytes = static_cast<size_t>(values) * sizeof(float);
    for (int c = 0; c < values; c += kHalf) {
      // One ahead of their use: a tile cannot be loaded from stores that are still under way.
      const int32_t* own = pairs[c / kHalf % 2];
      if (c + kHalf < values) pair(values_in + c + kHalf, stride, count, pairs[(c / kHalf + 1) % 2]);
      if (c / kHalf % 2) {
        add<2>(own, both, o + c, bytes);
      } else {
        add<0>(own, both, o + c, bytes);
      }
    }
  }

 private:
  static constexpr int kColumns = 4 * kLanes * kLanes;  // words: 32 columns of 64 values, in four tiles

  // Weights [count][16] of up to 32 keys as bf16 rows of 32.
  static void turn(const float* weights, int count, int32_t* rows) {
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

  template <int tile>
  static void add(const int32_t* pairs, bool both, float* o, size_t bytes) {
    constexpr int kTile = kLanes * kLanes;
    V::template tile_load<tile>(o, bytes);
    V::template tile_load<tile + 1>(o + kLanes, bytes);
    V::template tile_load<6>(pairs, 64);
    V::template dot_halves<tile, 4, 6>();
    V::template tile_load<7>(pairs + kTile, 64);
    V::template dot_halves<tile + 1, 4, 7>();
    if (both) {
      V::template tile_load<6>(pairs + 2 * kTile, 64);
      V::template dot_halves<tile, 5, 6>();
      V::template tile_load<7>(pairs + 3 * kTile, 64);
      V::template dot_halves<tile + 1, 5, 7>();
    }
    V::template tile_store<tile>(o, bytes);
    V::template tile_store<tile + 1>(o + kLanes, bytes);
  }
};

}  // namespace
}  // namespace dsv2
