// AVX-512 with VNNI, and with BF16 and VBMI where kBf16 says so.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "codebook.h"

namespace dsv2 {
namespace {  // each file's own: compiled for other instructions

template <bool kHasBf16>
struct Avx512 {
  static constexpr bool kBf16 = kHasBf16;  // multiplies bf16 pairs itself
  static constexpr bool kBiased = true;    // multiplies unsigned by signed bytes
  static constexpr int kTile = 12;         // tokens multiplied per pass over a block of bytes
  static constexpr int kFloatTile = 12;    // ... of bf16 or fp32
  static constexpr int kStreamed = 5;      // up to so many tokens meet four blocks of bytes at once,
  static constexpr int kPaired = 7;        // up to so many two,
  static constexpr int kChained = 7;       // and up to so many have two chains of sums
  static constexpr int kPartLanes = 16;
  static constexpr bool kMatrixUnit = false;
  static void leave() {}
  using Part = Avx512;

  using F = __m512;   // 16 fp32
  using I = __m512i;  // 16 int32, 32 bf16 or 64 bytes

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float largest(F a) { return _mm512_reduce_max_ps(a); }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static int32_t sum_int(I a) { return _mm512_reduce_add_epi32(a); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I round_int(F a) { return _mm512_cvtps_epi32(a); }
  // 2^n for integral n in [-126, 127].
  static F power_of_two(F n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  // x where key < limit, else -inf.
  static F visible(F x, int32_t key, I limit) {
    const __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(key), limit);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), seen, x);
  }

  // x + more where t > limit.
  static F add_above(F x, F t, F limit, F more) {
    return _mm512_mask_add_ps(x, _mm512_cmp_ps_mask(t, limit, _CMP_GT_OQ), x, more);
  }

  static F load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_int8(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x));
  }
  static F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static void store_bf16(uint16_t* p, F x) {
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(
                            rounded, nan, _mm512_set1_epi32(0x7fc0))));
  }

  // acc + weights times 4 bytes of x, the same for each lane.
  static I dot_bytes(I acc, I weights, const int32_t* x) {
    return _mm512_dpbusd_epi32(acc, weights, _mm512_set1_epi32(*x));
  }
  static I load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // acc + the levels of 8 columns, as the codebook has them, times 4 and 4 bytes of x.
  static I dot_levels(I acc, I low, I high, const int32_t* x_low, const int32_t* x_high) {
    return dot_bytes(dot_bytes(acc, low, x_low), high, x_high);
  }
  // 64 bytes of 4-bit codes to the 4 columns of the low and the 4 of the high nibbles, raised.
  static I codebook() {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodebookRaised)));
  }
  // With VBMI indices are taken modulo the book's 64 bytes, four times the same 16: there is nothing
  // to cut off.
  static I low_nibbles(I codes, I book) {
#if defined(__AVX512VBMI__)
    return _mm512_permutexvar_epi8(codes, book);
#else
    return _mm512_shuffle_epi8(book, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
#endif
  }
  static I high_nibbles(I codes, I book) { return low_nibbles(_mm512_srli_epi16(codes, 4), book); }

  // acc + the two bf16 of each lane times the two of x.
  static F dot_bf16(F acc, I weights, const int32_t* x) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(*x));
#else
    static_assert(!kHasBf16 || sizeof(acc) == 0, "compiled without BF16");
    (void)weights, (void)x;
    return acc;
#endif
  }
  static F even_bf16(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static F odd_bf16(I pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
  }
  // The lanes of a and b as bf16 pairs (a low), rounded to nearest even.
  static I pair_bf16(F a, F b) {
#if defined(__AVX512BF16__)
    const I low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
    const I high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#else
    (void)b;
    return _mm512_castps_si512(a);
#endif
  }
  // 32 columns of two bf16 rows as pairs of a column each: columns 0-15, then 16-31.
  static void interleave_bf16(const uint16_t* row0, const uint16_t* row1, I& first, I& second) {
    const I a = _mm512_loadu_si512(row0), b = _mm512_loadu_si512(row1);
    alignas(64) static const uint16_t index[64] = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    first = _mm512_permutex2var_epi16(a, _mm512_load_si512(index), b);
    second = _mm512_permutex2var_epi16(a, _mm512_load_si512(index + 32), b);
  }

  // acc + 4 signed bytes of each lane of q times the 4 unsigned ones of a key.
  static I dot_query(I acc, I q, const uint8_t* key) {
    int32_t word;
    __builtin_memcpy(&word, key, 4);
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(word), q);
  }
  // acc + 4 signed bytes of each lane times 4 unsigned weights, the same for each lane.
  static I dot_values(I acc, I values, const int32_t* weights) {
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(*weights), values);
  }
  // The low bytes of four vectors of lanes as bytes 0 to 3.
  static I join_bytes(I a, I b, I c, I d) {
    return _mm512_or_si512(_mm512_or_si512(a, _mm512_slli_epi32(b, 8)),
                           _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
  }
  // 64 columns of four rows of biased codes: lane i of columns[k] has column 16k + i of each row, signed.
  static void interleave_bytes(const uint8_t* const* rows, I* columns) {
    // Each quarter of a vector takes every fourth word, so that unpacking leaves columns in order.
    const I order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const I bias = _mm512_set1_epi8(static_cast<char>(0x80));
    I r[4];
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_permutexvar_epi32(order, _mm512_xor_si512(_mm512_loadu_si512(rows[i]), bias));
    }
    const I low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
    const I low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
    columns[0] = _mm512_unpacklo_epi16(low01, low23);
    columns[1] = _mm512_unpackhi_epi16(low01, low23);
    columns[2] = _mm512_unpacklo_epi16(high01, high23);
    columns[3] = _mm512_unpackhi_epi16(high01, high23);
  }
  // 48 bytes to 64 codes, each `more` higher: six bits of every byte, then three times two of 16 bytes.
  static void unpack_six(const uint8_t* in, uint8_t more, uint8_t* codes) {
    const I bytes = _mm512_maskz_loadu_epi64(0x3f, in);
    const I low = _mm512_and_si512(bytes, _mm512_set1_epi8(63));
    const I high = _mm512_and_si512(_mm512_srli_epi16(bytes, 6), _mm512_set1_epi8(3));
    const I places = _mm512_set_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0x0002000200020002,
                                      0x0002000200020002, 0, 0);
    const I parts = _mm512_sllv_epi16(high, places);
    // Into the last quarter.
    const I first = _mm512_maskz_shuffle_i64x2(0xc0, parts, parts, 0x00);
    const I second = _mm512_maskz_shuffle_i64x2(0xc0, parts, parts, 0x55);
    const I third = _mm512_maskz_shuffle_i64x2(0xc0, parts, parts, 0xaa);
    const I all = _mm512_or_si512(_mm512_or_si512(low, first), _mm512_or_si512(second, third));
    _mm512_storeu_si512(codes, _mm512_add_epi8(all, _mm512_set1_epi8(static_cast<char>(more))));
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
};

}  // namespace
}  // namespace dsv2
