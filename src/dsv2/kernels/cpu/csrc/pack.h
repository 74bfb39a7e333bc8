// Portable weights into blocks of 16 interleaved rows, and a row back.
#pragma once

#include <cstring>

#include "codebook.h"
#include "pool.h"
#include "types.h"

namespace dsv2 {
namespace {

inline float source_value(const Source& s, size_t index) {
  if (s.format == Format::kF32) return static_cast<const float*>(s.data)[index];
  return from_bf16(static_cast<const uint16_t*>(s.data)[index]);
}

using Words = uint32_t __attribute__((vector_size(16)));

// Four words of four rows become four rows of one word, each `turn`ed.
template <class Turn>
void transpose(const uint8_t* in, size_t row_bytes, uint8_t* out, Turn turn) {
  Words a, b, c, d;
  std::memcpy(&a, in, 16);
  std::memcpy(&b, in + row_bytes, 16);
  std::memcpy(&c, in + 2 * row_bytes, 16);
  std::memcpy(&d, in + 3 * row_bytes, 16);
  const Words ab = {a[0], b[0], a[1], b[1]}, cd = {c[0], d[0], c[1], d[1]};
  const Words ef = {a[2], b[2], a[3], b[3]}, gh = {c[2], d[2], c[3], d[3]};
  const Words turned[4] = {turn(Words{ab[0], ab[1], cd[0], cd[1]}), turn(Words{ab[2], ab[3], cd[2], cd[3]}),
                           turn(Words{ef[0], ef[1], gh[0], gh[1]}), turn(Words{ef[2], ef[3], gh[2], gh[3]})};
  for (int w = 0; w < 4; ++w) std::memcpy(out + static_cast<size_t>(w) * 64, turned + w, 16);
}

// Vector w of the block takes word w of each row, `turn`ed; rows that are not there are zero.
template <class Turn>
void interleave(const void* first, size_t row_bytes, int rows, int words, uint8_t* block, Turn turn) {
  const uint8_t* in = static_cast<const uint8_t*>(first);
  int w = 0;
  if (rows == kLanes) {
    for (; w + 4 <= words; w += 4) {
      for (int lane = 0; lane < kLanes; lane += 4) {
        transpose(in + lane * row_bytes + static_cast<size_t>(w) * 4, row_bytes,
                  block + static_cast<size_t>(w) * 64 + lane * 4, turn);
      }
    }
  }
  for (; w < words; ++w) {
    uint32_t vector[kLanes] = {};
    for (int lane = 0; lane < rows; ++lane) std::memcpy(vector + lane, in + lane * row_bytes + w * 4, 4);
    for (uint32_t& word : vector) word = turn(word);
    std::memcpy(block + static_cast<size_t>(w) * 64, vector, 64);
  }
}

// Floats: a word is a column (fp32) or two (bf16).
inline void pack_floats(const Source& s, Format format, size_t start, int rows, uint8_t* block) {
  const bool wide = format == Format::kF32;
  if (s.col_stride == 1 && s.format == format && (wide || s.cols % 2 == 0)) {
    const size_t bytes = wide ? 4 : 2;
    interleave(static_cast<const uint8_t*>(s.data) + start * bytes, s.row_stride * bytes, rows,
               static_cast<int>(s.cols * bytes / 4), block, [](auto word) { return word; });
    return;
  }
  for (int lane = 0; lane < rows; ++lane) {
    for (int c = 0; c < s.cols; ++c) {
      const size_t index = start + lane * s.row_stride + c * s.col_stride;
      if (wide) {
        const float value = source_value(s, index);
        std::memcpy(block + (static_cast<size_t>(c) * kLanes + lane) * 4, &value, 4);
      } else {
        const uint16_t value = s.format == Format::kBf16 ? static_cast<const uint16_t*>(s.data)[index]
                                                         : to_bf16(source_value(s, index));
        std::memcpy(block + (static_cast<size_t>(c / 2) * kLanes + lane) * 4 + c % 2 * 2, &value, 2);
      }
    }
  }
}

// int8: a word is 4 columns; unsigned by an offset of 128 where the dot product wants that.
template <class V>
void pack_bytes(const Source& s, size_t start, int rows, uint8_t* block) {
  const int8_t* in = static_cast<const int8_t*>(s.data) + start;
  const auto turn = [](auto word) { return V::kBiased ? word ^ 0x80808080u : word; };
  if (s.col_stride == 1) {
    interleave(in, s.row_stride, rows, s.cols / 4, block, turn);
    return;
  }
  for (int lane = 0; lane < rows; ++lane) {
    for (int c = 0; c < s.cols; c += 4) {
      int8_t four[4];
      for (int i = 0; i < 4; ++i) four[i] = in[lane * s.row_stride + (c + i) * s.col_stride];
      uint32_t word;
      std::memcpy(&word, four, 4);
      word = turn(word);
      std::memcpy(block + (static_cast<size_t>(c / 4) * kLanes + lane) * 4, &word, 4);
    }
  }
}

inline uint32_t code_at(const Source& s, size_t index) {
  return static_cast<const uint8_t*>(s.data)[index / 2] >> (index % 2 * 4) & 15;
}

// Nibbles 0 to 3 of a word as the low nibbles of its bytes.
template <class Word>
Word spread(Word x) {
  x = (x | x << 8) & 0x00FF00FFu;
  return (x | x << 4) & 0x0F0F0F0Fu;
}

// int4: a word is 8 columns, the first 4 in the low nibbles of its bytes.
inline void pack_nibbles(const Source& s, size_t start, int rows, uint8_t* block) {
  if (s.col_stride == 1 && start % 2 == 0 && s.row_stride % 2 == 0) {
    interleave(static_cast<const uint8_t*>(s.data) + start / 2, s.row_stride / 2, rows, s.cols / 8, block,
               [](auto word) { return spread(word & 0xFFFFu) | spread(word >> 16) << 4; });
    return;
  }
  for (int c = 0; c < s.cols; c += 8) {
    uint32_t words[kLanes] = {};
    for (int lane = 0; lane < rows; ++lane) {
      const size_t first = start + lane * s.row_stride + c * s.col_stride;
      for (int j = 0; j < 8; ++j) {
        words[lane] |= code_at(s, first + j * s.col_stride) << (j % 4 * 8 + j / 4 * 4);
      }
    }
    std::memcpy(block + static_cast<size_t>(c) * 8, words, 64);
  }
}

template <class V>
void pack_block(const Source& s, Matrix& out, int item, int index) {
  uint8_t* block = out.data + (static_cast<size_t>(item) * out.blocks + index) * out.block_bytes;
  const int rows = s.rows - index * kLanes < kLanes ? s.rows - index * kLanes : kLanes;
  const size_t start = item * s.item_stride + index * kLanes * s.row_stride;
  if (rows < kLanes || s.cols % 2) std::memset(block, 0, out.block_bytes);
  if (out.groups == 0) {
    pack_floats(s, out.format, start, rows, block);
    return;
  }
  if (out.format == Format::kInt8) {
    pack_bytes<V>(s, start, rows, block);
  } else {
    pack_nibbles(s, start, rows, block);
  }
  // Weights that carry no scales of their own (W^UK transposed) count as scaled by one.
  int8_t* scales = out.scales + (static_cast<size_t>(item) * out.blocks + index) * out.groups * kLanes;
  float* row_scales = out.row_scales + (static_cast<size_t>(item) * out.blocks + index) * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    const size_t row = item * s.item_rows + index * kLanes + lane;
    const bool used = lane < rows;
    row_scales[lane] = !used ? 0.0f : s.row_scales ? s.row_scales[row] : 1.0f;
    for (int g = 0; g < out.groups; ++g) {
      scales[g * kLanes + lane] =
          !used ? int8_t{0} : s.scales ? s.scales[row * out.groups + g] : int8_t{1};
    }
  }
}

template <class V>
void pack_matrix(const Source& s, Matrix& out, Pool& pool) {
  pool.run([&](Team& team) {
    team.each(static_cast<int64_t>(s.count) * out.blocks, 4, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) pack_block<V>(s, out, i / out.blocks, i % out.blocks);
    });
  });
}

