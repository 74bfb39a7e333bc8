// Attention of a tile of 16 queries over keys, block by block, with a running softmax.
//
// One kernel serves both forms of MLA; only prompts on a matrix unit have another (prompt_tiles.h).
// Absorbed (decode): the 16 rows are heads of a token, the key is the cached latent and the value its
// first C numbers, read once for all heads. Expanded (prompts): the rows are 16 neighbouring tokens of
// one head. Lanes are the rows: a query is packed [width][16], a key is broadcast word by word, and so
// scores come out 16 rows at a time.
//
//   m' = max(m, max s)   l' = l e^(m-m') + sum e^(s-m')   o' = o e^(m-m') + sum e^(s-m') v
//
// Blocks begin at multiples of 64 positions whatever the batch, so that a row's result depends on
// its own tokens alone.
#pragma once

#include <cstring>
#include <type_traits>

#include "elementwise.h"
#include "flash_tiles.h"
#include "types.h"

namespace dsv2 {
namespace {

constexpr int kSplit = 256;  // keys per part of an absorbed attention, whatever the batch

// Running state of a tile: o[16][values] and per row the largest score and the sum.
struct TileState {
  float* o;
  float* m;  // [16]
  float* l;  // [16]
};

// A tile of queries on its way over the keys: row r sees positions below limits[r].
struct QueryTile {
  const int32_t* words;
  alignas(64) int32_t limits[kLanes];
  int smallest_limit;
  int rows;  // lanes in use
  TileState state;
};

template <class V>
void clear(const TileState& state, int values) {
  __builtin_memset(state.o, 0, sizeof(float) * kLanes * values);
  V::store(state.m, V::set(-1e30f));
  V::store(state.l, V::zero());
}

// Scores s[count][16] of keys from position `first` on become weights relative to the new maximum;
// m and l of the state move on, and what was summed before is to be scaled by factors[16].
template <class V>
void soften(float* s, int first, int count, const int32_t* limits, int smallest_limit, float scale,
            const TileState& state, float* factors) {
  using F = typename V::F;
  const F by = V::set(scale);
  const typename V::I limit = V::load_int(limits);
  const bool masked = first + count > smallest_limit;
  const F before = V::load(state.m);
  F top = before;
  for (int n = 0; n < count; ++n) {
    F x = V::mul(V::load(s + n * kLanes), by);
    if (masked) x = V::visible(x, first + n, limit);
    V::store(s + n * kLanes, x);
    top = V::max(top, x);  // NaN in x wins
  }
  const F alpha = exponential<V>(V::sub(before, top));
  F sum = V::mul(V::load(state.l), alpha);
  for (int n = 0; n < count; ++n) {
    const F x = V::load(s + n * kLanes);
    F p = exponential<V>(V::sub(x, top));
    if (masked) p = V::max(V::zero(), V::visible(p, first + n, limit));
    sum = V::add(sum, p);
    V::store(s + n * kLanes, p);
  }
  V::store(state.m, top);
  V::store(state.l, sum);

  V::store(factors, alpha);
}

template <class V, bool bf16>
struct Flash {
  using F = typename V::F;
  using I = typename V::I;
  using Element = std::conditional_t<bf16, uint16_t, float>;
  static constexpr int kPack = bf16 ? 2 : 1;

  // Words of a packed query tile of `width` columns.
  static size_t words(int width) { return static_cast<size_t>(width / kPack) * kLanes; }

  // Puts x[width] in lane `lane` of a packed query tile.
  static void pack(int32_t* tile, int lane, const float* x, int width, int first) {
    for (int i = 0; i < width; i += kPack) {
      int32_t* word = tile + static_cast<size_t>((first + i) / kPack) * kLanes + lane;
      if constexpr (bf16) {
        *word = static_cast<int32_t>(to_bf16(x[i]) | static_cast<uint32_t>(to_bf16(x[i + 1])) << 16);
      } else {
        std::memcpy(word, x + i, sizeof(float));
      }
    }
  }

  static F dot(F acc, const int32_t* query, const int32_t* key) {
    if constexpr (bf16) {
      return V::dot_bf16(acc, V::load_int(query), key);
    } else {
      return V::fma(V::load(reinterpret_cast<const float*>(query)),
                    V::set(*reinterpret_cast<const float*>(key)), acc);
    }
  }

  template <int N>
  static void scores(const int32_t* query, const Element* keys, size_t stride, int words, float* out) {
    F acc[N];
    for (int n = 0; n < N; ++n) acc[n] = V::zero();
    for (int w = 0; w < words; ++w) {
      for (int n = 0; n < N; ++n) {
        acc[n] = dot(acc[n], query + static_cast<size_t>(w) * kLanes,
                     reinterpret_cast<const int32_t*>(keys + n * stride) + w);
      }
    }
    for (int n = 0; n < N; ++n) V::store(out + n * kLanes, acc[n]);
  }

  // Scratch of a call, in words.
  static constexpr size_t kScratch = kPage * kLanes * 2;

