// Attention of a prompt on a matrix unit: tiles of 16 queries over expanded keys and values.
//
// Queries, and the weights of keys, are what the unit takes from the left, row by row as they come.
// Keys and values are put down as it wants its right ones when they are built from the latents, once
// for all queries. So a row of scores is a query's, its weights need no turning, and two tiles of
// queries meet two of keys or columns: every tile that is loaded is multiplied twice.
//
// Blocks begin at multiples of kBlock positions whatever the batch, and the sums of a row are its own.
#pragma once

#include "flash.h"
#include "tiles.h"

namespace dsv2 {
namespace {

template <class V>
struct PromptTiles {
  using F = typename V::F;
  static constexpr int kBlock = 128;  // keys
  static constexpr int kHalf = 32;    // keys, or columns of keys, in a row of a left tile
  static constexpr int kSlack = 8;    // powers of 2 by which scores may pass the maximum before it moves

  static constexpr int kFill = 64;    // keys are put down in multiples of it, those behind the last as zeros

  // Queries and keys of `nope` and `rope` columns, built by weights of these formats.
  static bool takes(int nope, int rope, Format keys, Format values) {
    static_assert(kFill % V::kByteTokens == 0 && kFill % V::kHalfTokens == 0);  // chunks of keys begin at tiles
    return nope % kHalf == 0 && rope % kHalf == 0 && in_matrix_unit<V>(keys, kFill) && in_matrix_unit<V>(values, kFill);
  }

  // Words of a thread's scratch: scores and weights of two tiles of queries.
  static constexpr size_t kScratch = 2 * kLanes * kBlock + 2 * kLanes * kBlock / 2;

  // A query x[width] as row `row` of a tile.
  static void put_query(int32_t* words, int row, int width, const float* x) {
    uint16_t* out = reinterpret_cast<uint16_t*>(words) + static_cast<size_t>(row) * width;
    for (int c = 0; c < width; c += kHalf) V::store_int(out + c, V::halves(V::load(x + c), V::load(x + c + kLanes)));
  }

  // Columns [column, column + count) of `number` keys of `width` columns from `key` on, x[number][stride]:
  // tiles of 32 columns by 16 keys. Columns begin and end at multiples of 32, keys at multiples of 16.
  static void put_keys(uint16_t* keys, size_t key, int number, int width, int column, const float* x, size_t stride,
                       int count) {
    for (int n = 0; n < number; n += kLanes, x += kLanes * stride) {
      uint16_t* tile = keys + (key + n) * width + static_cast<size_t>(column) * kLanes;
      for (int c = 0; c < count; c += kHalf, tile += kHalf * kLanes) {
        typename V::I words[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          words[r] = V::halves(V::load(x + r * stride + c), V::load(x + r * stride + c + kLanes));
        }
        V::transpose(words);
        for (int r = 0; r < kLanes; ++r) V::store_int(tile + r * kHalf, words[r]);
      }
    }
  }

  // The same of values: tiles of 32 keys by 16 columns. Columns begin at multiples of 16, and may end
  // anywhere: x is readable up to the next of these. Keys begin and end at multiples of 2.
  static void put_values(uint16_t* values, size_t key, int number, int width, int column, const float* x,
                         size_t stride, int count) {
    for (size_t n = key; n < key + number; n += 2, x += 2 * stride) {
      uint16_t* row = values + n / kHalf * kHalf * width + n % kHalf * kLanes;
      for (int c = 0; c < count; c += kLanes) {
        V::store_int(row + static_cast<size_t>(column + c) * kHalf, V::pair_bf16(V::load(x + c), V::load(x + stride + c)));
      }
    }
  }

  // Adds `count` <= kBlock keys from position `first` on to the states of some tiles, whose words are
  // rows of `width` bf16. Keys and values begin at a tile. Keys behind a row's last weigh nothing, up to
  // a multiple of 32; where a value there is no number, neither is the row: it is of the same sequence.
  static void block(const QueryTile* tiles, int tile_count, int width, const uint16_t* keys,
                    const uint16_t* values_in, int values, int first, int count, float scale, float* scratch) {
    V::shape({kLanes, kStepWords});
    const int steps = ceil_div(count, kHalf);
    constexpr size_t kSums = static_cast<size_t>(kLanes) * kBlock;
    uint16_t* weights = reinterpret_cast<uint16_t*>(scratch + 2 * kSums);
    for (int i = 0; i < tile_count; i += 2) {
      const QueryTile *one = tiles + i, *other = i + 1 < tile_count ? one + 1 : nullptr;
      for (int step = 0; step < steps; ++step) {
        const uint16_t* b = keys + static_cast<size_t>(step) * kHalf * width;
        product<true>({{one->words, other ? other->words : nullptr},
                       sizeof(uint16_t) * width,
                       {b, b + static_cast<size_t>(kLanes) * width},
                       kTileBytes,
                       sizeof(uint16_t) * kHalf * width,
                       width / kHalf,
                       {scratch + step * kHalf, scratch + kSums + step * kHalf},
                       sizeof(float) * kBlock});
      }
      soften(scratch, first, steps * kHalf, *one, scale, weights, values);
      if (other) soften(scratch + kSums, first, steps * kHalf, *other, scale, weights + kSums, values);
      for (int c = 0; c < values; c += kHalf) {
        const uint16_t* b = values_in + static_cast<size_t>(c) * kHalf;
        product<false>({{weights, other ? weights + kSums : nullptr},
                        sizeof(uint16_t) * kBlock,
                        {b, b + kHalf * kLanes},
                        sizeof(uint16_t) * kHalf * values,
                        2 * kTileBytes,
                        steps,
                        {one->state.o + c, other ? other->state.o + c : nullptr},
                        sizeof(float) * values});
      }
    }
  }

