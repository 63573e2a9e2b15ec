// The span kernels with AVX2, FMA and F16C.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <cstring>

#include "../rounding.h"
#include "span.h"

// This stands after the headers, so that none of their functions needs this instruction set.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "span_simd.h"

namespace fedspzo {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Int = __m256i;
  using Float = __m256;

  static Int set64(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
  static Int set32(uint32_t x) { return _mm256_set1_epi32(int32_t(x)); }
  static Float set_float(float x) { return _mm256_set1_ps(x); }
  static Int multiply(Int a, Int b) { return _mm256_mul_epu32(a, b); }
  static Int high(Int a) { return _mm256_srli_epi64(a, 32); }
  // Returns the low words of `a` and `b` in the lower and upper halves of each lane.
  static Int pair(Int a, Int b) {
    return _mm256_blend_epi32(a, _mm256_shuffle_epi32(b, 0xA0), 0xAA);
  }
  static Int exclusive_or(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int exclusive_or3(Int a, Int b, Int c) { return exclusive_or(exclusive_or(a, b), c); }
  static Int inclusive_or(Int a, Int b) { return _mm256_or_si256(a, b); }

  static Int counters(uint32_t first) {
    return _mm256_add_epi64(set64(first), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  // Returns counters in the order that gives consecutive elements after interleaving within 128-bit
  // lanes.
  static Int interleaved_counters(uint32_t first) {
    return _mm256_add_epi64(set64(first), _mm256_setr_epi64x(0, 2, 1, 3));
  }
  static Int interleave_low(Int a, Int b) { return _mm256_unpacklo_epi64(a, b); }
  static Int interleave_high(Int a, Int b) { return _mm256_unpackhi_epi64(a, b); }

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static void store(uint32_t* p, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static Float load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_float16(uint16_t* p, Float a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void load_even_odd(const uint16_t* p, Float (&values)[2]) {
    const Int both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    values[0] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    values[1] = _mm256_castsi256_ps(_mm256_and_si256(both, set32(0xFFFF0000u)));
  }
  static void store_even_odd(uint16_t* p, const Float (&values)[2]) {
    const Int even = nearest_bfloat16(values[0]), odd = nearest_bfloat16(values[1]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA));
  }
  // Returns the bfloat16 in the upper half of each lane; the lower half may hold anything. A NaN
  // stays NaN: it comes from a bfloat16, so its lower half is zero and nothing carries.
  static Int nearest_bfloat16(Float a) {
    const Int bits = _mm256_castps_si256(a);
    const Int odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), set32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, set32(0x7FFFu)), odd);
  }
  // Returns bit 2 * i of `bits` as the sign of lane i.
  static Float even_bits_to_signs(uint32_t bits) {
    const Int shifts = _mm256_setr_epi32(31, 29, 27, 25, 23, 21, 19, 17);
    return _mm256_castsi256_ps(_mm256_sllv_epi32(set32(bits), shifts));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Float absolute(Float a) {
    return _mm256_and_ps(a, _mm256_castsi256_ps(set32(0x7FFFFFFFu)));
  }
  static Float fused(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float flip_sign(Float a, Float sign) {
    return _mm256_xor_ps(a, _mm256_and_ps(sign, _mm256_castsi256_ps(set32(0x80000000u))));
  }

  struct Cubics {
    Float c0, c1, c2, c3;
  };

  // Loads eight whole rows and transposes them, in place of four gathers.
  struct Table {
    void look_up(const Float (&t)[2], Cubics (&cubics)[2]) const {
      cubics[0] = cubic(t[0]);
      cubics[1] = cubic(t[1]);
    }

   private:
    static Cubics cubic(Float t) {
      alignas(32) uint32_t row[kLanes];
      store(row, _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(t), kTableShift),
                                  set32(kTableRows - 1)));
      const Float r04 = rows(row[0], row[4]), r15 = rows(row[1], row[5]);
      const Float r26 = rows(row[2], row[6]), r37 = rows(row[3], row[7]);
      const Float a = _mm256_unpacklo_ps(r04, r15), b = _mm256_unpackhi_ps(r04, r15);
      const Float c = _mm256_unpacklo_ps(r26, r37), d = _mm256_unpackhi_ps(r26, r37);
      return {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xEE),
              _mm256_shuffle_ps(b, d, 0x44), _mm256_shuffle_ps(b, d, 0xEE)};
    }

    static Float rows(uint32_t low, uint32_t high) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(&kTable[low].c0)),
                                  _mm_load_ps(&kTable[high].c0), 1);
    }
  };
};

}  // namespace

const SpanKernels* avx2_kernels() {
  static const SpanKernels kernels = simd_kernels<Avx2>("avx2");
  const bool there = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("f16c");
  return there ? &kernels : nullptr;
}

}  // namespace fedspzo
#pragma GCC pop_options

#else
#include "span.h"

const fedspzo::SpanKernels* fedspzo::avx2_kernels() { return nullptr; }
#endif
