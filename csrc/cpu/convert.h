// Loops that the compiler vectorizes for the instruction set that the including file targets.
#pragma once

#include "../rounding.h"

namespace fedspzo {
namespace {

void load_bfloat16(float* values, const uint16_t* bits, int64_t count) {
  for (int64_t j = 0; j < count; ++j) values[j] = float_of_bfloat16(bits[j]);
}

void load_float16(float* values, const uint16_t* bits, int64_t count) {
  for (int64_t j = 0; j < count; ++j) values[j] = float_of_float16(bits[j]);
}

void store_bfloat16(uint16_t* bits, const float* values, const uint16_t* random, int64_t count) {
  if (random) {
    for (int64_t j = 0; j < count; ++j) bits[j] = stochastic_bfloat16(values[j], random[j]);
  } else {
    for (int64_t j = 0; j < count; ++j) bits[j] = nearest_bfloat16(values[j]);
  }
}

void store_float16(uint16_t* bits, const float* values, const uint16_t* random, int64_t count) {
  if (random) {
    for (int64_t j = 0; j < count; ++j) bits[j] = stochastic_float16(values[j], random[j]);
  } else {
    for (int64_t j = 0; j < count; ++j) bits[j] = nearest_float16(values[j]);
  }
}

// Calls `add(j, coeff * (bit `first + j` of `words` ? -1 : 1))` for j < count. The calls must not
// depend on one another.
template <class Add>
void each_sign(const uint32_t* words, int64_t first, int64_t count, float coeff, Add add) {
  const uint32_t bits = bits_of(coeff);
  for (int64_t j = 0; j < count;) {
    const uint32_t word = words[(first + j) / 32] >> ((first + j) % 32);
    const int64_t left = 32 - (first + j) % 32, length = left < count - j ? left : count - j;
    if (length == 32) {  // a loop of constant length becomes a few vectors
#pragma GCC ivdep
      for (int64_t b = 0; b < 32; ++b) add(j + b, float_of(bits ^ (word >> b << 31)));
    } else {
      for (int64_t b = 0; b < length; ++b) add(j + b, float_of(bits ^ (word >> b << 31)));
    }
    j += length;
  }
}

void add_signs(const float* source, float* values, const uint32_t* words, int64_t first,
               int64_t count, float coeff) {
  each_sign(words, first, count, coeff, [=](int64_t j, float z) { values[j] = source[j] + z; });
}

}  // namespace
}  // namespace fedspzo
