// AVX-512 with BF16, and AMX: a matrix unit that multiplies tiles of up to 16 rows of 64 bytes.
//
// Tiles 0 to 3 are sums, 4 and 5 what is multiplied from the left, such as activations, 6 and 7 what is
// multiplied from the right, such as weights. A product takes 16 cycles, also of fewer rows than 16 or
// less than a whole step of 64 bytes; where both are half of it or less, half the time.
#pragma once

#include <cstdint>

#include "isa_avx512.h"

namespace dsv2 {
namespace {

// What the tiles of a thread are set up for.
struct TileShape {
  int rows = 0;   // of sums and of activations
  int words = 0;  // of 4 bytes in a row of activations: as many rows as weights have
  bool operator==(const TileShape&) const = default;
};

struct Amx : Avx512<true> {
  static constexpr bool kMatrixUnit = true;
  // Tokens from which on the unit is faster: a group of int8 is half a step of it.
  static constexpr int fewest(Format format) { return format == Format::kInt8 ? 8 : 6; }
  static constexpr int kByteTokens = 64;  // levels are unpacked once for so many
  static constexpr int kHalfTokens = 32;
  using Part = Avx512<true>;

  // Sets up this thread's tiles and zeroes them, unless they have this shape.
  static void shape(TileShape wanted) {
    if (current() == wanted) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_activation = tile == 4 || tile == 5, is_weight = tile > 5;
      config.rows[tile] = static_cast<uint8_t>(is_weight ? wanted.words : wanted.rows);
      config.row_bytes[tile] = static_cast<uint16_t>(is_activation ? 4 * wanted.words : 64);
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
    current() = wanted;
  }
  // Gives the unit back: others of this thread may set it up for themselves, and an idle thread's
  // tiles need not be saved.
  static void leave() {
    if (current() == TileShape{}) return;
    asm volatile("tilerelease");
    current() = {};
  }

  // Spelt out, since the compiler's own do not take a tile's number from a template, and the loads
  // of some do not say that they read memory.
  template <int tile>
  static void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  template <int tile>
  static void tile_load(const void* start, size_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(tile), "r"(start), "r"(stride) : "memory");
  }
  template <int tile>
  static void tile_store(void* start, size_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(tile), "r"(start), "r"(stride) : "memory");
  }
  // Tile sum[m][n] += the products of a[m] and b's column n: pairs of bf16, or fours of bytes.
  template <int sum, int a, int b>
  static void dot_halves() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
  }
  template <int sum, int a, int b, bool signed_a, bool signed_b>
  static void dot_byte_tiles() {
    if constexpr (signed_a && signed_b) {
      asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
    } else if constexpr (signed_a) {
      asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
    } else if constexpr (signed_b) {
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
    } else {
      asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
    }
  }

  // 64 bytes of 4-bit codes to the 4 columns of the low and the 4 of the high nibbles, signed.
  static I levels() {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodebook)));
  }

  // 2^x with a relative error below 1.1e-4, exactly 1 for 0: for weights that are rounded to bf16.
  static F rough_power(F x) {
    const F rest = _mm512_reduce_ps(x, 0);  // of the nearest integer
    F p = _mm512_fmadd_ps(rest, set(0.05500823f), set(0.24220946f));
    p = _mm512_fmadd_ps(p, rest, set(0.69328284f));
    p = _mm512_fmadd_ps(p, rest, set(1.0f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, rest));
  }
  // The first `count` lanes of x, then those of other.
  static F first_lanes(F x, int count, F other) {
    const unsigned mask = count >= 16 ? 0xffffu : count <= 0 ? 0u : (1u << count) - 1;
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(mask), x);
  }
  // x, 0 where it is NaN.
  static F finite(F x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x); }
  // Lanes of a where above > limit, else of b.
  static F above(F x, F limit, F a, F b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ), a);
  }
  // 32 numbers as bf16, rounded to nearest even.
  static I halves(F first, F second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
  // Lane r: of the 16 lanes of rows[r] the largest, or the sum.
  static F largest_of_rows(const F* rows) {
    return join_rows(rows, [](F a, F b) { return _mm512_max_ps(a, b); });
  }
  static F sums_of_rows(const F* rows) {
    return join_rows(rows, [](F a, F b) { return _mm512_add_ps(a, b); });
  }

  // Lane i of vector k becomes lane k of vector i.
  static void transpose(I* rows) {
    I even[16];
    for (int i = 0; i < 16; i += 2) {
      even[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
      even[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      rows[i] = _mm512_unpacklo_epi64(even[i], even[i + 2]);
      rows[i + 1] = _mm512_unpackhi_epi64(even[i], even[i + 2]);
      rows[i + 2] = _mm512_unpacklo_epi64(even[i + 1], even[i + 3]);
      rows[i + 3] = _mm512_unpackhi_epi64(even[i + 1], even[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      even[i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
      even[4 + i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xdd);
      even[8 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
      even[12 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm512_shuffle_i32x4(even[i], even[8 + i], 0x88);
      rows[4 + i] = _mm512_shuffle_i32x4(even[4 + i], even[12 + i], 0x88);
      rows[8 + i] = _mm512_shuffle_i32x4(even[i], even[8 + i], 0xdd);
      rows[12 + i] = _mm512_shuffle_i32x4(even[4 + i], even[12 + i], 0xdd);
    }
  }

  // Lanes below 2^16 as the low and the high halves of words.
  static I join_shorts(I low, I high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }
  // The high and the low bytes of 32 numbers.
  static void store_bytes(I shorts, void* high, void* low) {
    _mm256_storeu_si256(static_cast<__m256i*>(high), _mm512_cvtepi16_epi8(_mm512_srli_epi16(shorts, 8)));
    _mm256_storeu_si256(static_cast<__m256i*>(low), _mm512_cvtepi16_epi8(shorts));
  }
  // 256 high + low.
  static I add_bytes(I high, I low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }

  static void prefetch_near(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

 private:
  template <class Join>
  static F join_rows(const F* rows, Join join) {
    F a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) {
      a[i] = join(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
      b[i] = join(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const auto quarters = [&](F x, F y) {
      return join(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    for (int i = 0; i < 2; ++i) c[i] = quarters(b[2 * i], b[2 * i + 1]);
    return quarters(c[0], c[1]);
  }

  static TileShape& current() {
    static thread_local TileShape shape;
    return shape;
  }
};

}  // namespace
}  // namespace dsv2
