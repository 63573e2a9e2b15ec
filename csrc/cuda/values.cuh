// Loads and stores a packet's eight elements, 16 bytes at a time if the address allows it.
#pragma once

#include "intrinsics.cuh"
#include "layout.h"

namespace fedspzo {

struct Float32 {
  using Element = float;
  __device__ static float load(float x) { return x; }
  __device__ static float store(float x) { return x; }

  __device__ static void load8(const float* p, float* v) {
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      const Words words = load16(p + half);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[half + i] = float_of(words.w[i]);
    }
  }
  __device__ static void store8(float* p, const float* v) {
    store16(p, bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3]));
    store16(p + 4, bits_of(v[4]), bits_of(v[5]), bits_of(v[6]), bits_of(v[7]));
  }
};

// The common part of bfloat16 and float16: eight elements are in four words, and the lower index is
// in a word's lower half.
template <class Self>
struct Sixteen {
  using Element = uint16_t;

  __device__ static void load8(const uint16_t* p, float* v) {
    const Words words = load16(p);
#pragma unroll
    for (int i = 0; i < 4; ++i) Self::unpack(words.w[i], v[2 * i], v[2 * i + 1]);
  }
  __device__ static void store8(uint16_t* p, const float* v) {
    store16(p, Self::pack(v[0], v[1]), Self::pack(v[2], v[3]), Self::pack(v[4], v[5]),
            Self::pack(v[6], v[7]));
  }
  __device__ static void store8(uint16_t* p, const float* v, const Words& random) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = Self::pack_stochastic(v[2 * i], v[2 * i + 1], random.w[i]);
    store16(p, words[0], words[1], words[2], words[3]);
  }
  __device__ static float load(uint16_t x) {
    float low, high;
    Self::unpack(x, low, high);
    return low;
  }
  __device__ static uint16_t store(float x) { return uint16_t(Self::pack(x, 0.0f)); }
  __device__ static uint16_t store(float x, uint32_t random) {
    return uint16_t(Self::pack_stochastic(x, 0.0f, random));
  }
};

struct Bfloat16 : Sixteen<Bfloat16> {
  __device__ static void unpack(uint32_t word, float& low, float& high) {
    low = float_of(word << 16);
    high = float_of(word & 0xFFFF0000u);
  }
  __device__ static uint32_t pack(float low, float high) {
    return nearest_bfloat16_pair(low, high);
  }
  // `random` has 16 bits for the low value in its lower half, and 16 for the high value in its
  // upper half. Infinities have no low bits, so nothing carries. A NaN, which device arithmetic
  // always gives as 0x7FFFFFFF, is replaced by a smaller one first, so that it cannot carry into
  // the sign.
  __device__ static uint32_t pack_stochastic(float low, float high, uint32_t random) {
    const uint32_t a = min(int32_t(bits_of(low)), 0x7FBFFFFF) + (random & 0xFFFFu);
    const uint32_t b = min(int32_t(bits_of(high)), 0x7FBFFFFF) + (random >> 16);
    return __byte_perm(a, b, 0x7632);
  }
};

struct Float16 : Sixteen<Float16> {
  __device__ static void unpack(uint32_t word, float& low, float& high) {
    float16_pair_to_floats(word, low, high);
  }
  __device__ static uint32_t pack(float low, float high) { return nearest_float16_pair(low, high); }
  __device__ static uint32_t pack_stochastic(float low, float high, uint32_t random) {
    return pack(neighbour(low, __byte_perm(random, 0, 0x1044)), neighbour(high, random));
  }
  // Computes stochastic_float16 without branches, as a float32 that `pack` converts exactly or
  // makes infinite. It uses the upper half of `random`. Scaled by 2^-112, float32 has float16's
  // exponents and subnormals, and its bits are float16's with 13 more below. An infinity has no low
  // bits, so nothing carries. The addend is too small to change the product, but restores a NaN
  // that the integer sum has damaged.
  __device__ static float neighbour(float value, uint32_t random) {
    const float scaled = __fmul_rz(value, 0x1p-112f);
    return fmaf(float_of((bits_of(scaled) + (random >> 19)) & ~0x1FFFu), 0x1p112f, scaled);
  }
};

}  // namespace fedspzo
