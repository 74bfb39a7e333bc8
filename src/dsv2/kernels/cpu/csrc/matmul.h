// Packed weights times activations in panels.
//
//   out[t][r] = row_scale[r] * sum over groups g of scale[r][g] * x_scale[t][g] * dot(g)
//
// where dot(g) is an exact integer. The fp32 sum runs over g in order, in one accumulator per
// output: the result does not depend on how many tokens there are.
#pragma once

#include "blocks.h"
#include "panels.h"
#include "pool.h"
#include "tiles.h"

namespace dsv2 {
namespace {

// Quantised weights, R blocks at once: several streams from memory are faster than one. The integer
// sums of a group are split in P chains to hide latency, which changes nothing: they are exact.
// Where a vector of 16 lanes takes two registers, each is a Part that is finished before the next.
template <class V, Format format, int N, int R>
void tile_bytes(const Block& block, const Panel& x, float* out, size_t stride) {
  using W = typename V::Part;
  using F = typename W::F;
  using I = typename W::I;
  constexpr int kSteps = group_of(format) / 4;  // vectors of 4 columns per group
  constexpr int kBytes = kSteps * (format == Format::kInt4 ? 32 : 64);
  constexpr int kParts = kLanes / W::kPartLanes;
  constexpr int P = N * R <= 2 ? 4 : N <= V::kChained ? 2 : 1;
  constexpr bool kRaised = format == Format::kInt4 || V::kBiased;
  // Near its end a block asks for the start of what comes after it.
  const int near = block.steps - kAhead / kBytes;
  const ptrdiff_t onward = block.after - block.data - static_cast<ptrdiff_t>(block.steps) * kBytes;
  const I book = W::codebook();
  F acc[R][kParts][N];
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < kParts; ++h) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[r][h][n] = W::zero();
    }
  }
  const int32_t* xg = x.data;
  for (int g = 0; g < block.steps; ++g, xg += kSteps * N) {
    const ptrdiff_t ahead = kAhead + (g < near ? 0 : onward);
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < kParts; ++h) {
        const uint8_t* w =
            block.data + r * block.stride + static_cast<size_t>(g) * kBytes + h * 4 * W::kPartLanes;
        const int32_t* xp = xg;
        // Each part loads the activations itself: kept for the next one they would be spilt.
        asm volatile("" ::: "memory");
        I dots[N][P];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          dots[n][0] = kRaised ? W::set_int(x.starts[g * N + n]) : W::zero_int();
          for (int p = 1; p < P; ++p) dots[n][p] = W::zero_int();
        }
        if constexpr (format == Format::kInt4) {
#pragma GCC unroll 8
          for (int s = 0; s < kSteps; s += 2) {
            const I codes = W::load_bytes(w);
            W::prefetch(w + ahead);
            w += 64;
            const I low = W::low_nibbles(codes, book), high = W::high_nibbles(codes, book);
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
              I& sum = dots[n][s / 2 % P];
              sum = W::dot_levels(sum, low, high, xp + n, xp + N + n);
            }
            xp += 2 * N;
          }
        } else {
#pragma GCC unroll 8
          for (int s = 0; s < kSteps; ++s) {
            const I bytes = W::load_bytes(w);
            W::prefetch(w + ahead);
            w += 64;
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
              dots[n][s % P] = W::dot_bytes(dots[n][s % P], bytes, xp + n);
            }
            xp += N;
          }
        }
        const F scale = W::load_int8(block.scales + (static_cast<size_t>(r) * block.steps + g) * kLanes +
                                     h * W::kPartLanes);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          for (int p = 1; p < P; ++p) dots[n][0] = W::add_int(dots[n][0], dots[n][p]);
          const F both = W::mul(scale, W::set(x.scales[g * N + n]));
          acc[r][h][n] = W::fma(W::to_float(dots[n][0]), both, acc[r][h][n]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < kParts; ++h) {
      const F rows = W::load(block.row_scales + r * kLanes + h * W::kPartLanes);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        W::store(out + n * stride + r * kLanes + h * W::kPartLanes, W::mul(acc[r][h][n], rows));
      }
    }
  }
}

// bf16 and fp32 weights, R blocks at once so that few tokens still have enough sums under way.
template <class V, Format format, int N, int R>
void tile_floats(const Block& block, const Panel& x, float* out, size_t stride) {
  using F = typename V::F;
  using I = typename V::I;
  F acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) acc[r][n] = V::zero();
  }
  const int32_t* xp = x.data;
  for (int s = 0; s < block.steps; ++s) {
    const uint8_t* w = block.data + static_cast<size_t>(s) * 64;
    if constexpr (format == Format::kF32) {
      F weights[R];
      for (int r = 0; r < R; ++r) {
        weights[r] = V::load(reinterpret_cast<const float*>(w + r * block.stride));
        V::prefetch(w + r * block.stride + kAhead / R);
      }
      for (int n = 0; n < N; ++n) {
        const F xn = V::set(reinterpret_cast<const float*>(xp)[n]);
        for (int r = 0; r < R; ++r) acc[r][n] = V::fma(weights[r], xn, acc[r][n]);
      }
      xp += N;
    } else if constexpr (V::kBf16) {
      I weights[R];
      for (int r = 0; r < R; ++r) {
        weights[r] = V::load_int(w + r * block.stride);
        V::prefetch(w + r * block.stride + kAhead / R);
      }
      for (int n = 0; n < N; ++n) {
        for (int r = 0; r < R; ++r) acc[r][n] = V::dot_bf16(acc[r][n], weights[r], xp + n);
      }
      xp += N;
    } else {
      const float* xf = reinterpret_cast<const float*>(xp);
      for (int r = 0; r < R; ++r) {
        const I pairs = V::load_int(w + r * block.stride);
        const F even = V::even_bf16(pairs), odd = V::odd_bf16(pairs);
        for (int n = 0; n < N; ++n) {
          acc[r][n] = V::fma(even, V::set(xf[n]), acc[r][n]);
          acc[r][n] = V::fma(odd, V::set(xf[N + n]), acc[r][n]);
        }
      }
      xp += 2 * N;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) V::store(out + n * stride + r * kLanes, acc[r][n]);
  }
}

