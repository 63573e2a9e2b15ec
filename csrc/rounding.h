// Converts float32 to and from the bits of bfloat16 and float16, with rounding to nearest even or
// stochastic rounding.
#pragma once

#include "noise.h"

namespace fedspzo {

constexpr uint32_t kMagnitude = 0x7FFFFFFFu, kInfinity = 0x7F800000u;

FEDSPZO_FN float float_of_bfloat16(uint16_t h) { return float_of(uint32_t(h) << 16); }

FEDSPZO_FN float float_of_float16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_of(sign | kInfinity | (magnitude << 13));
  if (magnitude < 0x0400u) return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));
  return float_of(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

FEDSPZO_FN uint16_t sign_of(uint32_t bits) { return uint16_t(bits >> 16) & 0x8000u; }

// Returns true for infinities and NaN, which rounding must not change.
FEDSPZO_FN bool is_special(uint32_t bits) { return (bits & kMagnitude) >= kInfinity; }

FEDSPZO_FN uint16_t special_bfloat16(uint32_t bits) {
  return sign_of(bits) | ((bits & kMagnitude) > kInfinity ? 0x7FC0u : 0x7F80u);
}

FEDSPZO_FN uint16_t special_float16(uint32_t bits) {
  return sign_of(bits) | ((bits & kMagnitude) > kInfinity ? 0x7E00u : 0x7C00u);
}

FEDSPZO_FN uint16_t nearest_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (is_special(bits)) return special_bfloat16(bits);
  return uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

FEDSPZO_FN uint16_t nearest_float16(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & kMagnitude;
  if (is_special(bits)) return special_float16(bits);
  if (magnitude >= 0x477FF000u) return sign_of(bits) | 0x7C00u;  // from 65520 on
  // Below 2^-14 the spacing is 2^-24. The last bit of a float32 at 2^-1 is worth that, so adding
  // 2^-1 rounds to it.
  if (magnitude < 0x38800000u)
    return sign_of(bits) | uint16_t(bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f));
  return sign_of(bits) |
         uint16_t((magnitude - ((127u - 15u) << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13);
}

// Rounds stochastically: adds random bits below the last kept bit, and truncates. So the upper
// neighbour's probability is the value's distance from the lower one, in units of their spacing.
// `random` has 16 bits.
FEDSPZO_FN uint16_t stochastic_bfloat16(float value, uint32_t random) {
  const uint32_t bits = bits_of(value);
  if (is_special(bits)) return special_bfloat16(bits);
  return uint16_t((bits + random) >> 16);
}

FEDSPZO_FN uint16_t stochastic_float16(float value, uint32_t random) {
  const uint32_t bits = bits_of(value), magnitude = bits & kMagnitude;
  if (is_special(bits)) return special_float16(bits);
  random >>= 3;
  uint32_t rounded;
  if (magnitude < 0x38800000u) {  // below 2^-14, in units of 2^-37
    rounded = (uint32_t(float_of(magnitude) * 0x1p37f) + random) >> 13;
  } else {
    rounded = ((magnitude + random) >> 13) - ((127u - 15u) << 10);
  }
  return sign_of(bits) | uint16_t(rounded < 0x7C00u ? rounded : 0x7C00u);
}

// Returns the 16 rounding bits of an element. Eight elements share a counter, and two share a word,
// whose low half is first.
FEDSPZO_FN uint32_t rounding_bits(const Words& words, uint64_t index) {
  return (words.w[index % 8 / 2] >> (index % 2 * 16)) & 0xFFFFu;
}

}  // namespace fedspzo
