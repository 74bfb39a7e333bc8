// The products of flash.h and flash_bytes.h on a matrix unit: a block of up to 64 keys is four tiles
// of 16. Rows behind the last key are read up to their tile's end, and what comes of them is nobody's.
#pragma once

#include "elementwise.h"
#include "tiles.h"
#include "types.h"

namespace dsv2 {
namespace {

// sums[key][16] of `count` <= 64 keys, `bytes` apart, over `steps` of 64 bytes, with a query's words
// [steps][16][16]. dot(sum, keys) multiplies tiles of these numbers, the query in tile 6.
template <class V, class Dot>
void multiply_keys(const int32_t* query, const uint8_t* keys, size_t bytes, int steps, int count, void* sums,
                   Dot dot) {
  const int tiles = ceil_div(count, kLanes);
  V::shape({kLanes, kStepWords});
  each_tile(tiles, [](auto tile) { V::template tile_zero<tile>(); });
  for (int s = 0; s < steps; ++s, query += kStepWords * kLanes, keys += 64) {
    V::template tile_load<6>(query, 64);
    each_tile(tiles, [&](auto tile) {
      constexpr int own = 4 + tile % 2;
      V::template tile_load<own>(keys + tile * kLanes * bytes, bytes);
      dot(tile, std::integral_constant<int, own>{});
    });
  }
  each_tile(tiles, [&](auto tile) {
    V::template tile_store<tile>(static_cast<int32_t*>(sums) + tile * kLanes * kLanes, 64);
  });
}

template <class V>
struct FlashTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kHalf = 32;  // keys, or columns of keys, in a row of a tile

  static bool takes(int width) { return width % kHalf == 0; }

  // s[key][16] of `count` <= 64 keys.
  static void scores(const int32_t* query, int width, const uint16_t* keys, size_t stride, int count, float* s) {
    multiply_keys<V>(query, reinterpret_cast<const uint8_t*>(keys), stride * sizeof(uint16_t), width / kHalf, count, s,
                     [](auto sum, auto own) { V::template dot_halves<sum, own, 6>(); });
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

// In bytes: keys and weights of the softmax without sign, queries and values with one. Sums are those
// of flash_bytes.h, bit for bit.
template <class V>
struct ByteTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kSums = kLanes * kLanes;

  // sums[key][16] over codes [first, last) of `count` <= 64 keys; query words [codes/4][16].
  static void dots(const int32_t* query, const uint8_t* keys, size_t stride, int first, int last, int count,
                   int32_t* sums) {
    multiply_keys<V>(query + static_cast<size_t>(first / 4) * kLanes, keys + first, stride, (last - first) / 64, count,
                     sums, [](auto sum, auto own) { V::template dot_byte_tiles<sum, own, 6, false, true>(); });
  }

  // Weights [fours][16], four keys to a word, as rows of 64 keys: into the tile that mix reads.
  static void load_weights(const int32_t* quads, int fours) {
    I rows[kLanes];
    for (int t = 0; t < kLanes; ++t) rows[t] = t < fours ? V::load_int(quads + t * kLanes) : V::zero_int();
    V::transpose(rows);
    alignas(64) int32_t turned[kSums];
    for (int r = 0; r < kLanes; ++r) V::store_int(turned + r * kLanes, rows[r]);
    V::shape({kLanes, kStepWords});
    V::template tile_load<4>(turned, 64);
  }

  // sums[part][row][16] of 64 columns in four parts; values [four keys][part][16], four keys to a word.
  static void mix(const int32_t* values, int32_t* sums) {
    constexpr size_t kBytes = 4 * kLanes * sizeof(int32_t);
    V::template tile_load<6>(values, kBytes);
    V::template tile_zero<0>();
    V::template dot_byte_tiles<0, 4, 6, false, true>();
    V::template tile_load<7>(values + kLanes, kBytes);
    V::template tile_zero<1>();
    V::template dot_byte_tiles<1, 4, 7, false, true>();
    V::template tile_load<6>(values + 2 * kLanes, kBytes);
    V::template tile_zero<2>();
    V::template dot_byte_tiles<2, 4, 6, false, true>();
    V::template tile_load<7>(values + 3 * kLanes, kBytes);
    V::template tile_zero<3>();
    V::template dot_byte_tiles<3, 4, 7, false, true>();
    V::template tile_store<0>(sums, 64);
    V::template tile_store<1>(sums + kSums, 64);
    V::template tile_store<2>(sums + 2 * kSums, 64);
    V::template tile_store<3>(sums + 3 * kSums, 64);
  }
};

}  // namespace
}  // namespace dsv2
