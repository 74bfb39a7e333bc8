// Products on a matrix unit: blocks of 16 rows of weights times tiles of up to 16 tokens.
//
// A block lies in memory as the unit wants its weights: 16 vectors of the same columns of 16 rows are
// a tile. A chunk's tiles of tokens have one height; the last begins early enough, and computes the
// same numbers again for tokens that the one before it had. Sums are those of matmul.h: in bytes bit
// for bit those of vector instructions, in bf16 the unit's own for every number of tokens.
#pragma once

#include <cstring>

#include "blocks.h"

namespace dsv2 {
namespace {

constexpr size_t kTileBytes = 1024;
constexpr int kTileRows = 16;

// Tiles of equal height over a chunk.
struct Heights {
  int count, rows, tokens;
  explicit Heights(int tokens)
      : count((tokens + kTileRows - 1) / kTileRows), rows((tokens + count - 1) / count), tokens(tokens) {}
  int start(int tile) const {
    const int start = tile * rows;
    return start + rows <= tokens ? start : tokens - rows;
  }
};

// bf16: R blocks times tiles of tokens; R is 4 for one tile, 2 for a pair of them, or 1.
template <class V, int R, bool pair>
void tile_halves(const Block& block, const int32_t* x, int width, int second, float* out, size_t stride) {
  constexpr int kWords = 16;  // a step: 32 columns
  const int steps = (block.steps + kWords - 1) / kWords, rest = block.steps % kWords;
  alignas(64) uint8_t padded[R][kTileBytes];
  if (rest) {
    for (int r = 0; r < R; ++r) {
      const size_t bytes = static_cast<size_t>(rest) * 64;
      std::memcpy(padded[r], block.data + r * block.stride + static_cast<size_t>(steps - 1) * kTileBytes, bytes);
      std::memset(padded[r] + bytes, 0, kTileBytes - bytes);
    }
  }
  V::template tile_zero<0>();
  V::template tile_zero<1>();
  V::template tile_zero<2>();
  V::template tile_zero<3>();
  for (int s = 0; s < steps; ++s) {
    const int32_t* tokens = x + static_cast<size_t>(s) * kWords * width;
    const auto weights = [&](int r) {
      return rest && s + 1 == steps ? padded[r]
                                    : block.data + r * block.stride + static_cast<size_t>(s) * kTileBytes;
    };
    V::template tile_load<4>(tokens, 64);
    if constexpr (pair) V::template tile_load<5>(tokens + second * kWords, 64);
    for (int r = 0; r < R; ++r) {
      const uint8_t* ahead = block.data + r * block.stride + static_cast<size_t>(s) * kTileBytes + kAhead;
      for (int line = 0; line < kWords; ++line) V::prefetch(ahead + line * 64);
    }
    V::template tile_load<6>(weights(0), 64);
    V::template tile_halves<0, 4, 6>();
    if constexpr (R > 1) {
      V::template tile_load<7>(weights(1), 64);
      V::template tile_halves<1, 4, 7>();
    }
    if constexpr (pair) {
      V::template tile_halves<2, 5, 6>();
      if constexpr (R > 1) V::template tile_halves<3, 5, 7>();
    } else if constexpr (R > 2) {
      V::template tile_load<6>(weights(2), 64);
      V::template tile_halves<2, 4, 6>();
      V::template tile_load<7>(weights(3), 64);
      V::template tile_halves<3, 4, 7>();
    }
  }
  const size_t bytes = stride * sizeof(float);
  V::template tile_store<0>(out, bytes);
  if constexpr (R > 1) V::template tile_store<1>(out + kLanes, bytes);
  if constexpr (pair) {
    float* below = out + second * stride;
    V::template tile_store<2>(below, bytes);
    if constexpr (R > 1) V::template tile_store<3>(below + kLanes, bytes);
  } else if constexpr (R > 2) {
    V::template tile_store<2>(out + 2 * kLanes, bytes);
    V::template tile_store<3>(out + 3 * kLanes, bytes);
  }
}

template <class V>
void multiply_halves(const Matrix& w, int item, int first, int last, const Panel& panel, int width,
                     float* out, size_t stride) {
  const Heights heights(width);
  const int second = heights.start(heights.count - 1);
  V::shape({heights.rows, 16});
  for (int block = first; block < last;) {
    const Block b = block_of(w, item, block);
    float* place = out + (block - first) * kLanes;
    const int left = last - block;
    if (heights.count == 2) {
      if (left >= 2) {
        tile_halves<V, 2, true>(b, panel.data, width, second, place, stride);
      } else {
        tile_halves<V, 1, true>(b, panel.data, width, second, place, stride);
      }
      block += left >= 2 ? 2 : 1;
    } else if (left >= 4) {
      tile_halves<V, 4, false>(b, panel.data, width, 0, place, stride);
      block += 4;
    } else {
      tile_halves<V, 1, false>(b, panel.data, width, 0, place, stride);
      block += 1;
    }
  }
}

// Groups of columns whose integer sums the unit makes at once, one tile each, while vector
// instructions scale and add those before.
constexpr int kGroupsAtOnce = 4;

// Weights of a block in bytes, as the unit reads them: int4's levels unpacked, `count` groups.
template <class V>
void unpack_levels(const uint8_t* codes, int count, uint8_t* out) {
  const typename V::I book = V::levels();
  for (int i = 0; i < count * kGroup4 / 8; ++i) {
    const typename V::I vector = V::load_bytes(codes + static_cast<size_t>(i) * 64);
    V::prefetch(codes + static_cast<size_t>(i) * 64 + kAhead);
    V::store_int(out + static_cast<size_t>(i) * 128, V::low_nibbles(vector, book));
    V::store_int(out + static_cast<size_t>(i) * 128 + 64, V::high_nibbles(vector, book));
  }
}

// Integer sums of up to kGroupsAtOnce groups: sums[group][token][16].
template <class V, Format format>
void tile_groups(const uint8_t* weights, const int32_t* x, int width, int count, int32_t* sums) {
  constexpr int kWords = group_of(format) / 4;
  constexpr size_t kGroupBytes = static_cast<size_t>(kWords) * 64, kRow = kWords * 4;
  constexpr bool kSigned = format == Format::kInt4;
  const size_t next = static_cast<size_t>(kWords) * width;
  constexpr size_t kSums = kTileRows * kLanes;
  V::template tile_load<4>(x, kRow);
  V::template tile_load<6>(weights, 64);
  V::template tile_zero<0>();
  V::template tile_bytes<0, 4, 6, true, kSigned>();
  if (count > 1) {
    V::template tile_load<5>(x + next, kRow);
    V::template tile_load<7>(weights + kGroupBytes, 64);
    V::template tile_zero<1>();
    V::template tile_bytes<1, 5, 7, true, kSigned>();
  }
  if (count > 2) {
    V::template tile_load<4>(x + 2 * next, kRow);
    V::template tile_load<6>(weights + 2 * kGroupBytes, 64);
    V::template tile_zero<2>();
    V::template tile_bytes<2, 4, 6, true, kSigned>();
  }
  if (count > 3) {
    V::template tile_load<5>(x + 3 * next, kRow);
    V::template tile_load<7>(weights + 3 * kGroupBytes, 64);
    V::template tile_zero<3>();
    V::template tile_bytes<3, 5, 7, true, kSigned>();
  }
  V::template tile_store<0>(sums, 64);
  if (count > 1) V::template tile_store<1>(sums + kSums, 64);
  if (count > 2) V::template tile_store<2>(sums + 2 * kSums, 64);
  if (count > 3) V::template tile_store<3>(sums + 3 * kSums, 64);
}

// Groups [first, last) of a block times M tokens, added to `partial` [M][16] unless they are the first,
// and put there unless they are the last. `weights` are the groups' own; int4's come packed when
// `codes` is given, and are unpacked there.
template <class V, Format format, int M>
void tile_sums(const Block& block, int first, int last, const uint8_t* codes, uint8_t* weights, const Panel& x,
               int width, int token, float* partial, float* out, size_t stride) {
  using F = typename V::F;
  constexpr int kWords = group_of(format) / 4;
  constexpr size_t kGroupBytes = static_cast<size_t>(kWords) * 64, kSums = kTileRows * kLanes;
  alignas(64) int32_t sums[2][kGroupsAtOnce * kSums];
  F acc[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) acc[m] = first ? V::load(partial + m * kLanes) : V::zero();
  const auto start = [&](int g) {
    const int count = last - g < kGroupsAtOnce ? last - g : kGroupsAtOnce;
    uint8_t* own = weights + (g - first) * kGroupBytes;
    if (format == Format::kInt4 && codes) unpack_levels<V>(codes + (g - first) * kGroupBytes / 2, count, own);
    tile_groups<V, format>(own, x.data + (static_cast<size_t>(g) * width + token) * kWords, width, count,
                           sums[(g - first) / kGroupsAtOnce % 2]);
  };
  start(first);
  for (int g = first; g < last; ++g) {
    const int place = (g - first) % kGroupsAtOnce;
    if (place == 0 && g + kGroupsAtOnce < last) start(g + kGroupsAtOnce);
    const int32_t* sum = sums[(g - first) / kGroupsAtOnce % 2] + place * kSums;
    const F scale = V::load_int8(block.scales + static_cast<size_t>(g) * kLanes);
    const size_t side = static_cast<size_t>(g) * width + token;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      typename V::I dot = V::load_int(sum + m * kLanes);
      // Weights of 8 bits are stored without sign, 128 higher.
      if constexpr (format == Format::kInt8) dot = V::add_int(dot, V::set_int(x.starts[side + m]));
      const F both = V::mul(scale, V::set(x.scales[side + m]));
      acc[m] = V::fma(V::to_float(dot), both, acc[m]);
    }
  }
  if (last < block.steps) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) V::store(partial + m * kLanes, acc[m]);
    return;
  }
  const F rows = V::load(block.row_scales);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) V::store(out + m * stride, V::mul(acc[m], rows));
}

