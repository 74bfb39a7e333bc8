// The products of flash_bytes.h on a matrix unit, with its numbers bit for bit: sums of bytes are exact.
//
// Keys are tiles from where they lie, 16 tokens of 64 codes; a packed query is one already. For what is
// mixed codes of four tokens are put side by side and weights are turned, as vector instructions would
// have them. A tile cannot be loaded from stores still under way: what is loaded next is stored one
// product earlier.
#pragma once

#include <cstring>

#include "flash_tiles.h"
#include "latent.h"
#include "tiles.h"

namespace dsv2 {
namespace {

template <class V>
struct FlashByteTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kCodes = 64;  // in a row of a tile, and keys in a row of weights
  static constexpr int kQuads = kCodes / 4;

  // s[key][16] of `count` <= 64 keys, from a packed query with its scales and starts [groups][16].
  // Meanwhile half of what is ahead is asked for.
  static void scores(const int32_t* query, const float* scales, const int32_t* starts, const LatentLayout& layout,
                     const uint8_t* keys, size_t stride, const float* key_scales, int count, float* s,
                     Ahead& ahead) {
    const int tiles = ceil_div(count, kLanes), groups = layout.groups_all;
    const int lines = ceil_div(ahead.lines, 2 * tiles * (layout.codes_all / kCodes));
    alignas(64) int32_t sums[2][kPage * kLanes];
    V::shape({kLanes, kStepWords});
    for (int g = 0; g < groups; ++g) {
      // A row again and again: every key begins with the same.
      each_tile(tiles, [&](auto tile) { V::template tile_load<tile>(starts + g * kLanes, 0); });
      for (int code = layout.group_start(g); code < layout.group_end(g); code += kCodes) {
        V::template tile_load<6>(query + static_cast<size_t>(code / 4) * kLanes, 64);
        each_tile(tiles, [&](auto tile) {
          constexpr int own = 4 + tile % 2;
          V::template tile_load<own>(keys + tile * kLanes * stride + code, stride);
          V::template dot_unsigned_tiles<tile, own, 6>();
          ahead.ask<V>(lines);
        });
      }
      int32_t* sum = sums[g % 2];
      each_tile(tiles, [&](auto tile) { V::template tile_store<tile>(sum + tile * kLanes * kLanes, 64); });
      const F by = V::load(scales + g * kLanes);
      for (int n = 0; n < count; ++n) {
        const F both = V::mul(by, V::set(key_scales[n * groups + g])), dot = V::to_float(V::load_int(sum + n * kLanes));
        V::store(s + n * kLanes, V::fma(dot, both, g ? V::load(s + n * kLanes) : V::zero()));
      }
    }
  }

  // Weights [count/4][16] of four keys a word as rows [16][64] of bytes, 0 behind the last key.
  static void turn(const int32_t* quads, int count, int32_t* rows) {
    I words[kQuads];
    for (int t = 0; t < kQuads; ++t) words[t] = 4 * t < count ? V::load_int(quads + t * kLanes) : V::zero_int();
    V::transpose(words);
    for (int r = 0; r < kLanes; ++r) V::store_int(rows + r * kQuads, words[r]);
  }

  // Codes [column, column + 64) of `count` keys as four tiles: values [quad][4][16].
  static void gather(const uint8_t* keys, size_t stride, int column, int count, int32_t* values, Ahead& ahead,
                     int lines) {
    for (int t = 0; 4 * t < count; ++t, values += 4 * kLanes) {
      const uint8_t* row[4];
      // Behind the end any number will do: its weight is 0.
      for (int k = 0; k < 4; ++k) row[k] = keys + smaller(4 * t + k, count - 1) * stride + column;
      I columns[4];
      V::interleave_bytes(row, columns);
      for (int k = 0; k < 4; ++k) V::store_int(values + k * kLanes, columns[k]);
      ahead.ask<V>(lines);
    }
  }

  // o[r][c] = o[r][c] factor[r] + step[g][r] times the weighted sum over `count` keys, for all columns c
  // of the latent. weigh(group, rows, steps) makes a group's turned weights and their steps. Meanwhile
  // what is ahead is asked for.
  template <class Weigh>
  static void mix(Weigh weigh, const LatentLayout& layout, const uint8_t* keys, size_t stride, int count, int rows,
                  const float* factors, float* o, Ahead& ahead) {
    alignas(64) int32_t weights[2][kLanes * kQuads], values[2][kQuads * 4 * kLanes] = {}, sums[kLanes * 4 * kLanes];
    alignas(64) float steps[2][kLanes];
    const int width = layout.codes_latent;
    const int lines = ceil_div(ahead.lines, ceil_div(count, 4) * (width / kCodes));
    weigh(0, weights[0], steps[0]);
    gather(keys, stride, 0, count, values[0], ahead, lines);
    for (int g = 0; g < layout.groups_latent; ++g) {
      if (g + 1 < layout.groups_latent) weigh(g + 1, weights[(g + 1) % 2], steps[(g + 1) % 2]);
      V::template tile_load<4>(weights[g % 2], 64);
      for (int c = layout.group_start(g); c < layout.group_end(g); c += kCodes) {
        const int32_t* own = values[c / kCodes % 2];
        each_tile(4, [&](auto part) {
          constexpr int place = 6 + part % 2;
          V::template tile_load<place>(own + part * kLanes, 4 * 64);
          V::template tile_zero<part>();
          V::template dot_unsigned_tiles<part, 4, place>();
          V::template tile_store<part>(sums + part * kLanes, 4 * 64);
        });
        const int next = c + kCodes;
        if (next < width) gather(keys, stride, next, count, values[next / kCodes % 2], ahead, lines);
        for (int r = 0; r < rows; ++r) {
          const F factor = V::set(factors[r]), step = V::set(steps[g % 2][r]);
          float* out = o + static_cast<size_t>(r) * width + c;
          for (int k = 0; k < 4; ++k, out += kLanes) {
            const F sum = V::to_float(V::load_int(sums + (r * 4 + k) * kLanes));
            V::store(out, V::fma(sum, step, V::mul(V::load(out), factor)));
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace dsv2
