// Plain data that every instruction set shares: packed weights, latent cache, batch, layers.
//
// Letters as in ops.py: T tokens, B sequences, H heads, D hidden, N nope dim, R rope dim, C latent
// dim, V value dim, E experts, K experts per token, F expert width.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsv2 {

constexpr int kLanes = 16;      // rows of a weight block: one 512-bit vector of fp32
constexpr int kUnit = 4;        // blocks that a thread takes at once: 64 rows
constexpr int kPage = 64;       // tokens of a cache block
constexpr int kGroup4 = 64;     // weights that share a scale in 4 bits
constexpr int kGroup8 = 32;     // ... in 8 bits

enum class Format : int { kF32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3, kInt6 = 4 };  // kInt6: caches

constexpr int group_of(Format format) {
  return format == Format::kInt4 ? kGroup4 : format == Format::kInt8 ? kGroup8 : 1;
}

// `count` matrices [rows, cols] in blocks of 16 interleaved rows, so that one vector holds the same
// columns of 16 rows and each output is one lane: it is summed over the columns in one fixed order,
// whatever the number of tokens, which makes every result independent of its batch.
//
// A block holds for each step over the columns 64 bytes: 1 column of fp32, 2 of bf16, 4 of int8, or
// 8 of int4 (the low nibbles are the first 4). Scales follow block by block: 16 int8 per group of
// columns, and one fp32 per row.
struct Matrix {
  Format format;
  int count, rows, cols;
  int blocks;              // of 16 rows, the last padded with zeros
  size_t block_bytes;      // of the weights of one block
  int groups;              // per row, 0 when the format has no scales
  uint8_t* data;           // [count][blocks][block_bytes]
  int8_t* scales;          // [count][blocks][groups][16]
  float* row_scales;       // [count][blocks][16]
  size_t bytes;            // of all three

  const uint8_t* block(int item, int index) const {
    return data + (static_cast<size_t>(item) * blocks + index) * block_bytes;
  }
  const int8_t* block_scales(int item, int index) const {
    return scales + (static_cast<size_t>(item) * blocks + index) * groups * kLanes;
  }
  const float* block_row_scales(int item, int index) const {
    return row_scales + (static_cast<size_t>(item) * blocks + index) * kLanes;
  }
};

// Where unpacked weights come from: [count, rows, cols] by strides in elements. With int8 and int4
// `data` holds the codes, int4 two to a byte (even columns low), `scales` [count, rows, groups] and
// `row_scales` [count, rows], all contiguous per item with `item_rows` rows between items.
struct Source {
  Format format;
  int count, rows, cols;
  const void* data;
  const int8_t* scales;
  const float* row_scales;
  size_t item_stride;  // elements between items
  size_t row_stride;   // elements between rows
  size_t col_stride;   // elements between columns, 1 unless a plain matrix is transposed
  size_t item_rows;    // rows between items in scales and row_scales
};

struct Cache {
  Format format;
  uint8_t* data;      // [P, 64, token_bytes], see latent.h
  size_t token_bytes;
};

struct Batch {
  int tokens, sequences, table_width;
  const int32_t* cu_q;         // [B+1]
  const int32_t* kv_len;       // [B]
  const int32_t* block_table;  // [B, table_width]
  const int32_t* slots;        // [T]
  const uint8_t* absorbed;     // [B]
  const float* cos;            // [T, R/2]
  const float* sin;            // [T, R/2]
};

struct AttentionLayer {
  int hidden, heads, nope, rope, value, latent;
  float scale, eps, latent_eps;
  const float *norm, *q_norm, *kv_norm;
  const Matrix *wq, *wq_a, *wq_b, *wkv_a, *wo;  // wq, or wq_a and wq_b
  const Matrix *w_uk, *w_uk_t, *w_uv;           // one item per head: [N, C], [C, N], [V, C]
  const float* fold;  // [H, C/group, N]: scales of W^UK by column group, null without scales
};

struct MlpLayer {
  int hidden, width;
  float eps;
  const float* norm;
  const Matrix *gate, *up, *down;
};

enum class Score : int { kSoftmax = 0, kSigmoid = 1 };
enum class GroupScore : int { kNone = 0, kMax = 1, kTop2Sum = 2 };

struct Routing {
  int experts, chosen, groups, chosen_groups;
  Score score;
  GroupScore group_score;
  bool normalise;
  float scale;
};

struct MoeLayer {
  int hidden, width, shared_width;  // shared_width 0: no shared experts
  float eps;
  Routing routing;
  const float *norm, *router_bias;
  const Matrix* router;
  const Matrix *gate, *up, *down;                       // E items
  const Matrix *shared_gate, *shared_up, *shared_down;
};

}  // namespace dsv2
