// The noise streams `normal-v1` and `rademacher-v1`, for the host and for CUDA. docs/noise.md has
// the contract, and fedspzo_kernels/reference.py the same in Python.
//
// The code uses only integer operations and correctly rounded IEEE float32 operations. Each fused
// multiply-add is written as one, and the compiler may not form any (-ffp-contract=off,
// -fmad=false). So all backends give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FEDSPZO_FN __host__ __device__ __forceinline__
#else
#define FEDSPZO_FN inline
#endif

namespace fedspzo {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// The bit of counter word 1 that is set for rounding bits. An element's index never reaches it.
constexpr uint32_t kRoundingDomain = 0x80000000u;

struct Words {
  uint32_t w[4];
};

// Returns the four words of `counter` in the stream of `seed`, by Philox4x32-10 (Salmon et al.,
// 2011). The counter's words are low32(counter), high32(counter) | domain, low32(key), high32(key).
FEDSPZO_FN Words philox(uint64_t counter, uint64_t key, uint64_t seed, uint32_t domain = 0) {
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32) | domain;
  uint32_t c2 = uint32_t(key), c3 = uint32_t(key >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t(kPhiloxM0) * c0, p1 = uint64_t(kPhiloxM1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// Philox for counters that share their high word, as those of one span of a tensor do. They differ
// in their low word alone, so half of the first two rounds is computed once for all of them.
struct PhiloxSpan {
  uint32_t first, second_a, second_b, third;
  uint32_t k0[kPhiloxRounds - 2], k1[kPhiloxRounds - 3];  // from round 2 and from round 3 on

  FEDSPZO_FN PhiloxSpan() {}
  FEDSPZO_FN PhiloxSpan(uint32_t counter_high, uint64_t key, uint64_t seed) {
    const uint32_t s0 = uint32_t(seed), s1 = uint32_t(seed >> 32);
    const uint64_t p1 = uint64_t(kPhiloxM1) * uint32_t(key);
    const uint64_t p0 = uint64_t(kPhiloxM0) * (uint32_t(p1 >> 32) ^ counter_high ^ s0);
    first = uint32_t(key >> 32) ^ s1;
    second_a = uint32_t(p1) ^ (s0 + kPhiloxW0);
    second_b = uint32_t(p0 >> 32) ^ (s1 + kPhiloxW1);
    third = uint32_t(p0) ^ (s1 + 2 * kPhiloxW1);
    for (int r = 2; r < kPhiloxRounds; ++r) k0[r - 2] = s0 + uint32_t(r) * kPhiloxW0;
    for (int r = 3; r < kPhiloxRounds; ++r) k1[r - 3] = s1 + uint32_t(r) * kPhiloxW1;
  }
};

FEDSPZO_FN Words philox(uint32_t counter_low, const PhiloxSpan& span) {
  uint64_t p0 = uint64_t(kPhiloxM0) * counter_low;
  uint64_t p1 = uint64_t(kPhiloxM1) * (uint32_t(p0 >> 32) ^ span.first);
  uint32_t c0 = uint32_t(p1 >> 32) ^ span.second_a, c1 = uint32_t(p1);
  uint32_t c2 = uint32_t(p0) ^ span.second_b, c3;
  p0 = uint64_t(kPhiloxM0) * c0;
  p1 = uint64_t(kPhiloxM1) * c2;
  c0 = uint32_t(p1 >> 32) ^ c1 ^ span.k0[0];
  c1 = uint32_t(p1);
  c2 = uint32_t(p0 >> 32) ^ span.third;
  c3 = uint32_t(p0);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int r = 3; r < kPhiloxRounds; ++r) {
    p0 = uint64_t(kPhiloxM0) * c0;
    p1 = uint64_t(kPhiloxM1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ span.k0[r - 2];
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ span.k1[r - 3];
    c3 = uint32_t(p0);
  }
  return {{c0, c1, c2, c3}};
}

FEDSPZO_FN uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FEDSPZO_FN float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The cubic's coefficients on one segment of |f|: z = ((c3 t + c2) t + c1) t + c0 at t = |f|.
struct alignas(16) Cubic {
  float c0, c1, c2, c3;
};

constexpr int kSegmentBits = 1;
constexpr uint32_t kTableRows = 32u << kSegmentBits;
constexpr int kTableShift = 23 - kSegmentBits;

// Returns the row of the table for f: the low five bits of its exponent and the top bits of its
// fraction.
FEDSPZO_FN uint32_t table_row(float f) { return (bits_of(f) >> kTableShift) & (kTableRows - 1); }

// Returns `normal-v1`, the standard normal value of one random word. The word is made odd and read
// as a signed integer f, which is uniform and symmetric. |f| / 2^32 is the tail probability.
FEDSPZO_FN float normal_of(uint32_t word, const Cubic* table) {
  const float f = float(int32_t(word | 1u));
  const float t = fabsf(f);
  const Cubic c = table[table_row(f)];
  const float z = fmaf(fmaf(fmaf(c.c3, t, c.c2), t, c.c1), t, c.c0);
  return float_of(bits_of(z) ^ (bits_of(f) & 0x80000000u));
}

alignas(64) constexpr Cubic kTable[kTableRows] = {
#include "noise_table.inc"
};

}  // namespace fedspzo
