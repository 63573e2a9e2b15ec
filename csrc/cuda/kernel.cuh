// The kernel of fedspzo::perturb_: theta stays in registers while the terms are added to it.
#pragma once

#include "layout.h"
#include "values.cuh"

namespace fedspzo {

struct Terms {
  const int64_t* seeds;
  const float* coeffs;
  int64_t count;
  const int64_t* rounding_seed;  // null: nearest even
};

// A term as the threads need it: five 16-byte loads from shared memory.
struct alignas(16) TermSpan {
  PhiloxSpan philox;
  float coeff;
};
static_assert(sizeof(TermSpan) == 80);

// The table with the sign of f in the row, bits(f) >> 22: neither |f| nor moving the sign then
// costs an instruction. The bits are those of normal_of, because negating f, c0 and c2 negates
// every step of the evaluation.
constexpr uint32_t kPositive = 127u << kSegmentBits, kNegative = kPositive + (256u << kSegmentBits);

__device__ const Cubic kDeviceTable[kTableRows] = {
#include "../noise_table.inc"
};

struct NormalNoise {
  static constexpr int kCounterShift = 2;  // a counter has 1 << kCounterShift elements

  // Neighbouring packets of a thread's turn.
  template <bool kOneTerm>
  static constexpr int kPackets = kOneTerm ? 1 : 2;

  struct Shared {
    Cubic rows[kNegative - kPositive + kTableRows];
  };

  __device__ static void prepare(Shared& shared) {
    for (uint32_t i = threadIdx.x; i < kTableRows; i += kThreads) {
      const Cubic c = kDeviceTable[(kPositive + i) & (kTableRows - 1)];
      shared.rows[i] = c;
      shared.rows[i + kNegative - kPositive] = {-c.c0, c.c1, -c.c2, c.c3};
    }
  }

  __device__ static float normal(uint32_t word, const Shared& shared) {
    const float f = float(int32_t(word | 1u));
    const Cubic c = shared.rows[int32_t(bits_of(f) >> kTableShift) - int32_t(kPositive)];
    return fmaf(fmaf(fmaf(c.c3, f, c.c2), f, c.c1), f, c.c0);
  }

  // Adds the term to the kPlaces elements of a chunk's run; `counter` is the low word of the
  // chunk's first counter.
  template <int kPlaces>
  __device__ static void add(float (&v)[kPlaces], uint32_t counter, uint32_t run,
                             const TermSpan& term, const Shared& shared) {
#pragma unroll
    for (int place = 0; place < kPlaces; place += 4) {
      const Words words = philox(counter + run * (kPlaces / 4) + place / 4, term.philox);
#pragma unroll
      for (int w = 0; w < 4; ++w)
        v[place + w] = fmaf(term.coeff, normal(words.w[w], shared), v[place + w]);
    }
  }
};

struct SignNoise {
  static constexpr int kCounterShift = 7;

  template <bool kOneTerm>
  static constexpr int kPackets = 4;  // the elements of one word

  struct Shared {};
  __device__ static void prepare(Shared&) {}

  template <int kPlaces>
  __device__ static void add(float (&v)[kPlaces], uint32_t counter, uint32_t run,
                             const TermSpan& term, const Shared&) {
    static_assert(kPlaces == 32);
    const Words words = philox(counter + run / 4, term.philox);
    const uint32_t low = run & 1 ? words.w[1] : words.w[0];
    const uint32_t high = run & 1 ? words.w[3] : words.w[2];
    const uint32_t word = run & 2 ? high : low;
#pragma unroll
    for (int place = 0; place < kPlaces; ++place)
      v[place] += float_of(bits_of(term.coeff) ^ ((word << (31 - place)) & 0x80000000u));
  }
};

constexpr uint32_t kChunkSize = 16384;
constexpr int kTermTile = 64;

__device__ inline TermSpan term_span(const Terms& terms, int64_t k, uint64_t key,
                                     uint32_t counter_high) {
  return {PhiloxSpan(counter_high, key, uint64_t(terms.seeds[k])), terms.coeffs[k]};
}

// Keeps words in registers that the compiler would rather compute again in every turn.
__device__ inline void keep(PhiloxSpan& span) {
  uint32_t* words = &span.first;
#pragma unroll
  for (int i = 0; i < int(sizeof(PhiloxSpan) / 4); ++i) asm volatile("" : "+r"(words[i]));
}

// The random bits of stochastic rounding: one counter a packet.
template <bool kStochastic>
struct Random {
  PhiloxSpan span;
  uint32_t counter;

