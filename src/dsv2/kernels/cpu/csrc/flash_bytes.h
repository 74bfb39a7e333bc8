// Absorbed attention over cached latents of one byte per number: both products in integers. A matrix
// unit has a kernel of its own (flash_byte_tiles.h) and shares the queries, which have 16 bits there.
//
// As flash.h, for a tile of 16 rows and blocks of 64 keys. Queries become int8 by group of 128
// columns when they are packed; the weights of the softmax, each times the scale of its key's group,
// become small unsigned integers, as many levels as the row's largest weight in the block allows:
//
//   s[n] = sum over groups g of q_scale[g] k_scale[n][g] dot(g)
//   o[c] = o[c] e^(m-m') + step[g] sum over n of w8[n][g] v8[n][c],   step[g] w8[n][g] ~ p[n] k_scale[n][g]
//
// Sums of products are exact, so a row's result depends on its own tokens alone here too.
#pragma once

#include "flash.h"
#include "latent.h"
#include "panels.h"

namespace dsv2 {
namespace {

template <class V>
struct FlashBytes {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kRows = V::kFloatTile >= 8 ? 8 : 4;
  static constexpr int kWide = V::kFloatTile >= 8 ? 2 : 1;  // vectors of columns, so that sums fit registers

  // Bytes of a query's number, and its largest: the high ones of all columns, then the low ones.
  static constexpr int kPlanes = V::kMatrixUnit ? 2 : 1;
  static constexpr float kTop = V::kMatrixUnit ? 32767.0f : 127.0f;

  // A packed query tile: words [planes][codes/4][16], then scales and starts [groups][16].
  static size_t plane_words(const LatentLayout& layout) { return static_cast<size_t>(layout.codes_all / 4) * kLanes; }
  static size_t words(const LatentLayout& layout) {
    return kPlanes * plane_words(layout) + static_cast<size_t>(2 * layout.groups_all) * kLanes;
  }
  static constexpr size_t kScratch = kPage * kLanes * 2 + kPage * kLanes;

  static float* scales_of(int32_t* tile, const LatentLayout& layout) {
    return reinterpret_cast<float*>(tile + kPlanes * plane_words(layout));
  }
  static int32_t* starts_of(int32_t* tile, const LatentLayout& layout) {
    return tile + kPlanes * plane_words(layout) + static_cast<size_t>(layout.groups_all) * kLanes;
  }

  // Puts one row, its latent part x[C] and its rotated part, in lane `lane`.
  static void pack(int32_t* tile, int lane, const float* latent, const float* rope, const LatentLayout& layout) {
    uint8_t* bytes = reinterpret_cast<uint8_t*>(tile);
    uint8_t* low = reinterpret_cast<uint8_t*>(tile + plane_words(layout));
    for (int g = 0; g < layout.groups_all; ++g) {
      const bool turned = g >= layout.groups_latent;
      const float* own = turned ? rope + (layout.column(g) - layout.latent) : latent + layout.column(g);
      const int start = layout.group_start(g), padded = layout.group_end(g) - start;
      float wide[kLatentGroup] = {};
      std::memcpy(wide, own, sizeof(float) * layout.columns(g));
      F most = V::zero(), check = V::zero();
      for (int i = 0; i < padded; i += kLanes) {
        const F v = V::load(wide + i);
        most = V::max(V::abs(v), most);
        check = V::fma(v, V::zero(), check);
      }
      const float top = V::largest(most), poison = V::sum(check);
      const F inverse = V::set(top > kLeast && poison == 0 ? kTop / top : 0.0f);
      alignas(64) int32_t steps[kLanes];
      int32_t total = 0;
      for (int i = 0; i < padded; i += kLanes) {
        V::store_int(steps, V::round_int(V::mul(V::load(wide + i), inverse)));
        for (int k = 0; k < kLanes; ++k) {
          const int column = start + i + k;
          const int32_t code = poison == 0 ? steps[k] : 0;
          const size_t place = (static_cast<size_t>(column / 4) * kLanes + lane) * 4 + column % 4;
          total += code;
          bytes[place] = static_cast<uint8_t>(kPlanes == 2 ? code >> 8 : code);
          if constexpr (kPlanes == 2) low[place] = static_cast<uint8_t>(code);
        }
      }
      scales_of(tile, layout)[g * kLanes + lane] = poison == 0 ? top / kTop : NAN;
      // Where keys are multiplied as unsigned numbers, 128 times the query is too much.
      starts_of(tile, layout)[g * kLanes + lane] = V::kBiased ? -128 * total : 0;
    }
  }

  template <int N>
  static void scores(int32_t* query, const LatentLayout& layout, const uint8_t* keys, size_t stride,
                     const float* key_scales, float* out) {
    F sum[N];
    for (int n = 0; n < N; ++n) sum[n] = V::zero();
    for (int g = 0; g < layout.groups_all; ++g) {
      const I begin = V::load_int(starts_of(query, layout) + g * kLanes);
      I acc[N];
      for (int n = 0; n < N; ++n) acc[n] = begin;
      const int last = layout.group_end(g) / 4;
      for (int w = layout.group_start(g) / 4; w < last; ++w) {
        const I q = V::load_int(query + static_cast<size_t>(w) * kLanes);
        for (int n = 0; n < N; ++n) acc[n] = V::dot_query(acc[n], q, keys + n * stride + 4 * w);
      }
      const F by = V::load(scales_of(query, layout) + g * kLanes);
      for (int n = 0; n < N; ++n) {
        const F both = V::mul(by, V::set(key_scales[n * layout.groups_all + g]));
        sum[n] = V::fma(V::to_float(acc[n]), both, sum[n]);
      }
    }
    for (int n = 0; n < N; ++n) V::store(out + n * kLanes, sum[n]);
  }

