// The kernel of the three ops. Weights stay in registers while the terms are added to them.
#pragma once

#include <type_traits>

#include "layout.h"
#include "table.cuh"
#include "values.cuh"

namespace fedspzo {

struct Terms {
  const int64_t* seeds;
  const float* coeffs;
  int count;
  const int64_t* rounding_seed;  // null: nearest even
};

// A term's constants in a chunk. A thread reads them by five 16-byte loads from shared memory.
struct alignas(16) TermSpan {
  PhiloxSpan philox;
  float coeff;
};
static_assert(sizeof(TermSpan) == 80);

// These values depend on the GPU. setup.py builds the ones below. benchmarks/gpu_build.py also
// builds others, and FEDSPZO_SIGNED_TABLE (table.cuh), to compare them.
#ifndef FEDSPZO_ONE_TERM_BLOCKS
#define FEDSPZO_ONE_TERM_BLOCKS 6
#endif
#ifndef FEDSPZO_TERM_BLOCKS
#define FEDSPZO_TERM_BLOCKS 4
#endif
#ifndef FEDSPZO_TERM_PACKETS
#define FEDSPZO_TERM_PACKETS 2
#endif
#ifndef FEDSPZO_CHUNK_SIZE
#define FEDSPZO_CHUNK_SIZE 16384
#endif

struct NormalNoise {
  static constexpr int kCounterShift = 2;  // a counter has 1 << kCounterShift elements

  // Number of neighbouring packets in a thread's turn.
  template <bool kOneTerm>
  static constexpr int kPackets = kOneTerm ? 1 : FEDSPZO_TERM_PACKETS;

  // Number of blocks that a multiprocessor has to hold, which bounds a thread's registers. 0 sets
  // no bound. With one term and stochastic rounding any bound makes the loop longer, and may spill
  // registers.
  static constexpr int min_blocks(bool one_term, bool stochastic) {
    return !one_term ? FEDSPZO_TERM_BLOCKS : stochastic ? 0 : FEDSPZO_ONE_TERM_BLOCKS;
  }

  using Shared = Table;

  // Adds the term to the kPlaces elements of a chunk's run. `counter` is the low word of the
  // chunk's first counter.
  template <int kPlaces>
  __device__ static void add(float (&v)[kPlaces], uint32_t counter, uint32_t run,
                             const TermSpan& term, const Shared& table) {
#pragma unroll
    for (int place = 0; place < kPlaces; place += 4) {
      const Words words = philox(counter + run * (kPlaces / 4) + place / 4, term.philox);
#pragma unroll
      for (int w = 0; w < 4; ++w)
        v[place + w] = table.add_normal(v[place + w], term.coeff, words.w[w]);
    }
  }
};

struct SignNoise {
  static constexpr int kCounterShift = 7;

  template <bool kOneTerm>
  static constexpr int kPackets = 4;  // the elements of one word

  static constexpr int min_blocks(bool, bool) { return 0; }

  struct Shared {
    __device__ void fill() {}
  };

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

constexpr uint32_t kChunkSize = FEDSPZO_CHUNK_SIZE;
constexpr int kTermTile = 64;

__device__ inline TermSpan term_span(const Terms& terms, int k, uint64_t key,
                                     uint32_t counter_high) {
  return {PhiloxSpan(counter_high, key, uint64_t(terms.seeds[k])), terms.coeffs[k]};
}

// Keeps the span's words in registers.
__device__ inline void keep(PhiloxSpan& span) {
  uint32_t* words = &span.first;
#pragma unroll
  for (int i = 0; i < int(sizeof(PhiloxSpan) / 4); ++i) keep(words[i]);
}

// Gives the random bits of stochastic rounding, with one counter for each packet.
template <bool kStochastic>
struct Random {
  PhiloxSpan span;
  uint32_t counter;

