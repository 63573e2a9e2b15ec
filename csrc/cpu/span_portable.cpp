// The span kernels in portable C++, one element at a time.
#include "convert.h"
#include "span.h"

namespace fedspzo {
namespace {

// Calls `add(j, normal)` for the elements index + j, j < count.
template <class Add>
void each_normal(uint64_t index, int64_t count, Stream stream, Add add) {
  const PhiloxSpan span(uint32_t(index / 4 >> 32), stream.key, stream.seed);
  for (int64_t j = 0; j < count;) {
    const Words words = philox(uint32_t((index + j) / 4), span);
    for (uint64_t w = (index + j) % 4; w < 4 && j < count; ++w, ++j)
      add(j, normal_of(words.w[w], kTable));
  }
}

void add_normal(const float* source, float* values, uint64_t index, int64_t count, Stream stream,
                float coeff) {
  each_normal(index, count, stream,
              [=](int64_t j, float z) { values[j] = fmaf(coeff, z, source[j]); });
}

void add_normal_bfloat16(const uint16_t* source, uint16_t* values, uint64_t index, int64_t count,
                         Stream stream, float coeff) {
  each_normal(index, count, stream, [=](int64_t j, float z) {
    values[j] = nearest_bfloat16(fmaf(coeff, z, float_of_bfloat16(source[j])));
  });
}

void add_signs_bfloat16(const uint16_t* source, uint16_t* values, const uint32_t* words,
                        int64_t first, int64_t count, float coeff) {
  each_sign(words, first, count, coeff, [=](int64_t j, float z) {
    values[j] = nearest_bfloat16(float_of_bfloat16(source[j]) + z);
  });
}

void fill_words(uint32_t* words, uint64_t counter, int64_t counters, Stream stream,
                uint32_t domain) {
  const PhiloxSpan span(uint32_t(counter >> 32) | domain, stream.key, stream.seed);
  for (int64_t j = 0; j < counters; ++j) {
    const Words four = philox(uint32_t(counter + j), span);
    for (int w = 0; w < 4; ++w) words[4 * j + w] = four.w[w];
  }
}

}  // namespace

const SpanKernels& portable_kernels() {
  static const SpanKernels kernels{
      "default",  add_normal,    add_normal_bfloat16, add_signs,      add_signs_bfloat16,
      fill_words, load_bfloat16, load_float16,        store_bfloat16, store_float16};
  return kernels;
}

}  // namespace fedspzo
