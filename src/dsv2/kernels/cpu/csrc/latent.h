// Tokens of the latent cache in and out; kernels/latent.py says what the formats mean.
#pragma once

#include <cmath>
#include <cstring>

#include "elementwise.h"
#include "types.h"

namespace dsv2 {
namespace {

constexpr int kLatentGroup = 128;  // columns that share a scale
constexpr int kLatentPack = 64;    // codes are padded to whole packs: 48 bytes of 6-bit codes
constexpr int kScaleOne = 176;     // the scale byte of 1; 8 steps double it
constexpr int kNotFinite = 255;

inline int padded_codes(int width) { return (width + kLatentPack - 1) / kLatentPack * kLatentPack; }
inline int latent_groups(int width) { return (width + kLatentGroup - 1) / kLatentGroup; }
inline bool has_codes(Format format) { return format == Format::kInt8 || format == Format::kInt6; }

// Where the codes and scales of a token lie.
struct LatentLayout {
  int latent, rope;            // C and R
  int codes_latent, codes_all; // padded: of the latent, and of both
  int groups_latent, groups_all;

  LatentLayout(int latent, int rope)
      : latent(latent), rope(rope), codes_latent(padded_codes(latent)),
        codes_all(codes_latent + padded_codes(rope)), groups_latent(latent_groups(latent)),
        groups_all(groups_latent + latent_groups(rope)) {}