using TileFunction = void (*)(const Block&, const Panel&, float*, size_t);

// Blocks that a tile takes at once for N tokens: few of them wait for memory, which gives several
// streams more than one.
template <class V>
constexpr int together(Format format, int tokens) {
  const bool bytes = format == Format::kInt4 || format == Format::kInt8;
  if (tokens <= (bytes ? V::kStreamed : 2)) return 4;
  return bytes && tokens > V::kPaired ? 1 : 2;
}

template <class V, Format format, int N, int R>
constexpr TileFunction pick() {
  if constexpr (format == Format::kInt4 || format == Format::kInt8) {
    return &tile_bytes<V, format, N, R>;
  } else {
    return &tile_floats<V, format, N, R>;
  }
}

template <class V, Format format, int N = vector_tile_of<V>(format)>
TileFunction tile_for(int tokens, bool single) {
  if constexpr (N > 0) {
    if (tokens == N) return single ? pick<V, format, N, 1>() : pick<V, format, N, together<V>(format, N)>();
    return tile_for<V, format, N - 1>(tokens, single);
  } else {
    return nullptr;
  }
}

template <class V>
TileFunction tile_for(Format format, int tokens, bool single) {
  switch (format) {
    case Format::kF32: return tile_for<V, Format::kF32>(tokens, single);
    case Format::kBf16: return tile_for<V, Format::kBf16>(tokens, single);
    case Format::kInt8: return tile_for<V, Format::kInt8>(tokens, single);
    case Format::kInt4: return tile_for<V, Format::kInt4>(tokens, single);
    case Format::kInt6: break;  // no format of weights
  }
  return nullptr;
}

// Blocks [first, last) of item times one chunk: out[token in chunk * stride + (block - first) * 16].
// `after`: the block that this thread reads next, of as many columns, if that is known.
template <class V>
void multiply(const Matrix& w, int item, int first, int last, const Panels& panels, int chunk,
              float* out, size_t stride, const uint8_t* after = nullptr) {
  const int width = panels.chunks.width(chunk);
  const Panel panel = panel_of(panels, chunk);
  if constexpr (V::kMatrixUnit) {
    if (in_matrix_unit<V>(w.format, width)) {
      multiply_tiles<V>(w, item, first, last, panel, width, out, stride, after);
      return;
    }
  }
  const int many = together<V>(w.format, width);
  const TileFunction tile = tile_for<V>(w.format, width, false);
  const TileFunction single = tile_for<V>(w.format, width, true);
  for (int block = first, next; block < last; block = next) {
    const bool is_whole = block + many <= last;
    next = block + (is_whole ? many : 1);
    Block own = block_of(w, item, block);
    if (next < last) {
      own.after = w.block(item, next);
    } else if (after) {
      own.after = after;
    }
    (is_whole ? tile : single)(own, panel, out + (block - first) * kLanes, stride);
  }
}

inline int units(const Matrix& w) { return (w.blocks + kUnit - 1) / kUnit; }

// Where the weights of a unit begin; null behind the last.
inline const uint8_t* unit_start(const Matrix& w, int item, int64_t unit) {
  return unit < units(w) ? w.block(item, static_cast<int>(unit) * kUnit) : nullptr;
}

// Unit of up to 64 rows times all chunks: out[token * stride + row]; `after` as above.
template <class V>
void multiply_unit(const Matrix& w, int item, int unit, const Panels& panels, float* out,
                   size_t stride, const uint8_t* after = nullptr) {
  const int first = unit * kUnit, last = first + kUnit < w.blocks ? first + kUnit : w.blocks;
  for (int chunk = 0; chunk < panels.chunks.count; ++chunk) {
    multiply<V>(w, item, first, last, panels, chunk,
                out + static_cast<size_t>(panels.chunks.start(chunk)) * stride + first * kLanes,
                stride, chunk + 1 < panels.chunks.count ? nullptr : after);
  }
}

// All units of the first item times all chunks, by the whole team.
template <class V>
void multiply_units(Team& team, const Matrix& w, const Panels& panels, float* out, size_t stride) {
  team.each_with_next(units(w), [&](int64_t unit, int64_t next) {
    multiply_unit<V>(w, 0, unit, panels, out, stride, unit_start(w, 0, next));
  });
}

}  // namespace
}  // namespace dsv2
