// The parts of the kernel that need PTX or CUDA's types, and the same in C++. So the host's
// compiler can compile the kernel too, and a test runs it without a GPU (tests/host/kernel.cpp).
#pragma once

#include "../rounding.h"

namespace fedspzo {

#ifdef __CUDACC__

__device__ inline Words load16(const void* p) {
  const uint4 words = *static_cast<const uint4*>(p);
  return {{words.x, words.y, words.z, words.w}};
}

// The store is written in PTX, because the compiler would split a vector whose parts it computed
// separately.
__device__ inline void store16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

__device__ inline uint32_t nearest_bfloat16_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ inline uint32_t nearest_float16_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ inline void float16_pair_to_floats(uint32_t word, float& low, float& high) {
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
      : "=f"(low), "=f"(high)
      : "r"(word));
}

// Keeps a word or an address in its register, where the compiler would compute it again in each
// turn.
__device__ inline void keep(uint32_t& word) { asm volatile("" : "+r"(word)); }

// After the asm the compiler does not know that the address is of global memory, and would use
// slower, generic instructions. The conversions tell it.
template <class T>
__device__ inline void keep(T*& address) {
  size_t global = __cvta_generic_to_global(address);
  asm volatile("" : "+l"(global));
  address = static_cast<T*>(__cvta_global_to_generic(global));
}

#else

// The test's hook: it is called with the address of each 16-byte access.
void check_aligned(const void* p);

inline Words load16(const void* p) {
  check_aligned(p);
  Words words;
  memcpy(&words, p, sizeof words);
  return words;
}

inline void store16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  check_aligned(p);
  const Words words{{a, b, c, d}};
  memcpy(p, &words, sizeof words);
}

inline uint32_t nearest_bfloat16_pair(float low, float high) {
  return nearest_bfloat16(low) | uint32_t(nearest_bfloat16(high)) << 16;
}

inline uint32_t nearest_float16_pair(float low, float high) {
  return nearest_float16(low) | uint32_t(nearest_float16(high)) << 16;
}

inline void float16_pair_to_floats(uint32_t word, float& low, float& high) {
  low = float_of_float16(uint16_t(word));
  high = float_of_float16(uint16_t(word >> 16));
}

inline void keep(uint32_t&) {}

template <class T>
inline void keep(T*&) {}

#endif

}  // namespace fedspzo