using TileSums = void (*)(const Block&, int, int, const uint8_t*, uint8_t*, const Panel&, int, int, float*, float*,
                          size_t);

template <class V, Format format, int M = kTileRows>
TileSums sums_for(int rows) {
  if (rows == M) return &tile_sums<V, format, M>;
  if constexpr (M > 1) {
    return sums_for<V, format, M - 1>(rows);
  } else {
    return nullptr;
  }
}

template <class V, Format format>
void multiply_bytes(const Matrix& w, int item, int first, int last, const Panel& panel, int width, float* out,
                    size_t stride) {
  constexpr bool kPacked = format == Format::kInt4;
  constexpr int kGroups = kPacked ? 32 : 1 << 30;  // unpacked at once
  const Heights heights(width);
  const TileSums sums = sums_for<V, format>(heights.rows);
  V::shape({heights.rows, group_of(format) / 4});
  alignas(64) uint8_t levels[kPacked ? kGroups * kTileBytes : 1];
  alignas(64) float partial[V::kByteTokens / kTileRows][kTileRows * kLanes];
  for (int index = first; index < last; ++index) {
    const Block block = block_of(w, item, index);
    float* place = out + (index - first) * kLanes;
    for (int g = 0; g < block.steps; g += kGroups) {
      const int end = block.steps - g < kGroups ? block.steps : g + kGroups;
      const uint8_t* codes = block.data + static_cast<size_t>(g) * (group_of(format) / (kPacked ? 8 : 4) * 64);
      uint8_t* weights = kPacked ? levels : const_cast<uint8_t*>(codes);
      for (int tile = 0; tile < heights.count; ++tile) {
        const int token = heights.start(tile);
        sums(block, g, end, kPacked && tile == 0 ? codes : nullptr, weights, panel, width, token, partial[tile],
             place + token * stride, stride);
      }
    }
  }
}

// Blocks [first, last) of item times a chunk of `width` tokens, as multiply of matmul.h.
template <class V>
void multiply_tiles(const Matrix& w, int item, int first, int last, const Panel& panel, int width, float* out,
                    size_t stride) {
  switch (w.format) {
    case Format::kBf16: return multiply_halves<V>(w, item, first, last, panel, width, out, stride);
    case Format::kInt8: return multiply_bytes<V, Format::kInt8>(w, item, first, last, panel, width, out, stride);
    case Format::kInt4: return multiply_bytes<V, Format::kInt4>(w, item, first, last, panel, width, out, stride);
    case Format::kF32:
    case Format::kInt6: break;  // no format of tiles
  }
}

}  // namespace
}  // namespace dsv2
