// Products on a matrix unit: blocks of 16 rows of weights times tiles of up to 16 tokens.
//
// A block lies in memory as the unit wants its weights: 16 vectors of the same columns of 16 rows are
// a tile. A chunk's tiles of tokens have one height; the last begins early enough, and computes the
// same numbers again for tokens that the one before it had. Sums are those of matmul.h: in bytes bit
// for bit those of vector instructions, in bf16 the unit's own for every number of tokens.
//
// Tiles that come from the second level of cache cost more than their product. So a unit of blocks
// and a chunk of tokens meet slab by slab of a few columns, which stay in the first level, and sums
// wait in between.
#pragma once

#include <cstring>
#include <type_traits>

#include "blocks.h"

namespace dsv2 {
namespace {

constexpr size_t kTileBytes = 1024;
constexpr int kTileRows = 16;
constexpr size_t kTileSums = kTileRows * kLanes;
constexpr int kSlab = 4;       // steps of bf16 that are multiplied at once,
constexpr int kSlabGroups = 2;  // and groups of bytes
constexpr int kMostTiles = 4;  // of tokens in a chunk

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

// What a unit of blocks and a chunk have in common.
struct TileWork {
  Block blocks[kUnit];
  int count;
  Heights heights;
  Panel x;
  float* out;
  size_t stride;

