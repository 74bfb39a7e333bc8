// Activations in panels, and packed weights times panels.
//
// T tokens are split into chunks of nearly equal width, at most tile_of(format). A panel holds a chunk
// column by column, so that the multiplication walks weights and activations forward and needs one
// pointer for each. Quantised activations have one scale per group of columns, as their weights do:
//
//   out[t][r] = row_scale[r] * sum over groups g of scale[r][g] * x_scale[t][g] * dot(g)
//
// where dot(g) is an exact integer. The fp32 sum runs over g in order, in one accumulator per
// output: the result does not depend on how many tokens there are.
#pragma once

#include <cstring>

#include "arena.h"
#include "codebook.h"
#include "types.h"

namespace dsv2 {
namespace {

// How the columns of activations are stored for weights of a format.
enum class Form : int { kF32, kBf16, kBytes };

template <class V>
constexpr Form form_of(Format format) {
  if (format == Format::kInt8 || format == Format::kInt4) return Form::kBytes;
  return format == Format::kBf16 && V::kBf16 ? Form::kBf16 : Form::kF32;
}

// Tokens multiplied per pass over a block.
template <class V>
constexpr int tile_of(Format format) {
  return form_of<V>(format) == Form::kBytes ? V::kTile : V::kFloatTile;
}

constexpr int columns_per_word(Form form) {
  return form == Form::kBytes ? 4 : form == Form::kBf16 ? 2 : 1;
}

// Chunks of n tokens, `widest` at most, as equal as they can be.
struct Chunks {
  int tokens = 0, count = 0;
  Chunks() = default;
  Chunks(int tokens, int widest) : tokens(tokens), count((tokens + widest - 1) / widest) {}
  int start(int chunk) const {
    const int base = tokens / count, extra = tokens % count;
    return chunk * base + (chunk < extra ? chunk : extra);
  }
  int width(int chunk) const { return tokens / count + (chunk < tokens % count ? 1 : 0); }
  int of(int token) const {
    const int base = tokens / count, extra = tokens % count;
    const int wide = extra * (base + 1);
    return token < wide ? token / (base + 1) : extra + (token - wide) / base;
  }
};

// The activations of n tokens [n, cols] for weights of one format.
struct Panels {
  Chunks chunks;
  Format format = Format::kF32;
  int cols = 0, words = 0, groups = 0;
  int32_t* data = nullptr;    // chunk by chunk [words][width]
  float* scales = nullptr;    // chunk by chunk [groups][width]
  int32_t* starts = nullptr;  // likewise: what a sum of products begins with