  // Adds `count` <= 64 keys, as Flash::block does. keys: 8-bit codes with 128 added, `stride` apart;
  // key_scales [count][groups].
  static void block(int32_t* query, const LatentLayout& layout, const uint8_t* keys, size_t stride,
                    const float* key_scales, int first, int count, const QueryTile& tile, float scale,
                    float* scratch) {
    float* s = scratch;
    int n = 0;
    constexpr int kKeys = V::kFloatTile >= 8 ? 8 : 4;
    for (; n + kKeys <= count; n += kKeys) {
      scores<kKeys>(query, layout, keys + n * stride, stride, key_scales + n * layout.groups_all, s + n * kLanes);
    }
    for (; n < count; ++n) {
      scores<1>(query, layout, keys + n * stride, stride, key_scales + n * layout.groups_all, s + n * kLanes);
    }
    alignas(64) float factors[kLanes];
    soften<V>(s, first, count, tile.limits, tile.smallest_limit, scale, tile.state, factors);
    float* weighted = s + kPage * kLanes;
    int32_t* quads = reinterpret_cast<int32_t*>(weighted + kPage * kLanes);  // [count/4][16]
    for (int g = 0; g < layout.groups_latent; ++g) {
      alignas(64) float steps[kLanes];
      round_weights(s, key_scales + g, layout.groups_all, count, weighted, quads, steps);
      mix(quads, keys, stride, layout.group_start(g), layout.group_end(g), layout.codes_latent, count, tile.rows,
          factors, steps, tile.state.o);
    }
  }

 private:
  // p[n] times each key's scale, as unsigned bytes of four keys to a word, and the step of each row.
  static void round_weights(const float* p, const float* key_scales, int groups, int count, float* weighted,
                            int32_t* quads, float* steps) {
    F top = V::zero();
    for (int n = 0; n < count; ++n) {
      // A key that is not finite has spoilt the sums of the rows that see it; others weigh it 0.
      const float own = key_scales[n * groups];
      const F x = V::mul(V::load(p + n * kLanes), V::set(own == own ? own : 0.0f));
      V::store(weighted + n * kLanes, x);
      top = V::max(x, top);
    }
    constexpr float kLevels = V::kBiased ? 255.0f : 127.0f;
    const F step = V::mul(top, V::set(1.0f / kLevels));
    V::store(steps, step);
    // All weights of a row may be 0; the smallest step keeps its quotient finite.
    const F inverse = V::div(V::set(1.0f), V::max(step, V::set(1e-37f)));
    for (int n = 0; n < count; n += 4) {
      I four[4];
      for (int k = 0; k < 4; ++k) {
        four[k] = n + k < count ? V::round_int(V::mul(V::load(weighted + (n + k) * kLanes), inverse)) : V::zero_int();
      }
      V::store_int(quads + n / 4 * kLanes, V::join_bytes(four[0], four[1], four[2], four[3]));
    }
  }

  // o[r][c] = o[r][c] factor[r] + step[r] sum over keys, for columns [first, last).
  static void mix(const int32_t* quads, const uint8_t* keys, size_t stride, int first, int last, int width,
                  int count, int rows, const float* factors, const float* steps, float* o) {
    const int fours = (count + 3) / 4;
    alignas(64) int32_t values[kPage / 4][4 * kLanes];
    for (int c = first; c < last; c += 64) {
      for (int t = 0; t < fours; ++t) {
        const uint8_t* row[4];
        // Behind the end any number will do: its weight is 0.
        for (int k = 0; k < 4; ++k) row[k] = keys + smaller(4 * t + k, count - 1) * stride + c;
        I columns[4];
        V::interleave_bytes(row, columns);
        for (int k = 0; k < 4; ++k) V::store_int(values[t] + k * kLanes, columns[k]);
      }
      for (int part = 0; part < 4; part += kWide) {
        mix_part(quads, values[0], fours, part, rows, factors, steps, o + c, width);
      }
    }
  }

  static void mix_part(const int32_t* quads, const int32_t* values, int fours, int part, int rows,
                       const float* factors, const float* steps, float* o, int width) {
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      I acc[kRows][kWide];
      for (int r = 0; r < kRows; ++r) {
        for (int k = 0; k < kWide; ++k) acc[r][k] = V::zero_int();
      }
      for (int t = 0; t < fours; ++t) {
        I column[kWide];
        for (int k = 0; k < kWide; ++k) column[k] = V::load_int(values + (t * 4 + part + k) * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const int32_t* weight = quads + t * kLanes + r0 + r;
          for (int k = 0; k < kWide; ++k) acc[r][k] = V::dot_values(acc[r][k], column[k], weight);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        const F factor = V::set(factors[r0 + r]), step = V::set(steps[r0 + r]);
        float* out = o + static_cast<size_t>(r0 + r) * width + part * kLanes;
        for (int k = 0; k < kWide; ++k) add(acc[r][k], step, factor, out + k * kLanes);
      }
    }
  }

  static void add(I sum, F step, F factor, float* out) {
    V::store(out, V::fma(V::to_float(sum), step, V::mul(V::load(out), factor)));
  }
};

}  // namespace
}  // namespace dsv2
