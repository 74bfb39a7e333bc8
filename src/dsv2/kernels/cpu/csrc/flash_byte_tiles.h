// Absorbed attention over cached latents of one byte per number on a matrix unit: a part of the keys at
// once, where flash_bytes.h takes 64.
//
// Queries and weights of the softmax, each times the scale of its key's group, become integers of 16
// bits, whose high and low bytes meet the codes in products of their own: with 8 bits a result is off by
// two to four times what bf16 costs. The largest weight of a row is 1, so the scales that it sees bound
// them:
//
//   s[n] = sum over g of q_scale[g] k_scale[n][g] (256 dot of high bytes + dot of low bytes)
//   o[c] = step[g] (256 sum over n of high[n][g] v8[n][c] + sum over n of low[n][g] v8[n][c])
//   step[g] (256 high[n][g] + low[n][g]) ~ p[n] k_scale[n][g],   step[g] = max over n of k_scale[n][g] / 65535
//
// Sums are exact and stay below 2^31 for 256 keys. So a part's result depends on its own tokens alone
// here too, and its output is written once. Keys are tiles from where they lie, 16 tokens of 64 codes; a
// packed query is one already. For what is mixed codes of four tokens are put side by side and weights
// are turned. A tile cannot be loaded from stores still under way: what is loaded next is stored one
// product earlier.
#pragma once

#include "flash.h"
#include "flash_bytes.h"
#include "latent.h"
#include "tiles.h"

namespace dsv2 {
namespace {

constexpr int kPartPages = kSplit / kPage;

// Keys of a part: 8-bit codes of its pages, `stride` apart, and what is read while one or all are used.
struct CodedPart {
  const uint8_t* pages[kPartPages];
  size_t stride;
  int count;
  const float* scales;  // [groups][kSplit]
  Ahead in_scores[kPartPages], in_mix[kPartPages];

  int page_count() const { return ceil_div(count, kPage); }
  int keys_of(int page) const { return smaller(kPage, count - page * kPage); }
};

template <class V>
struct FlashByteTiles {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kCodes = 64;  // in a row of a tile; keys in a row of weights
  static constexpr int kQuads = kCodes / 4;
  static constexpr int kHalf = kCodes / 2;
  static constexpr int kTile = kLanes * kLanes;  // words
  static constexpr size_t kScratch = kSplit * kLanes;

  // All keys of a part for a tile of queries, whose state gets their output, maxima and sums. query: as
  // FlashBytes packs it; scratch: kScratch floats.
  static void part(int32_t* query, const LatentLayout& layout, CodedPart& keys, int first, const QueryTile& tile,
                   float scale, float* scratch) {
    V::shape({kLanes, kStepWords});
    clear<V>(tile.state, 0);  // outputs are written, not added to
    for (int page = 0; page < keys.page_count(); ++page) {
      scores(query, layout, keys, page, scratch + page * kPage * kLanes);
    }
    alignas(64) float factors[kLanes];
    soften<V>(scratch, first, keys.count, tile.limits, tile.smallest_limit, scale, tile.state, factors);
    mix(scratch, layout, keys, first, tile);
  }

