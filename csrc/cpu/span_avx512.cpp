// The span kernels with AVX-512.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <cstring>

#include "../rounding.h"
#include "span.h"

// This stands after the headers, so that none of their functions needs this instruction set.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "span_simd.h"

namespace fedspzo {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Int = __m512i;
  using Float = __m512;
  static Int set64(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
  static Int set32(uint32_t x) { return _mm512_set1_epi32(int32_t(x)); }
  static Float set_float(float x) { return _mm512_set1_ps(x); }
  static Int multiply(Int a, Int b) { return _mm512_mul_epu32(a, b); }
  // A shuffle runs on another port than the multiplications, which a shift does not.
  static Int high(Int a) { return _mm512_shuffle_epi32(a, _MM_PERM_ENUM(0xF5)); }
  // Returns the low words of `a` and `b` in the lower and upper halves of each lane.
  static Int pair(Int a, Int b) {
    return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_ENUM(0xA0));
  }
  static Int exclusive_or(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static Int exclusive_or3(Int a, Int b, Int c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static Int inclusive_or(Int a, Int b) { return _mm512_or_si512(a, b); }

  static Int counters(uint32_t first) {
    return _mm512_add_epi64(set64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // Returns counters in the order that gives consecutive elements after interleaving within 128-bit
  // lanes.
  static Int interleaved_counters(uint32_t first) {
    return _mm512_add_epi64(set64(first), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static Int interleave_low(Int a, Int b) { return _mm512_unpacklo_epi64(a, b); }
  static Int interleave_high(Int a, Int b) { return _mm512_unpackhi_epi64(a, b); }

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static void store(uint32_t* p, Int a) { _mm512_storeu_si512(p, a); }
  static Float load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_float16(uint16_t* p, Float a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void load_even_odd(const uint16_t* p, Float (&values)[2]) {
    const Int both = _mm512_loadu_si512(p);
    values[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    values[1] = _mm512_castsi512_ps(_mm512_and_si512(both, set32(0xFFFF0000u)));
  }
  static void store_even_odd(uint16_t* p, const Float (&values)[2]) {
    const Int even = nearest_bfloat16(values[0]), odd = nearest_bfloat16(values[1]);
    // moves the upper half of each even lane to the lower half of the odd one
    _mm512_storeu_si512(p, _mm512_mask_alignr_epi8(odd, 0x3333333333333333, even, even, 2));
  }
  // Returns the bfloat16 in the upper half of each lane; the lower half may hold anything. A NaN
  // stays NaN: it comes from a bfloat16, so its lower half is zero and nothing carries.
  static Int nearest_bfloat16(Float a) {
    const Int bits = _mm512_castps_si512(a);
    const Int sum = _mm512_add_epi32(bits, set32(0x7FFFu));
    return _mm512_mask_add_epi32(sum, _mm512_test_epi32_mask(bits, set32(0x10000u)), sum, set32(1));
  }
  // Returns bit 2 * i of `bits` as the sign of lane i.
  static Float even_bits_to_signs(uint32_t bits) {
    const Int shifts = _mm512_setr_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_castsi512_ps(_mm512_sllv_epi32(set32(bits), shifts));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Float absolute(Float a) { return _mm512_abs_ps(a); }
  static Float fused(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float flip_sign(Float a, Float sign) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(a), _mm512_castps_si512(sign), set32(0x80000000u), 0x78));
  }

  struct Cubics {
    Float c0, c1, c2, c3;
  };

  // Holds the 32 rows of the likeliest octaves in registers. A row is at its number mod 32, as a
  // permutation reads these bits of an index. All but one word in 65536 find their row there.
  class Table {
   public:
    Table() {
      alignas(64) float columns[4][kHotRows];
      for (uint32_t row = kFirstHot; row < kFirstHot + kHotRows; ++row) {
        const Cubic c = kTable[row];
        columns[0][row % kHotRows] = c.c0;
        columns[1][row % kHotRows] = c.c1;
        columns[2][row % kHotRows] = c.c2;
        columns[3][row % kHotRows] = c.c3;
      }
      for (int i = 0; i < 4; ++i) {
        low_[i] = load(columns[i]);
        high_[i] = load(columns[i] + kLanes);
      }
    }

    void look_up(const Float (&t)[2], Cubics (&cubics)[2]) const {
      const Int row[2] = {_mm512_srli_epi32(_mm512_castps_si512(t[0]), kTableShift),
                          _mm512_srli_epi32(_mm512_castps_si512(t[1]), kTableShift)};
      const Int first = set32(kExponentRows + kFirstHot);
      const Int beyond =
          inclusive_or(_mm512_sub_epi32(row[0], first), _mm512_sub_epi32(row[1], first));
      if (__builtin_expect(_mm512_test_epi32_mask(beyond, set32(~(kHotRows - 1))), 0)) {
        cubics[0] = rare(row[0]);
        cubics[1] = rare(row[1]);
        return;
      }
      for (int i = 0; i < 2; ++i)
        cubics[i] = {permute(0, row[i]), permute(1, row[i]), permute(2, row[i]),
                     permute(3, row[i])};
    }

   private:
    static constexpr uint32_t kHotRows = 2 * kLanes;
    static constexpr uint32_t kFirstHot = (30u << kSegmentBits) - kHotRows;
    // The exponent's upper bits add this to a row's number, which table_row masks off.
    static constexpr uint32_t kExponentRows = 128u << kSegmentBits;

    Float permute(int i, Int row) const { return _mm512_permutex2var_ps(low_[i], row, high_[i]); }

    static Cubics rare(Int row) {
      const float* table = &kTable[0].c0;
      const Int place = _mm512_slli_epi32(_mm512_and_si512(row, set32(kTableRows - 1)), 2);
      return {_mm512_i32gather_ps(place, table, 4), _mm512_i32gather_ps(place, table + 1, 4),
              _mm512_i32gather_ps(place, table + 2, 4), _mm512_i32gather_ps(place, table + 3, 4)};
    }

    Float low_[4], high_[4];
  };
};

}  // namespace

const SpanKernels* avx512_kernels() {
  static const SpanKernels kernels = simd_kernels<Avx512>("avx512");
  const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma");
  return there ? &kernels : nullptr;
}

}  // namespace fedspzo
#pragma GCC pop_options

#else
#include "span.h"

const fedspzo::SpanKernels* fedspzo::avx512_kernels() { return nullptr; }
#endif