  size_t code_bytes(Format format) const {
    return format == Format::kInt6 ? static_cast<size_t>(codes_all) * 3 / 4 : codes_all;
  }
  // First code of a group, and how many real columns it has.
  int group_start(int group) const {
    return group < groups_latent ? group * kLatentGroup : codes_latent + (group - groups_latent) * kLatentGroup;
  }
  int group_end(int group) const {
    const int end = group < groups_latent ? codes_latent : codes_all;
    return smaller(group_start(group) + kLatentGroup, end);
  }
  // A group's first column among the C + R of a token, and how many columns it has.
  int column(int group) const {
    return group < groups_latent ? group * kLatentGroup : latent + (group - groups_latent) * kLatentGroup;
  }
  int columns(int group) const {
    return smaller(kLatentGroup, (group < groups_latent ? latent : latent + rope) - column(group));
  }
};

// The scale of each byte.
struct LatentScales {
  float of[256];
  LatentScales() {
    of[0] = 0;
    for (int code = 1; code < kNotFinite; ++code) of[code] = static_cast<float>(std::exp2((code - kScaleOne) / 8.0));
    of[kNotFinite] = NAN;
  }
};
inline const LatentScales& latent_scales() {
  static const LatentScales scales;
  return scales;
}

// The least scale byte whose `top`-fold reaches `largest`; kNotFinite beyond the last.
inline int scale_byte(float largest, int top) {
  const float* scales = latent_scales().of;
  if (!(largest > 0)) return largest == 0 ? 0 : kNotFinite;
  if (largest > scales[kNotFinite - 1] * static_cast<float>(top)) return kNotFinite;
  int code = static_cast<int>(std::ceil(8.0f * std::log2(largest / static_cast<float>(top)))) + kScaleOne;
  code = code < 1 ? 1 : smaller(code, kNotFinite - 1);
  while (code > 1 && scales[code - 1] * static_cast<float>(top) >= largest) --code;
  while (scales[code] * static_cast<float>(top) < largest) ++code;
  return code;
}

// Codes of x[count], count at most a group, `padded` of them; returns the scale byte.
template <class V>
int encode_group(const float* x, int count, int padded, int bits, uint8_t* codes) {
  const int top = (1 << (bits - 1)) - 1, middle = top + 1;
  float wide[kLatentGroup] = {};
  std::memcpy(wide, x, sizeof(float) * count);
  typename V::F most = V::zero(), check = V::zero();
  for (int i = 0; i < padded; i += kLanes) {
    const typename V::F v = V::load(wide + i);
    most = V::max(V::abs(v), most);
    check = V::fma(v, V::zero(), check);
  }
  const int byte = V::sum(check) == 0 ? scale_byte(V::largest(most), top) : kNotFinite;
  const float scale = latent_scales().of[byte];
  if (byte == 0 || byte == kNotFinite) {
    std::memset(codes, middle, padded);
    return byte;
  }
  const typename V::F inverse = V::set(1.0f / scale), high = V::set(static_cast<float>(top));
  const typename V::F low = V::set(-static_cast<float>(top));
  alignas(64) int32_t steps[kLanes];
  for (int i = 0; i < padded; i += kLanes) {
    V::store_int(steps, V::round_int(V::max(low, V::min(high, V::mul(V::load(wide + i), inverse)))));
    for (int lane = 0; lane < kLanes; ++lane) codes[i + lane] = static_cast<uint8_t>(steps[lane] + middle);
  }
  return byte;
}

inline void pack_six(const uint8_t* codes, int count, uint8_t* out) {
  for (int start = 0; start < count; start += kLatentPack, codes += kLatentPack, out += 48) {
    for (int k = 0; k < 16; ++k) {
      const uint8_t last = codes[48 + k];
      out[k] = static_cast<uint8_t>(codes[k] | (last & 3) << 6);
      out[16 + k] = static_cast<uint8_t>(codes[16 + k] | (last >> 2 & 3) << 6);
      out[32 + k] = static_cast<uint8_t>(codes[32 + k] | last >> 4 << 6);
    }
  }
}

// 6-bit codes as 8-bit ones: 128 added instead of 32.
template <class V>
void unpack_six(const uint8_t* in, int count, uint8_t* codes) {
  constexpr uint8_t kMore = 128 - 32;
  for (int start = 0; start < count; start += kLatentPack, codes += kLatentPack, in += 48) {
    if constexpr (requires { V::unpack_six(in, kMore, codes); }) {
      V::unpack_six(in, kMore, codes);
    } else {
      for (int k = 0; k < 48; ++k) codes[k] = static_cast<uint8_t>((in[k] & 63) + kMore);
      for (int k = 0; k < 16; ++k) {
        codes[48 + k] = static_cast<uint8_t>((in[k] >> 6 | in[16 + k] >> 6 << 2 | in[32 + k] >> 6 << 4) + kMore);
      }
    }
  }
}

// Writes a token's latent x[C] and rotated key behind it, x[C, C+R).
template <class V>
void store_latent(Format format, uint8_t* place, const float* x, const LatentLayout& layout) {
  if (!has_codes(format)) {
    store_row<V>(format, place, x, layout.latent + layout.rope);
    return;
  }
  uint8_t codes[4096 + 2 * kLatentPack];
  uint8_t* scales = place + layout.code_bytes(format);
  for (int g = 0; g < layout.groups_all; ++g) {
    scales[g] = static_cast<uint8_t>(encode_group<V>(
        x + layout.column(g), layout.columns(g), layout.group_end(g) - layout.group_start(g),
        format == Format::kInt8 ? 8 : 6, codes + layout.group_start(g)));
  }
  if (format == Format::kInt8) {
    std::memcpy(place, codes, layout.codes_all);
  } else {
    pack_six(codes, layout.codes_all, place);
  }
}

// visit(group, codes with 128 added, scale) of each group of a token of codes.
template <class V, class Visit>
void each_group(Format format, const uint8_t* place, const LatentLayout& layout, Visit visit) {
  uint8_t unpacked[4096 + 2 * kLatentPack];
  const uint8_t *codes = place, *scales = place + layout.code_bytes(format);
  if (format == Format::kInt6) {
    unpack_six<V>(place, layout.codes_all, unpacked);
    codes = unpacked;
  }
  for (int g = 0; g < layout.groups_all; ++g) visit(g, codes + layout.group_start(g), latent_scales().of[scales[g]]);
}

// Reads a token back as fp32 [C+R].
template <class V>
void load_latent(Format format, const uint8_t* place, float* x, const LatentLayout& layout) {
  if (!has_codes(format)) {
    load_row<V>(format, place, x, layout.latent + layout.rope);
    return;
  }
  each_group<V>(format, place, layout, [&](int g, const uint8_t* codes, float scale) {
    float* out = x + layout.column(g);
    for (int i = 0; i < layout.columns(g); ++i) out[i] = static_cast<float>(codes[i] - 128) * scale;
  });
}

}  // namespace
}  // namespace dsv2