 private:
  // s[key][16] of a page's keys.
  static void scores(int32_t* query, const LatentLayout& layout, CodedPart& keys, int page, float* s) {
    const float* scales = FlashBytes<V>::scales_of(query, layout);
    const int32_t* starts = FlashBytes<V>::starts_of(query, layout);
    const size_t plane = FlashBytes<V>::plane_words(layout);
    const int count = keys.keys_of(page), tiles = ceil_div(count, kLanes);
    const float* key_scales = keys.scales + page * kPage;
    Ahead& ahead = keys.in_scores[page];
    const int lines = ceil_div(ahead.lines, tiles * (layout.codes_all / kCodes));
    alignas(64) int32_t sums[2][2][kPage * kLanes];  // of a group and the next, from high and low bytes
    for (int g = 0; g < layout.groups_all; ++g, key_scales += kSplit) {
      int32_t *high = sums[g % 2][0], *low = sums[g % 2][1];
      for (int first = 0; first < tiles; first += 2) {
        const int both = smaller(2, tiles - first);
        each_tile(both, [&](auto tile) {
          V::template tile_zero<2 * tile % 4>();
          // A row again and again: every key begins with the same.
          V::template tile_load<2 * tile % 4 + 1>(starts + g * kLanes, 0);
        });
        for (int code = layout.group_start(g); code < layout.group_end(g); code += kCodes) {
          const int32_t* own = query + static_cast<size_t>(code / 4) * kLanes;
          V::template tile_load<6>(own, 64);
          V::template tile_load<7>(own + plane, 64);
          each_tile(both, [&](auto tile) {
            const size_t token = static_cast<size_t>(first + tile) * kLanes;
            V::template tile_load<4 + tile % 2>(keys.pages[page] + token * keys.stride + code, keys.stride);
            V::template dot_byte_tiles<2 * tile % 4, 4 + tile % 2, 6, false, true>();
            V::template dot_byte_tiles<2 * tile % 4 + 1, 4 + tile % 2, 7, false, false>();
            ahead.ask<V>(lines);
          });
        }
        each_tile(both, [&](auto tile) {
          V::template tile_store<2 * tile % 4>(high + (first + tile) * kTile, 64);
          V::template tile_store<2 * tile % 4 + 1>(low + (first + tile) * kTile, 64);
        });
      }
      const F by = V::load(scales + g * kLanes);
      for (int n = 0; n < count; ++n) {
        const F dot = V::to_float(V::add_bytes(V::load_int(high + n * kLanes), V::load_int(low + n * kLanes)));
        const F before = g ? V::load(s + n * kLanes) : V::zero();
        V::store(s + n * kLanes, V::fma(dot, V::mul(by, V::set(key_scales[n])), before));
      }
    }
  }

  // p[n][16] times each key's scale as tiles [16][64] of high and of low bytes, and the step of each row.
  static void weigh(const float* p, const float* key_scales, int first, int count, const QueryTile& tile,
                    int32_t (*tiles)[2][kTile], float* steps) {
    alignas(64) float own[kSplit];
    F top = V::zero();
    for (int n = 0; n < count; n += kLanes) {
      // A key that is not finite has spoilt the sums of the rows that see it; others weigh it 0.
      const F scales = V::first_lanes(V::finite(V::load(key_scales + n)), count - n, V::zero());
      V::store(own + n, scales);
      top = V::max(scales, top);
    }
    top = V::set(V::largest(top));
    if (first + count > tile.smallest_limit) {  // what a row does not see is not to change its step
      const I limits = V::load_int(tile.limits);
      top = V::zero();
      for (int n = 0; n < count; ++n) top = V::max(V::visible(V::set(own[n]), first + n, limits), top);
    }
    // All scales may be 0; the smallest step keeps its quotient finite.
    const F step = V::max(V::mul(top, V::set(1.0f / 65535.0f)), V::set(1e-37f)), inverse = V::div(V::set(1.0f), step);
    V::store(steps, step);
    const auto level = [&](int n) {
      return V::round_int(V::mul(V::load(p + n * kLanes), V::mul(V::set(own[n]), inverse)));
    };
    for (int half = 0; half * kHalf < ceil_div(count, kPage) * kPage; ++half) {  // 32 keys, two to a word
      const int start = half * kHalf, left = count - start;
      I words[kLanes];
      if (left >= kHalf) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) words[i] = V::join_shorts(level(start + 2 * i), level(start + 2 * i + 1));
      } else {
        for (int i = 0; i < kLanes; ++i) {
          const I even = 2 * i < left ? level(start + 2 * i) : V::zero_int();
          words[i] = V::join_shorts(even, 2 * i + 1 < left ? level(start + 2 * i + 1) : V::zero_int());
        }
      }
      V::transpose(words);
      int32_t(&pair)[2][kTile] = tiles[half / 2];
      for (int r = 0; r < kLanes; ++r) {
        const int place = r * kQuads + half % 2 * kQuads / 2;
        V::store_bytes(words[r], pair[0] + place, pair[1] + place);
      }
    }
  }