  template <class V>
  static Panels make(Arena& arena, int tokens, int cols, Format format) {
    const int per_word = columns_per_word(form_of<V>(format));
    int words = (cols + per_word - 1) / per_word;
    if (format == Format::kBf16) words += words * per_word % 2;  // weights come in pairs of columns
    const int groups = format == Format::kInt8 || format == Format::kInt4 ? cols / group_of(format) : 0;
    Panels panels{Chunks(tokens, tile_of<V>(format)), format, cols, words, groups, nullptr, nullptr, nullptr};
    panels.data = arena.take<int32_t>(static_cast<size_t>(tokens) * words);
    panels.scales = arena.take<float>(static_cast<size_t>(tokens) * groups);
    panels.starts = arena.take<int32_t>(static_cast<size_t>(tokens) * groups);
    return panels;
  }
};

struct Slot {
  int32_t* data;
  float* scales;
  int32_t* starts;
  int width;
};

inline Slot slot_of(const Panels& panels, int token) {
  const int chunk = panels.chunks.of(token), start = panels.chunks.start(chunk);
  const size_t first = start, place = token - start;
  return {panels.data + first * panels.words + place, panels.scales + first * panels.groups + place,
          panels.starts + first * panels.groups + place, panels.chunks.width(chunk)};
}

// Quantises one group of columns: x[G] to int8 with scale max|x|/127.
template <class V, int G>
void write_group(const Slot& slot, int group, const float* x) {
  using F = typename V::F;
  using I = typename V::I;
  F values[G / kLanes];
  F largest = V::zero();
  for (int i = 0; i < G / kLanes; ++i) {
    values[i] = V::load(x + i * kLanes);
    largest = V::max(V::abs(values[i]), largest);
  }
  const float top = V::largest(largest);
  // A group that is not finite must come out as NaN, not as some finite number.
  F check = V::zero();
  for (int i = 0; i < G / kLanes; ++i) check = V::fma(values[i], V::zero(), check);
  const float poison = V::sum(check);
  const F inverse = V::set(top > 0 ? 127.0f / top : 0.0f);
  I total = V::zero_int();
  alignas(64) int32_t words[G / 4];
  for (int i = 0; i < G / kLanes; ++i) {
    const I rounded = V::round_int(V::mul(values[i], inverse));
    total = V::add_int(total, rounded);
    V::store_int8(reinterpret_cast<int8_t*>(words) + i * kLanes, rounded);
  }
  const size_t width = slot.width;
  int32_t* out = slot.data + static_cast<size_t>(group) * (G / 4) * width;
  for (int i = 0; i < G / 4; ++i) out[i * width] = words[i];
  slot.scales[group * width] = poison == 0 ? top / 127.0f : poison;
  constexpr int kMore = G == kGroup4 ? kRaise : V::kBiased ? 128 : 0;
  slot.starts[group * width] = -kMore * V::sum_int(total);
}

// Writes x[count] as `words` words, each a step of `width` after the last; zeros behind the end.
template <class V>
void write_words(Form form, int32_t* out, size_t width, const float* x, int count, int words) {
  for (int word = 0; word < words; ++word) {
    if (form == Form::kBf16) {
      const uint32_t low = to_bf16(x[2 * word]);
      const uint32_t high = 2 * word + 1 < count ? to_bf16(x[2 * word + 1]) : 0;
      out[word * width] = static_cast<int32_t>(low | high << 16);
    } else {
      const float value = word < count ? x[word] : 0.0f;
      std::memcpy(out + word * width, &value, sizeof value);
    }
  }
}

// Writes columns [first, last) of a token; first is a multiple of 64.
template <class V>
void write_part(const Panels& panels, int token, const float* x, int first, int last) {
  const Form form = form_of<V>(panels.format);
  const int word = first / columns_per_word(form);
  const Slot slot = slot_of(panels, token);
  const size_t width = slot.width;
  if (form == Form::kBytes) {
    const int group = group_of(panels.format);
    for (int c = first; c < last; c += group) {
      if (panels.format == Format::kInt4) {
        write_group<V, kGroup4>(slot, c / group, x + c - first);
      } else {
        write_group<V, kGroup8>(slot, c / group, x + c - first);
      }
    }
  } else {
    write_words<V>(form, slot.data + word * width, width, x, last - first,
                   (last < panels.cols ? last / columns_per_word(form) : panels.words) - word);
  }
}

// Writes the activations x[cols] of one token.
template <class V>
void write_token(const Panels& panels, int token, const float* x) {
  write_part<V>(panels, token, x, 0, panels.cols);
}

// Copies a token from one set of panels to another of the same columns and format.
inline void copy_token(const Panels& from, int source, const Panels& to, int target) {
  const Slot a = slot_of(from, source), b = slot_of(to, target);
  const size_t wa = a.width, wb = b.width;
  for (int i = 0; i < from.words; ++i) b.data[i * wb] = a.data[i * wa];
  for (int i = 0; i < from.groups; ++i) {
    b.scales[i * wb] = a.scales[i * wa];
    b.starts[i * wb] = a.starts[i * wa];
  }
}

// One block of 16 rows times a panel of N tokens; out[t * stride + lane].
struct Block {
  const uint8_t* data;
  const int8_t* scales;
  const float* row_scales;
  size_t stride;  // bytes to the next block, for tiles of several
  int steps;      // vectors, or groups of a quantised format
};

struct Panel {
  const int32_t* data;
  const float* scales;
  const int32_t* starts;
};

inline Panel panel_of(const Panels& panels, int chunk) {
  const size_t start = panels.chunks.start(chunk);
  return {panels.data + start * panels.words, panels.scales + start * panels.groups,
          panels.starts + start * panels.groups};
}

// How far ahead of its use a weight is asked for: about a memory latency of one thread's stream.
constexpr int kAhead = 2048;

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
  constexpr int P = N * R <= 2 ? 4 : N * R <= 5 ? 2 : 1;
  constexpr bool kRaised = format == Format::kInt4 || V::kBiased;
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
            W::prefetch(w + kAhead);
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
            W::prefetch(w + kAhead);
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

// Blocks that a tile takes at once for N tokens.
constexpr int together(Format format, int tokens) {
  const bool bytes = format == Format::kInt4 || format == Format::kInt8;
  if (tokens <= 2) return 4;
  return bytes ? 1 : 2;
}

template <class V, Format format, int N, int R>
constexpr TileFunction pick() {
  if constexpr (format == Format::kInt4 || format == Format::kInt8) {
    return &tile_bytes<V, format, N, R>;
  } else {
    return &tile_floats<V, format, N, R>;
  }
}

template <class V, Format format, int N = tile_of<V>(format)>
TileFunction tile_for(int tokens, bool single) {
  if (tokens == N) return single ? pick<V, format, N, 1>() : pick<V, format, N, together(format, N)>();
  if constexpr (N > 1) {
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

inline Block block_of(const Matrix& w, int item, int index) {
  const uint8_t* data = w.block(item, index);
  if (w.groups == 0) return {data, nullptr, nullptr, w.block_bytes, static_cast<int>(w.block_bytes / 64)};
  return {data, w.block_scales(item, index), w.block_row_scales(item, index), w.block_bytes, w.groups};
}

// Blocks [first, last) of item times one chunk: out[token in chunk * stride + (block - first) * 16].
template <class V>
void multiply(const Matrix& w, int item, int first, int last, const Panels& panels, int chunk,
              float* out, size_t stride) {
  const int width = panels.chunks.width(chunk);
  const Panel panel = panel_of(panels, chunk);
  const int many = together(w.format, width);
  const TileFunction tile = tile_for<V>(w.format, width, false);
  int block = first;
  for (; block + many <= last; block += many) {
    tile(block_of(w, item, block), panel, out + (block - first) * kLanes, stride);
  }
  if (block == last) return;
  const TileFunction single = tile_for<V>(w.format, width, true);
  for (; block < last; ++block) {
    single(block_of(w, item, block), panel, out + (block - first) * kLanes, stride);
  }
}

inline int units(const Matrix& w) { return (w.blocks + kUnit - 1) / kUnit; }

// Unit of up to 64 rows times all chunks: out[token * stride + row].
template <class V>
void multiply_unit(const Matrix& w, int item, int unit, const Panels& panels, float* out,
                   size_t stride) {
  const int first = unit * kUnit, last = first + kUnit < w.blocks ? first + kUnit : w.blocks;
  for (int chunk = 0; chunk < panels.chunks.count; ++chunk) {
    multiply<V>(w, item, first, last, panels, chunk,
                out + static_cast<size_t>(panels.chunks.start(chunk)) * stride + first * kLanes,
                stride);
  }
}

}  // namespace
}  // namespace dsv2