  __device__ Random() {}
  __device__ Random(const Terms& terms, const Chunk& chunk, uint64_t key)
      : span(uint32_t(chunk.base / kPacket >> 32) | kRoundingDomain, key,
             uint64_t(*terms.rounding_seed)),
        counter(uint32_t(chunk.base / kPacket)) {}
  __device__ Words packet(uint32_t packet) const { return philox(counter + packet, span); }
};

template <>
struct Random<false> {
  __device__ Random() {}
  __device__ Random(const Terms&, const Chunk&, uint64_t) {}
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

// Writes NaN to the chunk of a row that the tensor lacks. `out` is the address of the chunk's base.
template <class Storage>
__device__ inline void fill_nan(typename Storage::Element* out, const Chunk& chunk) {
#pragma unroll 1
  for (uint32_t place = chunk.begin + threadIdx.x; place < chunk.end; place += kThreads)
    out[place] = Storage::store(float_of(0x7FC00000u));
}

// With kOneTerm the term is known before the loop, and its constants stay in registers. Otherwise
// they are in shared memory, a tile of terms at a time, and a thread takes more packets, which
// share the loads of a term. A tile that holds all terms is filled once in a chunk, else in each
// turn.
template <class Tensors, class Storage, class Noise, bool kOneTerm, bool kStochastic>
__global__ void __launch_bounds__(kThreads, Noise::min_blocks(kOneTerm, kStochastic))
    perturb_kernel(const __grid_constant__ Tensors table, const Terms terms) {
  using Element = typename Storage::Element;
  constexpr int kPackets = Noise::template kPackets<kOneTerm>;
  constexpr int kPlaces = kPackets * kPacket;
  __shared__ typename Noise::Shared shared;
  __shared__ TermSpan tile[kOneTerm ? 1 : kTermTile];
  __shared__ Random<kStochastic> shared_random;
  shared.fill();
  __syncthreads();

  for (uint32_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk chunk = chunk_at(table, number, kChunkSize);
    const TensorEntry& entry = table.entries[chunk.tensor];
    const uint64_t key = entry.key;
    const uint64_t counter = chunk.base >> Noise::kCounterShift;
    const uint32_t counter_high = uint32_t(counter >> 32);
    // These are addresses of the chunk's base, which may lie outside the tensor.
    const Element* source =
        static_cast<const Element*>(entry.source) + int64_t(chunk.base - entry.begin);
    Element* out = static_cast<Element*>(entry.out) + chunk.out_place;
    if (chunk.missing) {
      fill_nan<Storage>(out, chunk);
      continue;
    }
    keep(source);
    keep(out);
    const bool aligned =
        (reinterpret_cast<uintptr_t>(source) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
    TermSpan only;
    if constexpr (kOneTerm) {
      only = term_span(terms, 0, key, counter_high);
      keep(only.philox);
    }
    Random<kStochastic> own_random(terms, chunk, key);
    if constexpr (kOneTerm && kStochastic) keep(own_random.span);
    const Random<kStochastic>& random = kOneTerm ? own_random : shared_random;

    const auto fill_tile = [&](int k, int count) {
      __syncthreads();
      if (kStochastic && threadIdx.x == kThreads - 1)
        shared_random = Random<kStochastic>(terms, chunk, key);
      if (int(threadIdx.x) < count)
        tile[threadIdx.x] = term_span(terms, k + int(threadIdx.x), key, counter_high);
      __syncthreads();
    };
    const bool one_tile = terms.count <= kTermTile;
    if constexpr (!kOneTerm) {
      if (one_tile) fill_tile(0, terms.count);
    }
    const auto add = [&](float (&v)[kPlaces], uint32_t run) {
      if constexpr (kOneTerm) {
        Noise::add(v, uint32_t(counter), run, only, shared);
      } else {
        for (int k = 0; k < terms.count; k += kTermTile) {
          const int count = min(kTermTile, terms.count - k);
          if (!one_tile) fill_tile(k, count);
#pragma unroll 1
          for (int t = 0; t < count; ++t) Noise::add(v, uint32_t(counter), run, tile[t], shared);
        }
      }
    };

    // Whole runs at aligned addresses are accessed 16 bytes at a time, others by elements. A thread
    // that does not write takes part only because of the barriers.
    const Interior interior = interior_runs(chunk, kPackets, aligned);
    const auto take = [&](uint32_t run, bool whole, bool writes) {
      const Element* from = source + run * kPlaces;
      Element* to = out + run * kPlaces;
      float v[kPlaces];
      if (whole) {
        load_whole<Storage>(from, v);
      } else {
        load<Storage>(from, run_at(chunk, run, kPackets), v);
      }
      add(v, run);
      if (!writes) return;
      if (whole) {
        store_whole<Storage>(to, v, random, run * kPackets);
      } else {
        store<Storage>(to, run_at(chunk, run, kPackets), v, random, run * kPackets);
      }
    };
    const uint32_t edges =
        last_run(chunk, kPackets) - first_run(chunk, kPackets) - (interior.last - interior.first);
    if constexpr (kOneTerm) {
#pragma unroll 1
      for (uint32_t run = interior.first + threadIdx.x; run < interior.last; run += kThreads)
        take(run, true, true);
#pragma unroll 1
      for (uint32_t edge = threadIdx.x; edge < edges; edge += kThreads)
        take(edge_run(chunk, kPackets, interior, edge), false, true);
    } else {
      // all threads have to take the same turns, as they meet at barriers
#pragma unroll 1
      for (uint32_t turn = interior.first; turn < interior.last; turn += kThreads)
        take(min(turn + threadIdx.x, interior.last - 1), true, turn + threadIdx.x < interior.last);
#pragma unroll 1
      for (uint32_t edge = 0; edge < edges; edge += kThreads)
        take(edge_run(chunk, kPackets, interior, edge + threadIdx.x), false, true);
    }
  }
}

template <class Tensors>
using Kernel = void (*)(Tensors, Terms);

template <class Tensors, class Storage, class Noise>
Kernel<Tensors> choose_kernel(bool one_term, bool stochastic) {
  constexpr bool kRounds = !std::is_same_v<Storage, Float32>;
  if (kRounds && stochastic) {
    return one_term ? perturb_kernel<Tensors, Storage, Noise, true, kRounds>
                    : perturb_kernel<Tensors, Storage, Noise, false, kRounds>;
  }
  return one_term ? perturb_kernel<Tensors, Storage, Noise, true, false>
                  : perturb_kernel<Tensors, Storage, Noise, false, false>;
}

template <class Tensors, class Storage>
Kernel<Tensors> choose_kernel(bool normal, bool one_term, bool stochastic) {
  return normal ? choose_kernel<Tensors, Storage, NormalNoise>(one_term, stochastic)
                : choose_kernel<Tensors, Storage, SignNoise>(one_term, stochastic);
}

}  // namespace fedspzo