  // Adds 64 keys, or fewer at the end of the tile, from position `first` on to its state. Keys are
  // readable up to a multiple of 16, whatever stands there. `ahead`: what is read after them, for tiles
  // to ask for.
  static void block(const QueryTile& tile, int width, const Element* keys, size_t key_stride,
                    const Element* values_in, size_t value_stride, int values, int first, int count, float scale,
                    float* scratch, Ahead ahead = {}) {
    float* s = scratch;
    int32_t* weights = reinterpret_cast<int32_t*>(s + kPage * kLanes);
    alignas(64) float factors[kLanes];
    if constexpr (bf16 && V::kMatrixUnit) {
      if (FlashTiles<V>::takes(width)) {
        FlashTiles<V>::scores(tile.words, width, keys, key_stride, count, s, ahead);
        soften<V>(s, first, count, tile.limits, tile.smallest_limit, scale, tile.state, factors);
        FlashTiles<V>::turn(s, count, weights);
        FlashTiles<V>::scale(factors, values, tile.state.o);
        FlashTiles<V>::mix(weights, values_in, value_stride, values, count, tile.state.o, ahead);
        return;
      }
    }
    (void)ahead;
    int n = 0;
    constexpr int kKeys = V::kFloatTile >= 8 ? 8 : 4;
    for (; n + kKeys <= count; n += kKeys) {
      scores<kKeys>(tile.words, keys + n * key_stride, key_stride, width / kPack, s + n * kLanes);
    }
    for (; n < count; ++n) scores<1>(tile.words, keys + n * key_stride, key_stride, width / kPack, s + n * kLanes);

    soften<V>(s, first, count, tile.limits, tile.smallest_limit, scale, tile.state, factors);
    if constexpr (bf16) {
      for (n = 0; n < count; n += 2) {  // [count / 2][16] pairs
        const F odd = n + 1 < count ? V::load(s + (n + 1) * kLanes) : V::zero();
        V::store_int(weights + n / 2 * kLanes, V::pair_bf16(V::load(s + n * kLanes), odd));
      }
      mix_pairs(weights, values_in, value_stride, values, count, tile.rows, factors, tile.state.o,
                reinterpret_cast<int32_t*>(s));
    } else {
      mix_floats(s, values_in, value_stride, values, count, tile.rows, factors, tile.state.o);
    }
  }

 private:
  static constexpr int kRows = V::kFloatTile >= 8 ? 8 : 4;  // rows of the output mixed at once

  // o[r][c] = o[r][c] * factor[r] + sum over keys of weight[key][r] * value[key][c].
  static void mix_pairs(const int32_t* weights, const Element* values_in, size_t stride, int values,
                        int count, int rows, const float* factors, float* o, int32_t* pairs) {
    const int twos = (count + 1) / 2;
    alignas(64) static const uint16_t nothing[32] = {};
    for (int c = 0; c < values; c += 32) {
      for (int t = 0; t < twos; ++t) {
        const uint16_t* even = values_in + 2 * t * stride + c;
        const uint16_t* odd = 2 * t + 1 < count ? even + stride : nothing;
        I first, second;
        V::interleave_bf16(even, odd, first, second);
        V::store_int(pairs + t * 32, first);
        V::store_int(pairs + t * 32 + kLanes, second);
      }
      for (int row = 0; row < rows; row += kRows) {
        F acc[kRows][2];
        for (int r = 0; r < kRows; ++r) {
          const float* out = o + static_cast<size_t>(row + r) * values + c;
          const F factor = V::set(factors[row + r]);
          acc[r][0] = V::mul(V::load(out), factor);
          acc[r][1] = V::mul(V::load(out + kLanes), factor);
        }
        for (int t = 0; t < twos; ++t) {
          const I first = V::load_int(pairs + t * 32), second = V::load_int(pairs + t * 32 + kLanes);
          for (int r = 0; r < kRows; ++r) {
            acc[r][0] = V::dot_bf16(acc[r][0], first, weights + t * kLanes + row + r);
            acc[r][1] = V::dot_bf16(acc[r][1], second, weights + t * kLanes + row + r);
          }
        }
        for (int r = 0; r < kRows; ++r) {
          float* out = o + static_cast<size_t>(row + r) * values + c;
          V::store(out, acc[r][0]);
          V::store(out + kLanes, acc[r][1]);
        }
      }
    }
  }

  static void mix_floats(const float* weights, const Element* values_in, size_t stride, int values,
                         int count, int rows, const float* factors, float* o) {
    for (int c = 0; c < values; c += kLanes) {
      for (int row = 0; row < rows; row += kRows) {
        F acc[kRows];
        for (int r = 0; r < kRows; ++r) {
          acc[r] = V::mul(V::load(o + static_cast<size_t>(row + r) * values + c),
                          V::set(factors[row + r]));
        }
        for (int n = 0; n < count; ++n) {
          const F value = V::load(reinterpret_cast<const float*>(values_in) + n * stride + c);
          for (int r = 0; r < kRows; ++r) {
            acc[r] = V::fma(value, V::set(weights[n * kLanes + row + r]), acc[r]);
          }
        }
        for (int r = 0; r < kRows; ++r) {
          V::store(o + static_cast<size_t>(row + r) * values + c, acc[r]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace dsv2