  // `after`: what is read next, block by block as these.
  TileWork(const Matrix& w, int item, int first, int last, const Panel& panel, int width, float* out,
           size_t stride, const uint8_t* after)
      : count(last - first < kUnit ? last - first : kUnit), heights(width), x(panel), out(out), stride(stride) {
    for (int i = 0; i < count; ++i) {
      blocks[i] = block_of(w, item, first + i);
      if (after) blocks[i].after = after + i * w.block_bytes;
    }
  }
  float* place(int block, int tile) const { return out + heights.start(tile) * stride + block * kLanes; }
};

// function(0), ... function(count - 1) of at most four, with numbers that name tiles.
template <class Function>
void each_tile(int count, Function function) {
  if (count > 0) function(std::integral_constant<int, 0>{});
  if (count > 1) function(std::integral_constant<int, 1>{});
  if (count > 2) function(std::integral_constant<int, 2>{});
  if (count > 3) function(std::integral_constant<int, 3>{});
}

// R blocks times one tile of tokens or a `pair` of them, in bf16, over some steps; x and x2 are the
// tiles' own. Sums begin with `partial` [tile][kUnit][16][16], unless it is null. Those of the first
// tile go to `out`, of the second to `out2`, block by block `beside` and token by token `stride`.
template <class V, int R, bool pair>
void tile_halves(const uint8_t* const* weights, const int32_t* x, const int32_t* x2, size_t step, int steps,
                 const float* partial, float* out, float* out2, size_t beside, size_t stride) {
  static_assert(R <= (pair ? 2 : 4));
  // Which block and tile of tokens a tile of sums belongs to.
  const auto each_sum = [](auto function) {
    each_tile(4, [&](auto sum) {
      constexpr int block = pair ? sum % 2 : sum, tile = pair ? sum / 2 : 0;
      if constexpr (block < R) function(sum, block, tile);
    });
  };
  each_sum([&](auto sum, int block, int tile) {
    if (partial) {
      V::template tile_load<sum>(partial + (tile * kUnit + block) * kTileSums, 64);
    } else {
      V::template tile_zero<sum>();
    }
  });
  for (int s = 0; s < steps; ++s, x += step, x2 += step) {
    const size_t at = static_cast<size_t>(s) * kTileBytes;
    V::template tile_load<4>(x, 64);
    if constexpr (pair) V::template tile_load<5>(x2, 64);
    each_tile(R, [&](auto block) {
      constexpr int own = 6 + block % 2;
      V::template tile_load<own>(weights[block] + at, 64);
      V::template dot_halves<block, 4, own>();
      if constexpr (pair && block < 2) V::template dot_halves<2 + block, 5, own>();
    });
    for (int r = 0; r < R; ++r) {
      for (size_t line = 0; line < kTileBytes; line += 64) V::prefetch(weights[r] + at + 2 * kAhead + line);
    }
  }
  each_sum([&](auto sum, int block, int tile) {
    V::template tile_store<sum>((tile ? out2 : out) + block * beside, stride * sizeof(float));
  });
}

template <class V>
void multiply_halves(const TileWork& work) {
  static_assert(V::kHalfTokens <= 2 * kTileRows);
  const Heights& heights = work.heights;
  const bool pair = heights.count == 2;
  V::shape({heights.rows, kStepWords});
  const int whole = work.blocks[0].steps / kStepWords, rest = work.blocks[0].steps % kStepWords;
  const size_t step = static_cast<size_t>(kStepWords) * heights.tokens;
  alignas(64) uint8_t padded[kUnit][kTileBytes];  // the last step, where its columns are not 32
  if (rest) {
    for (int b = 0; b < work.count; ++b) {
      const size_t bytes = static_cast<size_t>(rest) * 64;
      std::memcpy(padded[b], work.blocks[b].data + static_cast<size_t>(whole) * kTileBytes, bytes);
      std::memset(padded[b] + bytes, 0, kTileBytes - bytes);
    }
  }
  // One tile meets all blocks at once, and nothing is read twice.
  const int slab = pair ? kSlab : whole, slabs = slab ? (whole + slab - 1) / slab : 0;
  const int parts = slabs + (rest != 0);
  alignas(64) float partial[2][kUnit][kTileSums];
  for (int part = 0; part < parts; ++part) {
    const bool is_rest = part == slabs, is_last = part + 1 == parts;
    const int first = is_rest ? whole : part * slab, steps = is_rest ? 1 : whole - first < slab ? whole - first : slab;
    const uint8_t* weights[kUnit];
    for (int b = 0; b < work.count; ++b) {
      weights[b] = is_rest ? padded[b] : work.blocks[b].data + static_cast<size_t>(first) * kTileBytes;
    }
    const int32_t* x = work.x.data + first * step;
    const int32_t* x2 = x + (pair ? heights.start(1) * kStepWords : 0);
    const size_t beside = is_last ? kLanes : kTileSums, stride = is_last ? work.stride : kLanes;
    const int together = pair ? 2 : kUnit;
    for (int b = 0; b < work.count; b += together) {
      const int left = work.count - b;
      float* out = is_last ? work.place(b, 0) : partial[0][b];
      float* out2 = is_last && pair ? work.place(b, 1) : partial[1][b];
      const auto function = pair        ? (left > 1 ? tile_halves<V, 2, true> : tile_halves<V, 1, true>)
                            : left > 3  ? tile_halves<V, 4, false>
                            : left == 3 ? tile_halves<V, 3, false>
                            : left == 2 ? tile_halves<V, 2, false>
                                        : tile_halves<V, 1, false>;
      function(weights + b, x, x2, step, steps, part ? partial[0][b] : nullptr, out, out2, beside, stride);
    }
  }
}

// 4-bit codes of `count` groups of a block as the unit reads weights.
template <class V>
void unpack_levels(const uint8_t* codes, int count, uint8_t* out) {
  const typename V::I book = V::levels();
  for (int i = 0; i < count * kGroup4 / 8; ++i, codes += 64, out += 128) {
    const typename V::I vector = V::load_bytes(codes);
    V::store_int(out, V::low_nibbles(vector, book));
    V::store_int(out + 64, V::high_nibbles(vector, book));
  }
}

// A block and groups [first, first + count) of it, whose products with all tiles of tokens are made at
// once.
struct Slab {
  int block, first, count;
};

// Scales integer sums [group][tile][16][16] of a slab and adds them to those of the block's slabs before
// it, `partial` [tile][block][16][16]; those of the last slab go out.
template <class V, Format format, int M>
void scale_sums(const TileWork& work, Slab slab, const int32_t* sums, float (*partial)[kUnit][kTileSums]) {
  using F = typename V::F;
  const Block& block = work.blocks[slab.block];
  for (int tile = 0; tile < work.heights.count; ++tile) {
    const int start = work.heights.start(tile);
    float* kept = partial[tile][slab.block];
    F acc[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[m] = slab.first ? V::load(kept + m * kLanes) : V::zero();
    for (int g = 0; g < slab.count; ++g) {
      const int32_t* sum = sums + (g * kMostTiles + tile) * kTileSums;
      const size_t group = slab.first + g, side = group * work.heights.tokens + start;
      const F scale = V::load_int8(block.scales + group * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        typename V::I dot = V::load_int(sum + m * kLanes);
        // Weights of 8 bits are stored without sign, 128 higher.
        if constexpr (format == Format::kInt8) dot = V::add_int(dot, V::set_int(work.x.starts[side + m]));
        acc[m] = V::fma(V::to_float(dot), V::mul(scale, V::set(work.x.scales[side + m])), acc[m]);
      }
    }
    if (slab.first + slab.count < block.steps) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) V::store(kept + m * kLanes, acc[m]);
    } else {
      const F rows = V::load(block.row_scales);
      float* out = work.place(slab.block, tile);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) V::store(out + m * work.stride, V::mul(acc[m], rows));
    }
  }
}