 private:
  // sums[t][16][32] = (or, unless `fresh`, +=) left[t] times the two right tiles, over `steps` of 64
  // bytes of the left ones' rows. The second left one may be null.
  struct Product {
    const void* left[2];
    size_t left_stride;  // bytes from row to row
    const void* right[2];
    size_t next;   // bytes from step to step of the right tiles
    size_t ahead;  // bytes to those that are multiplied after this
    int steps;
    float* sums[2];
    size_t sum_stride;
  };

  template <bool fresh>
  static void product(const Product& p) {
    p.left[1] ? product<fresh, true>(p) : product<fresh, false>(p);
  }

  template <bool fresh, bool two>
  static void product(const Product& p) {
    if constexpr (fresh) {
      each_tile(two ? 4 : 2, [](auto tile) { V::template tile_zero<tile>(); });
    } else {
      V::template tile_load<0>(p.sums[0], p.sum_stride);
      V::template tile_load<1>(p.sums[0] + kLanes, p.sum_stride);
      if constexpr (two) {
        V::template tile_load<2>(p.sums[1], p.sum_stride);
        V::template tile_load<3>(p.sums[1] + kLanes, p.sum_stride);
      }
    }
    const auto at = [](const void* start, size_t offset) { return static_cast<const uint8_t*>(start) + offset; };
    for (int step = 0; step < p.steps; ++step) {
      const uint8_t *b = at(p.right[0], step * p.next), *b2 = at(p.right[1], step * p.next);
      V::template tile_load<6>(b, 64);
      V::template tile_load<4>(at(p.left[0], step * 64), p.left_stride);
      V::template dot_halves<0, 4, 6>();
      V::template tile_load<7>(b2, 64);
      V::template dot_halves<1, 4, 7>();
      if constexpr (two) {
        V::template tile_load<5>(at(p.left[1], step * 64), p.left_stride);
        V::template dot_halves<2, 5, 6>();
        V::template dot_halves<3, 5, 7>();
      }
      for (size_t line = 0; line < kTileBytes; line += 64) {
        V::prefetch_near(b + p.ahead + line);
        V::prefetch_near(b2 + p.ahead + line);
      }
    }
    V::template tile_store<0>(p.sums[0], p.sum_stride);
    V::template tile_store<1>(p.sums[0] + kLanes, p.sum_stride);
    if constexpr (two) {
      V::template tile_store<2>(p.sums[1], p.sum_stride);
      V::template tile_store<3>(p.sums[1] + kLanes, p.sum_stride);
    }
  }

  // Scores s[16][kBlock] of `count` keys become weights [16][kBlock] in bf16 relative to the maximum,
  // which is kept in powers of 2. It moves when scores pass it by more than kSlack: larger weights are
  // as exact, and what was summed before, o[16][values] too, is scaled seldom.
  static void soften(const float* s, int first, int count, const QueryTile& tile, float scale, uint16_t* weights,
                     int values) {
    const bool masked = first + count > tile.smallest_limit;
    const F by = V::set(scale * 1.44269504f), lowest = V::set(-__builtin_inff());
    F rows[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      F top = lowest;
      for (int n = 0; n < count; n += kLanes) {
        F x = V::load(s + r * kBlock + n);
        if (masked) x = V::first_lanes(x, tile.limits[r] - first - n, lowest);
        top = V::max(x, top);
      }
      rows[r] = top;
    }
    const F before = V::load(tile.state.m);
    const F top = V::mul(V::largest_of_rows(rows), by);
    const F now = V::above(top, V::add(before, V::set(kSlack)), top, before);
    V::store(tile.state.m, now);
    for (int r = 0; r < kLanes; ++r) {
      const F minus = V::set(-tile.state.m[r]);
      F sum = V::zero();
      for (int n = 0; n < count; n += kHalf) {
        F even = V::rough_power(V::fma(V::load(s + r * kBlock + n), by, minus));
        F odd = V::rough_power(V::fma(V::load(s + r * kBlock + n + kLanes), by, minus));
        if (masked) {
          even = V::first_lanes(even, tile.limits[r] - first - n, V::zero());
          odd = V::first_lanes(odd, tile.limits[r] - first - n - kLanes, V::zero());
        }
        sum = V::add(V::add(sum, even), odd);
        V::store_int(weights + r * kBlock + n, V::halves(even, odd));
      }
      rows[r] = sum;
    }
    const F factor = V::rough_power(V::sub(before, now));
    V::store(tile.state.l, V::fma(V::load(tile.state.l), factor, V::sums_of_rows(rows)));
    alignas(64) float factors[kLanes];
    V::store(factors, factor);
    FlashTiles<V>::scale(factors, values, tile.state.o);
  }
};

}  // namespace
}  // namespace dsv2
