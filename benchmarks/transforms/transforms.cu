// Candidate transforms of normal-v1 in one and the same CUDA loop, to count their instructions:
// bfloat16, one term, eight elements a thread and pass. Compiled, never run.
#include <cstdint>

#include "../../csrc/noise.h"

using fedspzo::float_of;
using fedspzo::bits_of;

// The first proposal: 64 lines an octave, the sign taken from the low bit.
struct Lines {
  using Row = float2;
  static constexpr int kRows = 31 * 64 + 1;
  static __device__ float normal(uint32_t u, const Row* table) {
    const float f = float((u >> 1) | 1u);
    const Row row = table[(bits_of(f) >> 17) - (127u << 6)];
    return float_of(bits_of(fmaf(f, row.x, row.y)) ^ (u << 31));
  }
};

// Lines again, on a signed integer.
struct SignedLines {
  using Row = float2;
  static constexpr int kRows = 32 * 64;
  static __device__ float normal(uint32_t u, const Row* table) {
    const float f = float(int32_t(u | 1u)), t = fabsf(f);
    const Row row = table[(bits_of(f) >> 17) & 2047u];
    return float_of(bits_of(fmaf(t, row.x, row.y)) ^ (bits_of(f) & 0x80000000u));
  }
};

// normal-v1, and the same with 2^kBits segments an octave.
template <int kBits>
struct Cubics {
  using Row = float4;
  static constexpr int kRows = 32 << kBits;
  static __device__ float normal(uint32_t u, const Row* table) {
    const float f = float(int32_t(u | 1u)), t = fabsf(f);
    const Row c = table[(bits_of(f) >> (23 - kBits)) & (kRows - 1)];
    const float z = fmaf(fmaf(fmaf(c.w, t, c.z), t, c.y), t, c.x);
    return float_of(bits_of(z) ^ (bits_of(f) & 0x80000000u));
  }
};

template <class Transform>
__device__ void perturb(uint16_t* theta, int64_t count, uint64_t key, uint64_t seed, float coeff,
                        const typename Transform::Row* rows) {
  __shared__ typename Transform::Row table[Transform::kRows];
  for (int i = threadIdx.x; i < Transform::kRows; i += blockDim.x) table[i] = rows[i];
  __syncthreads();
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint4 eight = reinterpret_cast<uint4*>(theta)[i];
    uint32_t* pairs = &eight.x;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const fedspzo::Words words = fedspzo::philox(2 * i + half, key, seed);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        uint32_t& pair = pairs[2 * half + p];
        const float low = fmaf(coeff, Transform::normal(words.w[2 * p], table), float_of(pair << 16));
        const float high =
            fmaf(coeff, Transform::normal(words.w[2 * p + 1], table), float_of(pair & 0xFFFF0000u));
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
      }
    }
    reinterpret_cast<uint4*>(theta)[i] = eight;
  }
}

#define KERNEL(name, Transform)                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                       \
      name(uint16_t* theta, int64_t count, uint64_t key, uint64_t seed, float coeff,      \
           const Transform::Row* rows) {                                                  \
    perturb<Transform>(theta, count, key, seed, coeff, rows);                             \
  }

KERNEL(lines_64, Lines)
KERNEL(signed_lines_64, SignedLines)
KERNEL(cubics_1, Cubics<0>)
KERNEL(cubics_2, Cubics<1>)
KERNEL(cubics_4, Cubics<2>)