// M tokens to a tile. While the unit makes the sums of a slab, vector instructions unpack the next one:
// a tile cannot be loaded from stores still under way. Sums are scaled at once, from where they are: a
// second place for them would not leave the first level of cache to all others.
template <class V, Format format, int M>
void multiply_bytes(const TileWork& work) {
  constexpr bool kPacked = format == Format::kInt4;
  constexpr int kWords = group_of(format) / 4, kLines = 8;
  constexpr size_t kGroupBytes = kLines * 64, kUnpacked = static_cast<size_t>(kWords) * 64;
  constexpr size_t kGroupSums = kMostTiles * kTileSums;
  static_assert(kGroupBytes == static_cast<size_t>(kWords) * (kPacked ? 32 : 64));
  static_assert(V::kByteTokens <= kMostTiles * kTileRows);
  V::shape({M, kWords});
  alignas(64) uint8_t levels[2][kPacked ? kSlabGroups * kTileBytes : 1];
  alignas(64) int32_t sums[kSlabGroups * kGroupSums];
  alignas(64) float partial[kMostTiles][kUnit][kTileSums];
  const int groups = work.blocks[0].steps, tiles = work.heights.count, lines = (kLines + tiles - 1) / tiles;
  const size_t next_group = static_cast<size_t>(kWords) * work.heights.tokens;
  const auto count_from = [&](int first) { return groups - first < kSlabGroups ? groups - first : kSlabGroups; };
  const auto unpack = [&](int block, int first, int turn) {
    if constexpr (kPacked) {
      unpack_levels<V>(work.blocks[block].data + first * kGroupBytes, count_from(first), levels[turn % 2]);
    }
  };
  int turn = 0;
  unpack(0, 0, 0);
  for (int first = 0; first < groups; first += kSlabGroups) {
    const int count = count_from(first);
    const bool is_last = first + count == groups;
    for (int b = 0; b < work.count; ++b, ++turn) {
      const Block& block = work.blocks[b];
      const uint8_t *codes = block.data + first * kGroupBytes, *weights = kPacked ? levels[turn % 2] : codes;
      const uint8_t* ahead = is_last ? block.after : codes + count * kGroupBytes;
      const int32_t* x = work.x.data + first * next_group;
      for (int g = 0; g < count; ++g, x += next_group) {
        V::template tile_load<6>(weights + g * kUnpacked, 64);
        each_tile(tiles, [&](auto tile) {
          constexpr int own = 4 + tile % 2;
          if (g) V::template tile_store<tile>(sums + (g - 1) * kGroupSums + tile * kTileSums, 64);
          V::template tile_load<own>(x + work.heights.start(tile) * kWords, group_of(format));
          V::template tile_zero<tile>();
          V::template dot_byte_tiles<tile, own, 6, true, kPacked>();
          // A few lines at a time: all at once they would hold up the tiles.
          for (int line = 0; line < lines; ++line) {
            V::prefetch(ahead + g * kGroupBytes + (tile * lines + line) * 64);
          }
        });
      }
      each_tile(tiles, [&](auto tile) {
        V::template tile_store<tile>(sums + (count - 1) * kGroupSums + tile * kTileSums, 64);
      });
      if (b + 1 < work.count) {
        unpack(b + 1, first, turn + 1);
      } else if (!is_last) {
        unpack(0, first + count, turn + 1);
      }
      scale_sums<V, format, M>(work, {b, first, count}, sums, partial);
    }
  }
}

using TileKernel = void (*)(const TileWork&);

// Of `rows` tokens to a tile: `fewest` at least, and 9 where a chunk is more than one tile.
template <class V, Format format, int M = kTileRows>
TileKernel bytes_for(int rows) {
  if constexpr (M >= 9 || M >= V::fewest(format)) {
    return rows == M ? &multiply_bytes<V, format, M> : bytes_for<V, format, M - 1>(rows);
  } else {
    return nullptr;
  }
}

// Blocks [first, last) of item times a chunk of `width` tokens, as multiply of matmul.h.
template <class V>
void multiply_tiles(const Matrix& w, int item, int first, int last, const Panel& panel, int width, float* out,
                    size_t stride, const uint8_t* after) {
  const int rows = Heights(width).rows;
  const TileKernel kernel = w.format == Format::kBf16   ? &multiply_halves<V>
                            : w.format == Format::kInt8 ? bytes_for<V, Format::kInt8>(rows)
                                                        : bytes_for<V, Format::kInt4>(rows);
  for (int block = first; block < last; block += kUnit) {
    const bool is_last = block + kUnit >= last;
    kernel(TileWork(w, item, block, last, panel, width, out + (block - first) * kLanes, stride,
                    is_last ? after : w.block(item, block + kUnit)));
  }
}

}  // namespace
}  // namespace dsv2
