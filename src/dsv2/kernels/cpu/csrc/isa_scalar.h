// Plain C++: what the other instruction sets compute, for any machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codebook.h"

namespace dsv2 {

struct Scalar {
  static constexpr bool kBf16 = false;
  static constexpr bool kBiased = false;
  static constexpr int kTile = 4;
  static constexpr int kFloatTile = 4;
  static constexpr int kStreamed = 2;
  static constexpr int kPaired = 2;
  static constexpr int kChained = 5;
  static constexpr int kPartLanes = 16;
  static constexpr bool kMatrixUnit = false;  // has products of tiles: isa_amx.h
  static void leave() {}                      // gives such a unit back
  using Part = Scalar;

  struct F {
    float v[kLanes];
  };
  struct I {
    int32_t v[kLanes];
  };

  template <class Op>
  static F map(const Op& op) {
    F out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = op(i);
    return out;
  }
  template <class Op>
  static I map_int(const Op& op) {
    I out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = op(i);
    return out;
  }

  static F zero() { return set(0); }
  static F set(float x) { return map([&](int) { return x; }); }
  static F load(const float* p) { return map([&](int i) { return p[i]; }); }
  static void store(float* p, const F& x) { std::memcpy(p, x.v, sizeof x.v); }
  static F add(const F& a, const F& b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
  static F sub(const F& a, const F& b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
  static F mul(const F& a, const F& b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
  static F div(const F& a, const F& b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
  // A NaN in b wins, as in the vector instructions.
  static F max(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(const F& a, const F& b) {
    return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F abs(const F& a) { return map([&](int i) { return std::fabs(a.v[i]); }); }
  static float sum(const F& a) {
    float total = 0;
    for (float lane : a.v) total += lane;
    return total;
  }
  static float largest(const F& a) {
    float best = a.v[0];
    for (float lane : a.v) best = lane > best ? lane : best;
    return best;
  }

  static I zero_int() { return set_int(0); }
  static I set_int(int32_t x) { return map_int([&](int) { return x; }); }
  static I load_int(const void* p) {
    I out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
  }
  static void store_int(void* p, const I& x) { std::memcpy(p, x.v, sizeof x.v); }
  static I add_int(const I& a, const I& b) {
    return map_int([&](int i) { return a.v[i] + b.v[i]; });
  }
  static int32_t sum_int(const I& a) {
    int32_t total = 0;
    for (int32_t lane : a.v) total += lane;
    return total;
  }
  static F to_float(const I& a) { return map([&](int i) { return static_cast<float>(a.v[i]); }); }
  static I round_int(const F& a) {
    // What the vector instructions yield for a NaN or a number beyond 32 bits.
    return map_int([&](int i) {
      return std::fabs(a.v[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(a.v[i]))
                                               : INT32_MIN;
    });
  }
  static F power_of_two(const F& n) {
    return map([&](int i) {
      return std::isfinite(n.v[i]) ? std::ldexp(1.0f, static_cast<int>(n.v[i])) : n.v[i];
    });
  }
  static F visible(const F& x, int32_t key, const I& limit) {
    return map([&](int i) { return key < limit.v[i] ? x.v[i] : -__builtin_inff(); });
  }

  static F add_above(const F& x, const F& t, const F& limit, const F& more) {
    return map([&](int i) { return t.v[i] > limit.v[i] ? x.v[i] + more.v[i] : x.v[i]; });
  }

  static F load_int8(const int8_t* p) { return map([&](int i) { return float(p[i]); }); }
  static void store_int8(int8_t* p, const I& x) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(x.v[i]);
  }
  static F load_bf16(const uint16_t* p) { return map([&](int i) { return from_bf16(p[i]); }); }
  static void store_bf16(uint16_t* p, const F& x) {
    for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(x.v[i]);
  }

  // Here a vector of bytes is 64 int8 in 16 words.
  static I dot_bytes(const I& acc, const I& weights, const int32_t* x) {
    int8_t w[64], other[4];
    std::memcpy(w, weights.v, 64);
    std::memcpy(other, x, 4);
    return map_int([&](int i) {
      return acc.v[i] + w[4 * i] * other[0] + w[4 * i + 1] * other[1] + w[4 * i + 2] * other[2] +
             w[4 * i + 3] * other[3];
    });
  }
  static I load_bytes(const uint8_t* p) { return load_int(p); }
  static I dot_levels(const I& acc, const I& low, const I& high, const int32_t* x_low,
                      const int32_t* x_high) {
    return dot_bytes(dot_bytes(acc, low, x_low), high, x_high);
  }
  static I codebook() { return zero_int(); }
  static I low_nibbles(const I& codes, const I&) { return look_up(codes, 0); }
  static I high_nibbles(const I& codes, const I&) { return look_up(codes, 4); }

  static F dot_bf16(const F& acc, const I&, const int32_t*) { return acc; }
  static I pair_bf16(const F&, const F&) { return zero_int(); }
  static void interleave_bf16(const uint16_t*, const uint16_t*, I&, I&) {}
  static F even_bf16(const I& x) { return map([&](int i) { return bits(uint32_t(x.v[i]) << 16); }); }
  static F odd_bf16(const I& x) {
    return map([&](int i) { return bits(uint32_t(x.v[i]) & ~0xffffu); });
  }

  // acc + 4 signed bytes of each lane of q times the 4 of a key, which has 128 added.
  static I dot_query(const I& acc, const I& q, const uint8_t* key) {
    int8_t word[4];
    for (int i = 0; i < 4; ++i) word[i] = static_cast<int8_t>(key[i] - 128);
    int32_t packed;
    std::memcpy(&packed, word, 4);
    return dot_bytes(acc, q, &packed);
  }
  // acc + 4 signed bytes of each lane times 4 weights of at most 127, the same for each lane.
  static I dot_values(const I& acc, const I& values, const int32_t* weights) {
    return dot_bytes(acc, values, weights);
  }
  // The low bytes of four vectors of lanes as bytes 0 to 3.
  static I join_bytes(const I& a, const I& b, const I& c, const I& d) {
    return map_int([&](int i) {
      return static_cast<int32_t>((a.v[i] & 255u) | (b.v[i] & 255u) << 8 | (c.v[i] & 255u) << 16 |
                                  (d.v[i] & 255u) << 24);
    });
  }
  // 64 columns of four rows of biased codes: lane i of columns[k] has column 16k + i of each row, signed.
  static void interleave_bytes(const uint8_t* const* rows, I* columns) {
    for (int k = 0; k < 4; ++k) {
      int8_t out[64];
      for (int i = 0; i < 64; ++i) out[i] = static_cast<int8_t>(rows[i % 4][16 * k + i / 4] - 128);
      columns[k] = load_int(out);
    }
  }
  static void prefetch(const void*) {}

 private:
  static float bits(uint32_t x) {
    float out;
    std::memcpy(&out, &x, 4);
    return out;
  }
  static I look_up(const I& codes, int shift) {
    uint8_t in[64];
    int8_t out[64];
    std::memcpy(in, codes.v, 64);
    for (int i = 0; i < 64; ++i) out[i] = kCodebookRaised[(in[i] >> shift) & 15];
    return load_int(out);
  }
};

}  // namespace dsv2
