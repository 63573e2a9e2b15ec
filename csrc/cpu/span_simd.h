// The span kernels on vectors. V has an instruction set's vectors of V::kLanes 32-bit lanes, and
// V::Table looks up the cubics of two vectors.
//
// Philox runs in 64-bit lanes, with one counter in each. A product keeps its low word in place. The
// upper halves of words may hold anything, as the multiplier reads only the lower ones.
#pragma once

#include "convert.h"
#include "span.h"

namespace fedspzo {
namespace {

// Holds the four words of V::kLanes / 2 counters, in the lower halves of 64-bit lanes.
template <class V>
struct VectorWords {
  typename V::Int w0, w1, w2, w3;
};

// `counters` has the low words of V::kLanes / 2 counters in 64-bit lanes.
template <class V>
inline VectorWords<V> philox(typename V::Int counters, const PhiloxSpan& span) {
  using Int = typename V::Int;
  const Int m0 = V::set64(kPhiloxM0), m1 = V::set64(kPhiloxM1);
  Int p0 = V::multiply(counters, m0);
  Int p1 = V::multiply(V::exclusive_or(V::high(p0), V::set64(span.first)), m1);
  Int c0 = V::exclusive_or(V::high(p1), V::set64(span.second_a));
  Int c2 = V::exclusive_or(p0, V::set64(span.second_b));
  Int c1 = p1;
  p0 = V::multiply(c0, m0);
  p1 = V::multiply(c2, m1);
  c0 = V::exclusive_or3(V::high(p1), c1, V::set64(span.k0[0]));
  c2 = V::exclusive_or(V::high(p0), V::set64(span.third));
  c1 = p1;
  Int c3 = p0;
#pragma GCC unroll 8
  for (int r = 3; r < kPhiloxRounds; ++r) {
    p0 = V::multiply(c0, m0);
    p1 = V::multiply(c2, m1);
    c0 = V::exclusive_or3(V::high(p1), c1, V::set64(span.k0[r - 2]));
    c2 = V::exclusive_or3(V::high(p0), c3, V::set64(span.k1[r - 3]));
    c1 = p1;
    c3 = p0;
  }
  return {c0, c1, c2, c3};
}

// A block is 2 * V::kLanes elements that begin at a multiple of that number in the whole tensor,
// and so have the words of V::kLanes / 2 counters. Its two vectors hold the elements in an order
// that suits the storage. For float32 that is the elements' order:
template <class V>
struct FloatBlock {
  using Element = float;
  using Float = typename V::Float;

  static void words(uint32_t counter, const PhiloxSpan& span, typename V::Int (&out)[2]) {
    const VectorWords<V> four = philox<V>(V::interleaved_counters(counter), span);
    const typename V::Int w01 = V::pair(four.w0, four.w1), w23 = V::pair(four.w2, four.w3);
    out[0] = V::interleave_low(w01, w23);
    out[1] = V::interleave_high(w01, w23);
  }
  static void load(const float* p, Float (&values)[2]) {
    values[0] = V::load(p);
    values[1] = V::load(p + V::kLanes);
  }
  static void store(float* p, const Float (&values)[2]) {
    V::store(p, values[0]);
    V::store(p + V::kLanes, values[1]);
  }
};

// For bfloat16 it is the even elements, then the odd ones, as a 32-bit lane holds one of each:
template <class V>
struct BrainBlock {
  using Element = uint16_t;
  using Float = typename V::Float;

