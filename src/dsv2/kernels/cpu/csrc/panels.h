// Activations in panels, as the products of matmul.h and tiles.h read them.
//
// T tokens are split into chunks of nearly equal width, at most tile_of(format). A chunk for vector
// instructions lies column by column, so that the multiplication walks weights and activations forward
// and needs one pointer for each. For a matrix unit it lies in steps of the columns that a tile takes,
// token by token. Quantised activations have one scale per group of columns, as their weights do.
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

// Words of a step of the matrix unit: 64 bytes of each token.
constexpr int kStepWords = 16;

// Whether the matrix unit multiplies a chunk of so many tokens. In bytes its sums are those of the
// vector instructions, so that few tokens may take these; in bf16 they are not.
template <class V>
constexpr bool in_matrix_unit(Format format, int tokens) {
  if constexpr (V::kMatrixUnit) {
    const Form form = form_of<V>(format);
    return form == Form::kBf16 || (form == Form::kBytes && tokens >= V::fewest(format));
  }
  (void)format, (void)tokens;
  return false;
}

// Tokens multiplied per pass over a block: by vector instructions, and at most.
template <class V>
constexpr int vector_tile_of(Format format) {
  const Form form = form_of<V>(format);
  if constexpr (V::kMatrixUnit) {
    static_assert(V::fewest(Format::kInt8) <= V::kByteTokens && V::fewest(Format::kInt4) <= V::kByteTokens);
    if (form == Form::kBytes) return V::fewest(format) - 1;
    if (form == Form::kBf16) return 0;
  }
  return form == Form::kBytes ? V::kTile : V::kFloatTile;
}
template <class V>
constexpr int tile_of(Format format) {
  if constexpr (V::kMatrixUnit) {
    if (form_of<V>(format) == Form::kBytes) return V::kByteTokens;
    if (form_of<V>(format) == Form::kBf16) return V::kHalfTokens;
  }
  return vector_tile_of<V>(format);
}
template <class V>
constexpr int widest_tile() {
  int widest = 0;
  for (Format format : {Format::kF32, Format::kBf16, Format::kInt8, Format::kInt4}) {
    widest = tile_of<V>(format) > widest ? tile_of<V>(format) : widest;
  }
  return widest;
}

// Words of a token that lie together in a chunk: a step of the matrix unit, or one.
template <class V>
constexpr int run_of(Format format, int tokens) {
  if (!in_matrix_unit<V>(format, tokens)) return 1;
  return format == Format::kInt8 ? kGroup8 / 4 : kStepWords;
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
  int32_t* data = nullptr;    // chunk by chunk [words / run][width][run]
  float* scales = nullptr;    // chunk by chunk [groups][width]
  int32_t* starts = nullptr;  // likewise: what a sum of products begins with

  template <class V>
  static Panels make(Arena& arena, int tokens, int cols, Format format) {
    const int per_word = columns_per_word(form_of<V>(format));
    int words = (cols + per_word - 1) / per_word;
    if (format == Format::kBf16) words += words * per_word % 2;  // weights come in pairs of columns
    if (in_matrix_unit<V>(format, tile_of<V>(format))) {
      const int run = run_of<V>(format, tile_of<V>(format));
      words = (words + run - 1) / run * run;
    }
    const int groups = format == Format::kInt8 || format == Format::kInt4 ? cols / group_of(format) : 0;
    Panels panels{Chunks(tokens, tile_of<V>(format)), format, cols, words, groups, nullptr, nullptr, nullptr};
    panels.data = arena.take<int32_t>(static_cast<size_t>(tokens) * words);
    panels.scales = arena.take<float>(static_cast<size_t>(tokens) * groups);
    panels.starts = arena.take<int32_t>(static_cast<size_t>(tokens) * groups);
    return panels;
  }
};

// Where a token's words lie in its chunk.
struct Slot {
  int32_t* data;
  float* scales;
  int32_t* starts;
  int width, run;

  int32_t* word(int index) const {
    return data + (run == 1 ? static_cast<size_t>(index) * width
                            : static_cast<size_t>(index / run) * run * width + index % run);
  }
};

