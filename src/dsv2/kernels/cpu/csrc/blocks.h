// What a product reads: blocks of 16 rows of a packed matrix, and a chunk of activations.
#pragma once

#include "panels.h"
#include "types.h"

namespace dsv2 {
namespace {

// A block of 16 rows.
struct Block {
  const uint8_t* data;
  const int8_t* scales;
  const float* row_scales;
  size_t stride;  // bytes to the next block, for tiles of several
  int steps;      // vectors, or groups of a quantised format
  const uint8_t* after;  // the block that is read next, in the same place of its tile; itself if unknown
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

inline Block block_of(const Matrix& w, int item, int index) {
  const uint8_t* data = w.block(item, index);
  if (w.groups == 0) return {data, nullptr, nullptr, w.block_bytes, static_cast<int>(w.block_bytes / 64), data};
  return {data, w.block_scales(item, index), w.block_row_scales(item, index), w.block_bytes, w.groups, data};
}

// How far ahead of its use a weight is asked for: about a memory latency of one thread's stream.
constexpr int kAhead = 2048;

}  // namespace
}  // namespace dsv2
