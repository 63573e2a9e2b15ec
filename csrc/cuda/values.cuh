// Loads and stores of a packet's eight elements: 16 bytes at a time where the address allows it.
#pragma once

#include "../rounding.h"
#include "layout.h"

namespace fedspzo {

// Written out, because the compiler takes a vector it has computed piece by piece apart again.
__device__ inline void store16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

struct Float32 {
  using Element = float;
  __device__ static float load(float x) { return x; }
  __device__ static float store(float x) { return x; }

  __device__ static void load8(const float* p, float* v) {
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }
  __device__ static void store8(float* p, const float* v) {
    store16(p, bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3]));
    store16(p + 4, bits_of(v[4]), bits_of(v[5]), bits_of(v[6]), bits_of(v[7]));
  }
};

// What bfloat16 and float16 share: eight elements in four words, the lower index below.
template <class Self>
struct Sixteen {
  using Element = uint16_t;

  __device__ static void load8(const uint16_t* p, float* v) {
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    Self::unpack(words.x, v[0], v[1]);
    Self::unpack(words.y, v[2], v[3]);
    Self::unpack(words.z, v[4], v[5]);
    Self::unpack(words.w, v[6], v[7]);
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
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
  // `random`: 16 bits below for the low value, 16 above for the high one. Infinities have no low
  // bits to carry from. A NaN, which device arithmetic always gives as 0x7FFFFFFF, is made a smaller
  // one first, so that it cannot carry into the sign.
  __device__ static uint32_t pack_stochastic(float low, float high, uint32_t random) {
    const uint32_t a = min(int32_t(bits_of(low)), 0x7FBFFFFF) + (random & 0xFFFFu);
    const uint32_t b = min(int32_t(bits_of(high)), 0x7FBFFFFF) + (random >> 16);
    return __byte_perm(a, b, 0x7632);
  }
};

struct Float16 : Sixteen<Float16> {
  __device__ static void unpack(uint32_t word, float& low, float& high) {
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high)
        : "r"(word));
  }
  __device__ static uint32_t pack(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
  __device__ static uint32_t pack_stochastic(float low, float high, uint32_t random) {
    return pack(truncated(low, random >> 3 & 0x1FFFu), truncated(high, random >> 19));
  }
  // stochastic_float16 without branches: a value that float16 holds, or overflows to infinity.
  __device__ static float truncated(float value, uint32_t random) {
    const float magnitude = fabsf(value);
    const uint32_t bits = bits_of(magnitude);
    const float normal = float_of((bits + random) & ~0x1FFFu);
    // Below 2^-14 in units of 2^-37, truncated to 2^-24, which is the last bit's worth from 1/2 on.
    const float sum = __fmaf_rz(float(int32_t(random)), 0x1p-37f, magnitude);
    const float tiny = __fadd_rz(sum, 0.5f) - 0.5f;
    const bool is_normal = bits - 0x38800000u < kInfinity - 0x38800000u;
    return copysignf(is_normal ? normal : tiny, value);
  }
};

}  // namespace fedspzo
