// Kernels for one span of elements, with a version for each instruction set.
//
// A span is a run of elements of one tensor that crosses no multiple of kSpan. Its float32 values
// fit in the first-level cache, so each term can take a separate pass over them. Its counters share
// their high word, which makes the first two Philox rounds cheaper.
#pragma once

#include <cstdint>

namespace fedspzo {

constexpr int64_t kSpan = 4096;

// The stream of one term in one tensor.
struct Stream {
  uint64_t key, seed;
};

struct SpanKernels {
  const char* name;

  // values[j] = source[j] + coeff * normal(index + j), for j < count. They may be the same memory.
  void (*add_normal)(const float* source, float* values, uint64_t index, int64_t count,
                     Stream stream, float coeff);

  // Does the same on bfloat16. The sum is rounded to nearest even.
  void (*add_normal_bfloat16)(const uint16_t* source, uint16_t* values, uint64_t index,
                              int64_t count, Stream stream, float coeff);

  // values[j] = source[j] + coeff * (bit `first + j` of `words` ? -1 : 1). They may be the same
  // memory.
  void (*add_signs)(const float* source, float* values, const uint32_t* words, int64_t first,
                    int64_t count, float coeff);

  // Does the same on bfloat16. The sum is rounded to nearest even.
  void (*add_signs_bfloat16)(const uint16_t* source, uint16_t* values, const uint32_t* words,
                             int64_t first, int64_t count, float coeff);

  // Writes the 4 * counters words of the consecutive counters from `counter` on. `counters` is
  // rounded up to a multiple of 8. The high halves of the counters must agree.
  void (*fill_words)(uint32_t* words, uint64_t counter, int64_t counters, Stream stream,
                     uint32_t domain);

  void (*load_bfloat16)(float* values, const uint16_t* bits, int64_t count);
  void (*load_float16)(float* values, const uint16_t* bits, int64_t count);

  // `random` is null for nearest-even, else 16 random bits for each element.
  void (*store_bfloat16)(uint16_t* bits, const float* values, const uint16_t* random,
                         int64_t count);
  void (*store_float16)(uint16_t* bits, const float* values, const uint16_t* random, int64_t count);
};

const SpanKernels& portable_kernels();
// Null if the machine or the compiler lacks AVX2, FMA or F16C.
const SpanKernels* avx2_kernels();
// Null if the machine or the compiler lacks FMA, or AVX-512 F, BW, DQ or VL.
const SpanKernels* avx512_kernels();

}  // namespace fedspzo