template <class V>
Slot slot_of(const Panels& panels, int token) {
  const int chunk = panels.chunks.of(token), start = panels.chunks.start(chunk);
  const int width = panels.chunks.width(chunk), run = run_of<V>(panels.format, width);
  const size_t first = start, place = token - start;
  return {panels.data + first * panels.words + place * run, panels.scales + first * panels.groups + place,
          panels.starts + first * panels.groups + place, width, run};
}

// A group whose numbers are all smaller is zeros: 32767 / max|x|, the most that codes take, would not be
// finite.
constexpr float kLeast = 1e-34f;

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
  const F inverse = V::set(top > kLeast ? 127.0f / top : 0.0f);
  I total = V::zero_int();
  alignas(64) int32_t words[G / 4];
  for (int i = 0; i < G / kLanes; ++i) {
    const I rounded = V::round_int(V::mul(values[i], inverse));
    total = V::add_int(total, rounded);
    V::store_int8(reinterpret_cast<int8_t*>(words) + i * kLanes, rounded);
  }
  const size_t width = slot.width;
  int32_t* out = slot.word(group * (G / 4));
  if (slot.run == 1) {
    for (int i = 0; i < G / 4; ++i) out[i * width] = words[i];
  } else {
    std::memcpy(out, words, sizeof words);
  }
  slot.scales[group * width] = poison == 0 ? top / 127.0f : poison;
  constexpr int kMore = G == kGroup4 ? kRaise : V::kBiased ? 128 : 0;
  slot.starts[group * width] = -kMore * V::sum_int(total);
}

// Writes x[count] as words [first, first + words) of a token; zeros behind the end.
template <class V>
void write_words(Form form, const Slot& slot, int first, const float* x, int count, int words) {
  int word = 0;
  if (slot.run > 1) {
    for (; 2 * word + kLanes <= count; word += kLanes / 2) {
      V::store_bf16(reinterpret_cast<uint16_t*>(slot.word(first + word)), V::load(x + 2 * word));
    }
  }
  for (; word < words; ++word) {
    int32_t* out = slot.word(first + word);
    if (form == Form::kBf16) {
      const uint32_t low = 2 * word < count ? to_bf16(x[2 * word]) : 0;
      const uint32_t high = 2 * word + 1 < count ? to_bf16(x[2 * word + 1]) : 0;
      *out = static_cast<int32_t>(low | high << 16);
    } else {
      const float value = word < count ? x[word] : 0.0f;
      std::memcpy(out, &value, sizeof value);
    }
  }
}

// Writes columns [first, last) of a token; first is a multiple of 64.
template <class V>
void write_part(const Panels& panels, int token, const float* x, int first, int last) {
  const Form form = form_of<V>(panels.format);
  const int word = first / columns_per_word(form);
  const Slot slot = slot_of<V>(panels, token);
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
    write_words<V>(form, slot, word, x, last - first,
                   (last < panels.cols ? last / columns_per_word(form) : panels.words) - word);
  }
}

// Writes the activations x[cols] of one token.
template <class V>
void write_token(const Panels& panels, int token, const float* x) {
  write_part<V>(panels, token, x, 0, panels.cols);
}

// Copies a token from one set of panels to another of the same columns and format.
template <class V>
void copy_token(const Panels& from, int source, const Panels& to, int target) {
  const Slot a = slot_of<V>(from, source), b = slot_of<V>(to, target);
  const size_t wa = a.width, wb = b.width;
  const int step = a.run > b.run ? a.run : b.run;  // one of them is 1, or they are the same
  for (int i = 0; i < from.words; i += step) {
    const int32_t* in = a.word(i);
    int32_t* out = b.word(i);
    const size_t next_in = a.run == 1 ? wa : 1, next_out = b.run == 1 ? wb : 1;
    for (int k = 0; k < step; ++k) out[k * next_out] = in[k * next_in];
  }
  for (int i = 0; i < from.groups; ++i) {
    b.scales[i * wb] = a.scales[i * wa];
    b.starts[i * wb] = a.starts[i * wa];
  }
}

}  // namespace
}  // namespace dsv2