  __device__ Random(const Terms& terms, const Chunk& chunk, uint64_t key) {
    if constexpr (kStochastic) {
      counter = uint32_t(chunk.base / kPacket);
      span = PhiloxSpan(uint32_t(chunk.base / kPacket >> 32) | kRoundingDomain, key,
                        uint64_t(*terms.rounding_seed));
    }
  }
  __device__ Words packet(uint32_t packet) const { return philox(counter + packet, span); }
};

template <class Storage, int kPlaces>
__device__ inline void load(const typename Storage::Element* p, const Run& run,
                            float (&v)[kPlaces]) {
#pragma unroll
  for (int place = 0; place < kPlaces; ++place)
    v[place] = place >= run.first && place < run.last ? Storage::load(p[place]) : 0.0f;
}

template <class Storage, int kPlaces, bool kStochastic>
__device__ inline void store(typename Storage::Element* p, const Run& run,
                             const float (&v)[kPlaces], const Random<kStochastic>& random,
                             uint32_t packet) {
#pragma unroll
  for (int place = 0; place < kPlaces; ++place) {
    if (place < run.first || place >= run.last) continue;
    if constexpr (kStochastic) {
      const Words words = random.packet(packet + place / kPacket);
      p[place] = Storage::store(v[place], rounding_bits(words, place));
    } else {
      p[place] = Storage::store(v[place]);
    }
  }
}

template <class Storage, int kPlaces>
__device__ inline void load_whole(const typename Storage::Element* p, float (&v)[kPlaces]) {
#pragma unroll
  for (int place = 0; place < kPlaces; place += kPacket) Storage::load8(p + place, v + place);
}

template <class Storage, int kPlaces, bool kStochastic>
__device__ inline void store_whole(typename Storage::Element* p, const float (&v)[kPlaces],
                                   const Random<kStochastic>& random, uint32_t packet) {
#pragma unroll
  for (int place = 0; place < kPlaces; place += kPacket) {
    if constexpr (kStochastic) {
      Storage::store8(p + place, v + place, random.packet(packet + place / kPacket));
    } else {
      Storage::store8(p + place, v + place);
    }
  }
}

// kOneTerm: the term is known before the loop, and its constants stay in registers. Otherwise a
// tile of terms at a time is prepared in shared memory, and a thread takes two packets, which
// share the loads of a term.
template <class Storage, class Noise, bool kOneTerm, bool kStochastic>
__global__ void __launch_bounds__(kThreads)
    perturb_kernel(const __grid_constant__ TensorTable table, const Terms terms) {
  using Element = typename Storage::Element;
  constexpr int kPackets = Noise::template kPackets<kOneTerm>;
  constexpr int kPlaces = kPackets * kPacket;
  __shared__ typename Noise::Shared shared;
  __shared__ TermSpan tile[kOneTerm ? 1 : kTermTile];
  Noise::prepare(shared);
  __syncthreads();

  for (uint32_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk chunk = chunk_at(table, number, kChunkSize);
    const TensorEntry& entry = table.entries[chunk.tensor];
    const uint64_t key = entry.key;
    const uint64_t counter = chunk.base >> Noise::kCounterShift;
    const uint32_t counter_high = uint32_t(counter >> 32);
    Element* origin = static_cast<Element*>(entry.data) - int64_t(entry.begin - chunk.base);
    const bool aligned = reinterpret_cast<uintptr_t>(origin) % 16 == 0;
    TermSpan only;
    if constexpr (kOneTerm) {
      only = term_span(terms, 0, key, counter_high);
      keep(only.philox);
    }
    Random<kStochastic> random(terms, chunk, key);
    if constexpr (kOneTerm && kStochastic) keep(random.span);

    const auto add = [&](float (&v)[kPlaces], uint32_t run) {
      if constexpr (kOneTerm) {
        Noise::add(v, uint32_t(counter), run, only, shared);
      } else {
        for (int64_t k = 0; k < terms.count; k += kTermTile) {
          const int count = int(min(int64_t(kTermTile), terms.count - k));
          __syncthreads();
          if (threadIdx.x < count)
            tile[threadIdx.x] = term_span(terms, k + threadIdx.x, key, counter_high);
          __syncthreads();
#pragma unroll 1
          for (int t = 0; t < count; ++t) Noise::add(v, uint32_t(counter), run, tile[t], shared);
        }
      }
    };

    // Whole runs at aligned addresses, 16 bytes at a time; then what is left, element by element.
    // With more than one term the threads meet at barriers, so all take the same turns.
    const Interior interior = interior_runs(chunk, kPackets, aligned);
#pragma unroll 1
    for (uint32_t turn = interior.first + threadIdx.x;
         kOneTerm ? turn < interior.last : turn - threadIdx.x < interior.last; turn += kThreads) {
      const uint32_t run = kOneTerm ? turn : min(turn, interior.last - 1);
      Element* p = origin + run * kPlaces;
      float v[kPlaces];
      load_whole<Storage>(p, v);
      add(v, run);
      if (kOneTerm || turn < interior.last) store_whole<Storage>(p, v, random, run * kPackets);
    }
    const uint32_t edges =
        last_run(chunk, kPackets) - first_run(chunk, kPackets) - (interior.last - interior.first);
#pragma unroll 1
    for (uint32_t edge = 0; edge < edges; edge += kThreads) {
      const uint32_t run = edge_run(chunk, kPackets, interior, edge + threadIdx.x);
      const Run part = run_at(chunk, run, kPackets);
      Element* p = origin + run * kPlaces;
      float v[kPlaces];
      load<Storage>(p, part, v);
      add(v, run);
      store<Storage>(p, part, v, random, run * kPackets);
    }
  }
}

}  // namespace fedspzo