  static void words(uint32_t counter, const PhiloxSpan& span, typename V::Int (&out)[2]) {
    const VectorWords<V> four = philox<V>(V::counters(counter), span);
    out[0] = V::pair(four.w0, four.w2);
    out[1] = V::pair(four.w1, four.w3);
  }
  static void load(const uint16_t* p, Float (&values)[2]) { V::load_even_odd(p, values); }
  static void store(uint16_t* p, const Float (&values)[2]) { V::store_even_odd(p, values); }
};

// Computes out = source + coeff * normals for the block whose first counter is `counter`.
template <class V, class Block>
inline void add_normal_block(const typename Block::Element* source, typename Block::Element* out,
                             uint32_t counter, const PhiloxSpan& span,
                             const typename V::Table& table, typename V::Float coeff) {
  using Float = typename V::Float;
  typename V::Int words[2];
  Block::words(counter, span, words);
  const Float f[2] = {V::to_float(V::inclusive_or(words[0], V::set32(1))),
                      V::to_float(V::inclusive_or(words[1], V::set32(1)))};
  const Float t[2] = {V::absolute(f[0]), V::absolute(f[1])};
  typename V::Cubics cubics[2];
  table.look_up(t, cubics);
  Float values[2];
  Block::load(source, values);
  for (int i = 0; i < 2; ++i) {
    const auto& c = cubics[i];
    const Float z = V::fused(V::fused(V::fused(c.c3, t[i], c.c2), t[i], c.c1), t[i], c.c0);
    values[i] = V::fused(coeff, V::flip_sign(z, f[i]), values[i]);
  }
  Block::store(out, values);
}

// Calls `add(source, values, index)` for each block of the elements index to index + count - 1.
template <class V, class Element, class Add>
inline void each_block(const Element* source, Element* values, uint64_t index, int64_t count,
                       Add add) {
  constexpr int64_t kBlock = 2 * V::kLanes;
  constexpr int64_t kAhead = 32;  // number of blocks
  for (int64_t j = -int64_t(index % kBlock); j < count; j += kBlock) {
    if (j >= 0 && j + kBlock <= count) {
      __builtin_prefetch(source + j + kAhead * kBlock);
      __builtin_prefetch(values + j + kAhead * kBlock, 1);
      add(source + j, values + j, index + j);
      continue;
    }
    Element block[kBlock] = {};
    const int64_t first = j < 0 ? 0 : j, last = j + kBlock < count ? j + kBlock : count;
    memcpy(block + (first - j), source + first, (last - first) * sizeof(Element));
    add(block, block, index + j);
    memcpy(values + first, block + (first - j), (last - first) * sizeof(Element));
  }
}

template <class V, class Block>
void add_normal(const typename Block::Element* source, typename Block::Element* values,
                uint64_t index, int64_t count, Stream stream, float coeff) {
  using Element = typename Block::Element;
  const PhiloxSpan span(uint32_t(index / 4 >> 32), stream.key, stream.seed);
  const typename V::Table table;
  const typename V::Float coeffs = V::set_float(coeff);
  each_block<V>(source, values, index, count, [&](const Element* from, Element* to, uint64_t at) {
    add_normal_block<V, Block>(from, to, uint32_t(at / 4), span, table, coeffs);
  });
}

template <class V>
void add_signs_bfloat16_vectors(const uint16_t* source, uint16_t* values, const uint32_t* words,
                                int64_t first, int64_t count, float coeff) {
  const typename V::Float coeffs = V::set_float(coeff);
  each_block<V>(source, values, uint64_t(first), count,
                [&](const uint16_t* from, uint16_t* to, uint64_t at) {
                  const uint32_t bits = words[at / 32] >> at % 32;
                  typename V::Float sums[2];
                  V::load_even_odd(from, sums);
                  sums[0] = V::add(sums[0], V::flip_sign(coeffs, V::even_bits_to_signs(bits)));
                  sums[1] = V::add(sums[1], V::flip_sign(coeffs, V::even_bits_to_signs(bits >> 1)));
                  V::store_even_odd(to, sums);
                });
}

template <class V>
void fill_words(uint32_t* words, uint64_t counter, int64_t counters, Stream stream,
                uint32_t domain) {
  const PhiloxSpan span(uint32_t(counter >> 32) | domain, stream.key, stream.seed);
  for (int64_t j = 0; j < counters; j += V::kLanes / 2) {
    typename V::Int pair[2];
    FloatBlock<V>::words(uint32_t(counter + j), span, pair);
    V::store(words + 4 * j, pair[0]);
    V::store(words + 4 * j + V::kLanes, pair[1]);
  }
}

template <class V>
void load_float16_vectors(float* values, const uint16_t* bits, int64_t count) {
  int64_t j = 0;
  for (; j + V::kLanes <= count; j += V::kLanes) V::store(values + j, V::load_float16(bits + j));
  load_float16(values + j, bits + j, count - j);
}

template <class V>
void store_float16_vectors(uint16_t* bits, const float* values, const uint16_t* random,
                           int64_t count) {
  if (random) return store_float16(bits, values, random, count);
  int64_t j = 0;
  for (; j + V::kLanes <= count; j += V::kLanes) V::store_float16(bits + j, V::load(values + j));
  store_float16(bits + j, values + j, nullptr, count - j);
}

template <class V>
constexpr SpanKernels simd_kernels(const char* name) {
  return {name,
          add_normal<V, FloatBlock<V>>,
          add_normal<V, BrainBlock<V>>,
          add_signs,
          add_signs_bfloat16_vectors<V>,
          fill_words<V>,
          load_bfloat16,
          load_float16_vectors<V>,
          store_bfloat16,
          store_float16_vectors<V>};
}

}  // namespace
}  // namespace fedspzo
