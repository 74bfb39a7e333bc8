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

// Floats: row r of the block at column c goes to vector c (fp32) or half of vector c/2 (bf16).
inline void pack_floats(const Source& s, Format format, int item, int row, int lane, uint8_t* block) {
  const size_t start = item * s.item_stride + row * s.row_stride;
  for (int c = 0; c < s.cols; ++c) {
    const size_t index = start + c * s.col_stride;
    if (format == Format::kF32) {
      const float value = source_value(s, index);
      std::memcpy(block + (static_cast<size_t>(c) * kLanes + lane) * 4, &value, 4);
    } else {
      const uint16_t value = s.format == Format::kBf16 ? static_cast<const uint16_t*>(s.data)[index]
                                                       : to_bf16(source_value(s, index));
      std::memcpy(block + (static_cast<size_t>(c / 2) * kLanes + lane) * 4 + c % 2 * 2, &value, 2);
    }
  }
}

// int8: 4 columns to a word; unsigned by an offset of 128 where the dot product wants that.
template <class V>
void pack_bytes(const Source& s, int item, int row, int lane, uint8_t* block) {
  const int8_t* in = static_cast<const int8_t*>(s.data) + item * s.item_stride + row * s.row_stride;
  for (int c = 0; c < s.cols; c += 4) {
    uint32_t word;
    if (s.col_stride == 1) {
      std::memcpy(&word, in + c, 4);
    } else {
      int8_t four[4];
      for (int i = 0; i < 4; ++i) four[i] = in[(c + i) * s.col_stride];
      std::memcpy(&word, four, 4);
    }
    if (V::kBiased) word ^= 0x80808080u;
    std::memcpy(block + (static_cast<size_t>(c / 4) * kLanes + lane) * 4, &word, 4);
  }
}

inline uint32_t code_at(const Source& s, size_t index) {
  return static_cast<const uint8_t*>(s.data)[index / 2] >> (index % 2 * 4) & 15;
}

// int4: 8 columns to a word, the first 4 in its low nibbles.
inline uint32_t word_of_codes(const Source& s, size_t start) {
  if (s.col_stride == 1 && start % 8 == 0) {
    uint32_t in;
    std::memcpy(&in, static_cast<const uint8_t*>(s.data) + start / 2, 4);
    // in: byte j holds columns 2j and 2j+1. Even columns are spread to bytes 0, 2 ..
    uint32_t out = 0;
    for (int j = 0; j < 8; ++j) out |= (in >> (4 * j) & 15) << (j % 4 * 8 + j / 4 * 4);
    return out;
  }
  uint32_t out = 0;
  for (int j = 0; j < 8; ++j) out |= code_at(s, start + j * s.col_stride) << (j % 4 * 8 + j / 4 * 4);
  return out;
}

template <class V>
void pack_block(const Source& s, Matrix& out, int item, int index) {
  uint8_t* block = out.data + (static_cast<size_t>(item) * out.blocks + index) * out.block_bytes;
  const int rows = s.rows - index * kLanes < kLanes ? s.rows - index * kLanes : kLanes;
  if (rows < kLanes || s.cols % 2) std::memset(block, 0, out.block_bytes);
  if (out.groups == 0) {
    for (int lane = 0; lane < rows; ++lane) {
      pack_floats(s, out.format, item, index * kLanes + lane, lane, block);
    }
    return;
  }
  if (out.format == Format::kInt8) {
    for (int lane = 0; lane < rows; ++lane) pack_bytes<V>(s, item, index * kLanes + lane, lane, block);
  } else {
    const size_t start = item * s.item_stride + index * kLanes * s.row_stride;
    for (int c = 0; c < s.cols; c += 8) {
      uint32_t words[kLanes] = {};
      for (int lane = 0; lane < rows; ++lane) {
        words[lane] = word_of_codes(s, start + lane * s.row_stride + c * s.col_stride);
      }
      std::memcpy(block + static_cast<size_t>(c) * 8, words, 64);
    }
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
