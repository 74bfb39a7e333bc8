// AVX2 with FMA: two 256-bit halves per vector of 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "codebook.h"

namespace dsv2 {

// Half of a vector: what products of bytes are made of.
struct Avx2Half {
  static constexpr int kPartLanes = 8;
  using F = __m256;
  using I = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F fma(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
  static I zero_int() { return _mm256_setzero_si256(); }
  static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static I add_int(I x, I y) { return _mm256_add_epi32(x, y); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static F load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static I load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I codebook() {
    return _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(kCodebookRaised)));
  }
  static I low_nibbles(I codes, I book) {
    return _mm256_shuffle_epi8(book, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
  }
  static I high_nibbles(I codes, I book) { return low_nibbles(_mm256_srli_epi16(codes, 4), book); }
  static I dot_bytes(I acc, I weights, const int32_t* x) {
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights),
                                         _mm256_sign_epi8(_mm256_set1_epi32(*x), weights));
    return added(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static I dot_levels(I acc, I low, I high, const int32_t* x_low, const int32_t* x_high) {
    const I pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_set1_epi32(*x_low)),
                                     _mm256_maddubs_epi16(high, _mm256_set1_epi32(*x_high)));
    return added(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // Here and now: a compiler that may put sums off keeps all their terms, more than fit registers.
  static I added(I x, I y) {
    I sum = _mm256_add_epi32(x, y);
    asm("" : "+x"(sum));
    return sum;
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
};

struct Avx2 {
  static constexpr bool kBf16 = false;
  static constexpr bool kBiased = false;  // vpmaddubsw saturates on unsigned weights above 127
  static constexpr int kTile = 8;
  static constexpr int kFloatTile = 4;
  static constexpr int kStreamed = 2;
  static constexpr int kPaired = 2;
  static constexpr int kChained = 5;
  using Part = Avx2Half;
  static constexpr bool kMatrixUnit = false;
  static void leave() {}

  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static float sum(F x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_add_ps(x.a, x.b));
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
           ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
  static float largest(F x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_max_ps(x.a, x.b));
    float best = lanes[0];
    for (int i = 1; i < 8; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }

  static I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I load_int(const void* p) {
    const __m256i* v = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  }
  static void store_int(void* p, I x) {
    __m256i* v = static_cast<__m256i*>(p);
    _mm256_storeu_si256(v, x.a);
    _mm256_storeu_si256(v + 1, x.b);
  }
  static I add_int(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static int32_t sum_int(I x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(x.a, x.b));
    int32_t total = 0;
    for (int32_t lane : lanes) total += lane;
    return total;
  }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static I round_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
  static F power_of_two(F n) {
    const I e = round_int(n);
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.a, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.b, bias), 23))};
  }
  static F visible(F x, int32_t key, I limit) {
    const __m256i k = _mm256_set1_epi32(key);
    const __m256 hidden = _mm256_set1_ps(-__builtin_inff());
    return {_mm256_blendv_ps(hidden, x.a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit.a, k))),
            _mm256_blendv_ps(hidden, x.b, _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit.b, k)))};
  }

  static F add_above(F x, F t, F limit, F more) {
    return {_mm256_add_ps(x.a, _mm256_and_ps(more.a, _mm256_cmp_ps(t.a, limit.a, _CMP_GT_OQ))),
            _mm256_add_ps(x.b, _mm256_and_ps(more.b, _mm256_cmp_ps(t.b, limit.b, _CMP_GT_OQ)))};
  }

  static F load_int8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  static void store_int8(int8_t* p, I x) {
    alignas(32) int32_t lanes[kLanes];
    store_int(lanes, x);
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(lanes[i]);
  }
  static F load_bf16(const uint16_t* p) {
    const __m128i* v = reinterpret_cast<const __m128i*>(p);
    return {_mm256_castsi256_ps(
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v)), 16)),
            _mm256_castsi256_ps(
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v + 1)), 16))};
  }
  static void store_bf16(uint16_t* p, F x) {
    alignas(32) float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(lanes[i]);
  }

  static I dot_bytes(I acc, I weights, const int32_t* x) {
    return {Part::dot_bytes(acc.a, weights.a, x), Part::dot_bytes(acc.b, weights.b, x)};
  }

  static F dot_bf16(F acc, I, const int32_t*) { return acc; }
  static I pair_bf16(F, F) { return zero_int(); }
  static void interleave_bf16(const uint16_t*, const uint16_t*, I&, I&) {}
  static F even_bf16(I x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
  }
  static F odd_bf16(I x) {
    const __m256i mask = _mm256_set1_epi32(~0xffff);
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)),
            _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
  }

  // acc + 4 signed bytes of each lane of q times the 4 of a key, which has 128 added.
  static I dot_query(I acc, I q, const uint8_t* key) {
    int32_t word;
    __builtin_memcpy(&word, key, 4);
    // Signed again after it is spread: one instruction, and the word comes from memory as it is.
    const __m256i other = _mm256_xor_si256(_mm256_set1_epi32(word), _mm256_set1_epi8(-128));
    const __m256i ones = _mm256_set1_epi16(1);
    const auto dot = [&](__m256i sum, __m256i own) {
      return Part::added(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(own),
                                                                     _mm256_sign_epi8(other, own)), ones));
    };
    return {dot(acc.a, q.a), dot(acc.b, q.b)};
  }
  // acc + 4 signed bytes of each lane times 4 weights of at most 127, the same for each lane.
  static I dot_values(I acc, I values, const int32_t* weights) {
    const __m256i w = _mm256_set1_epi32(*weights), ones = _mm256_set1_epi16(1);
    return {Part::added(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w, values.a), ones)),
            Part::added(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w, values.b), ones))};
  }
  // The low bytes of four vectors of lanes as bytes 0 to 3.
  static I join_bytes(I a, I b, I c, I d) {
    const auto join = [](__m256i p, __m256i q, __m256i r, __m256i s) {
      return _mm256_or_si256(_mm256_or_si256(p, _mm256_slli_epi32(q, 8)),
                             _mm256_or_si256(_mm256_slli_epi32(r, 16), _mm256_slli_epi32(s, 24)));
    };
    return {join(a.a, b.a, c.a, d.a), join(a.b, b.b, c.b, d.b)};
  }
  // 64 columns of four rows of biased codes: lane i of columns[k] has column 16k + i of each row, signed.
  static void interleave_bytes(const uint8_t* const* rows, I* columns) {
    const __m128i bias = _mm_set1_epi8(static_cast<char>(0x80));
    for (int k = 0; k < 4; ++k) {
      __m128i r[4];
      for (int i = 0; i < 4; ++i) {
        r[i] = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + 16 * k)), bias);
      }
      const __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
      const __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
      columns[k] = {_mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23)),
                    _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23))};
    }
  }
  static void prefetch(const void* p) { Part::prefetch(p); }
};

}  // namespace dsv2