  // Codes [column, column + 64) of a page's keys as four tiles: values [quad][4][16].
  static void gather(CodedPart& keys, int page, int column, int lines, int32_t* values) {
    const int count = keys.keys_of(page);
    const size_t stride = keys.stride;
    const uint8_t* at = keys.pages[page] + column;
    const auto put = [&](const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
      const uint8_t* rows[4] = {a, b, c, d};
      I columns[4];
      V::interleave_bytes(rows, columns);
      for (int k = 0; k < 4; ++k) V::store_int(values + k * kLanes, columns[k]);
      values += 4 * kLanes;
      keys.in_mix[page].template ask<V>(lines);
    };
    int left = count;
    for (; left >= 4; left -= 4, at += 4 * stride) put(at, at + stride, at + 2 * stride, at + 3 * stride);
    // Behind the end any number will do: its weight is 0.
    if (left > 0) put(at, at + (left > 1 ? stride : 0), at + (left > 2 ? 2 * stride : 0), at);
  }

  // o[r][c] = the weighted sum over a part's keys, for all columns of the latent.
  static void mix(const float* p, const LatentLayout& layout, CodedPart& keys, int first, const QueryTile& tile) {
    // Of a group, and the next one; of a chunk of 64 columns; of its two halves by columns and bytes.
    alignas(64) int32_t weights[2][kPartPages][2][kTile];
    alignas(64) int32_t values[kPartPages][4 * kTile];
    alignas(64) int32_t sums[4][2][kTile];
    alignas(64) float steps[2][kLanes];
    const int pages = keys.page_count(), width = layout.codes_latent;
    int lines[kPartPages];
    const auto weigh_group = [&](int g) {
      weigh(p, keys.scales + g * kSplit, first, keys.count, tile, weights[g % 2], steps[g % 2]);
    };
    weigh_group(0);
    for (int page = 0; page < pages; ++page) {
      lines[page] = ceil_div(keys.in_mix[page].lines, ceil_div(keys.keys_of(page), 4) * (width / kCodes));
      gather(keys, page, 0, lines[page], values[page]);
    }
    for (int g = 0; g < layout.groups_latent; ++g) {
      if (g + 1 < layout.groups_latent) weigh_group(g + 1);
      for (int c = layout.group_start(g); c < layout.group_end(g); c += kCodes) {
        for (int half = 0; half < 2; ++half) {
          each_tile(4, [](auto sum) { V::template tile_zero<sum>(); });
          for (int page = 0; page < pages; ++page) {
            const int32_t* own = values[page] + half * 2 * kLanes;
            V::template tile_load<4>(weights[g % 2][page][0], 64);
            V::template tile_load<5>(weights[g % 2][page][1], 64);
            V::template tile_load<6>(own, 4 * 64);
            V::template tile_load<7>(own + kLanes, 4 * 64);
            V::template dot_byte_tiles<0, 4, 6, false, true>();
            V::template dot_byte_tiles<1, 5, 6, false, true>();
            V::template dot_byte_tiles<2, 4, 7, false, true>();
            V::template dot_byte_tiles<3, 5, 7, false, true>();
            if (half == 1 && c + kCodes < width) gather(keys, page, c + kCodes, lines[page], values[page]);
          }
          each_tile(4, [&](auto sum) { V::template tile_store<sum>(sums[half * 2 + sum / 2][sum % 2], 64); });
        }
        for (int r = 0; r < tile.rows; ++r) {
          const F step = V::set(steps[g % 2][r]);
          float* out = tile.state.o + static_cast<size_t>(r) * width + c;
          for (int k = 0; k < 4; ++k) {
            const I high = V::load_int(sums[k][0] + r * kLanes), low = V::load_int(sums[k][1] + r * kLanes);
            V::store(out + k * kLanes, V::mul(V::to_float(V::add_bytes(high, low)), step));
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace dsv2