// Blocks of 8-bit codes, unsigned ones for signed ones and the other way round.
inline void copy_turned(const Matrix& in, Matrix& out, Pool& pool) {
  const int64_t all = static_cast<int64_t>(in.count) * in.blocks;
  pool.run([&](Team& team) {
    team.each(all, 4, [&](int64_t first, int64_t last) {
      const size_t start = first * in.block_bytes, end = last * in.block_bytes;
      for (size_t i = start; i < end; ++i) out.data[i] = in.data[i] ^ 0x80;
      const size_t per_block = static_cast<size_t>(in.groups) * kLanes;
      std::memcpy(out.scales + first * per_block, in.scales + first * per_block, (last - first) * per_block);
      std::memcpy(out.row_scales + first * kLanes, in.row_scales + first * kLanes,
                  (last - first) * kLanes * sizeof(float));
    });
  });
}

template <class V>
void unpack_row(const Matrix& w, int row, float* out) {
  const int index = row / kLanes, lane = row % kLanes;
  const uint8_t* block = w.block(0, index);
  for (int c = 0; c < w.cols; ++c) {
    float value = 0;
    if (w.format == Format::kF32) {
      std::memcpy(&value, block + (static_cast<size_t>(c) * kLanes + lane) * 4, 4);
    } else if (w.format == Format::kBf16) {
      uint16_t half;
      std::memcpy(&half, block + (static_cast<size_t>(c / 2) * kLanes + lane) * 4 + c % 2 * 2, 2);
      value = from_bf16(half);
    } else {
      if (w.format == Format::kInt8) {
        const uint8_t byte = block[(static_cast<size_t>(c / 4) * kLanes + lane) * 4 + c % 4];
        value = static_cast<int8_t>(V::kBiased ? byte ^ 0x80 : byte);
      } else {
        const uint8_t byte = block[(static_cast<size_t>(c / 8) * kLanes + lane) * 4 + c % 4];
        value = kCodebook[c % 8 < 4 ? byte & 15 : byte >> 4];
      }
      const int group = c / group_of(w.format);
      value *= static_cast<float>(w.block_scales(0, index)[group * kLanes + lane]) *
               w.block_row_scales(0, index)[lane];
    }
    out[c] = value;
  }
}

}  // namespace
}  // namespace dsv2
