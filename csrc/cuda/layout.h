// Which thread takes which elements: plain index arithmetic, shared by the kernel and by the host,
// where a test runs it over many sizes.
//
// A tensor is elements begin to end - 1 of its parameter. It is cut at multiples of kChunk, a chunk
// into packets of kPacket elements at multiples of kPacket. A block takes whole chunks; its threads
// take the packets in turn. A chunk's Philox counters share their high word.
#pragma once

#include <cstdint>

#include "../noise.h"

namespace fedspzo {

constexpr int kThreads = 256;
constexpr int kPacket = 8;
constexpr int kMaxTensors = 512;

struct TensorEntry {
  void* data;           // element `begin`
  uint64_t begin, end;  // indices in the whole parameter
  uint64_t key;
  uint32_t first_chunk;  // of this tensor in the launch
};

// The tensors of one launch, in its kernel arguments: no allocation, no copy, no table to outlive
// the call, so a launch can be captured in a graph.
struct TensorTable {
  TensorEntry entries[kMaxTensors];
  uint32_t tensors, chunks;
};

struct Chunk {
  uint32_t tensor;
  uint64_t begin, end;  // the part of the tensor in this chunk
  uint64_t base;        // the multiple of the chunk's size at or below begin
};

FEDSPZO_FN uint64_t chunks_of(uint64_t begin, uint64_t end, uint64_t chunk_size) {
  return begin == end ? 0 : (end - 1) / chunk_size - begin / chunk_size + 1;
}

// Adds elements begin to begin + numel - 1 of a parameter, if there are any; `data` is the first.
FEDSPZO_FN void add_tensor(TensorTable& table, void* data, uint64_t begin, uint64_t numel,
                           uint64_t key, uint64_t chunk_size) {
  if (numel == 0) return;
  table.entries[table.tensors++] = {data, begin, begin + numel, key, table.chunks};
  table.chunks += uint32_t(chunks_of(begin, begin + numel, chunk_size));
}

// The tensor that chunk number `chunk` of the launch belongs to.
FEDSPZO_FN uint32_t find_tensor(const TensorTable& table, uint32_t chunk) {
  uint32_t low = 0, high = table.tensors;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (table.entries[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

FEDSPZO_FN Chunk chunk_at(const TensorTable& table, uint32_t chunk, uint64_t chunk_size) {
  const uint32_t tensor = find_tensor(table, chunk);
  const TensorEntry& entry = table.entries[tensor];
  const uint64_t number = entry.begin / chunk_size + (chunk - entry.first_chunk);
  const uint64_t base = number * chunk_size, after = base + chunk_size;
  return {tensor, entry.begin > base ? entry.begin : base, entry.end < after ? entry.end : after,
          base};
}

// A thread's turn is a run of `packets` neighbouring packets. All places of run r of a chunk:
// elements base + r * packets * kPacket on. Those that are in the chunk's part of the tensor:
struct Run {
  uint64_t base;
  int first, last;  // places
};

FEDSPZO_FN Run run_at(const Chunk& chunk, uint32_t run, int packets) {
  const int places = packets * kPacket;
  const uint64_t base = chunk.base + uint64_t(run) * places, after = base + places;
  if (base >= chunk.end || after <= chunk.begin) return {base, 0, 0};
  return {base, chunk.begin > base ? int(chunk.begin - base) : 0,
          chunk.end < after ? int(chunk.end - base) : places};
}

// The runs of a chunk that have elements: first to last - 1.
FEDSPZO_FN uint32_t first_run(const Chunk& chunk, int packets) {
  return uint32_t(chunk.begin - chunk.base) / uint32_t(packets * kPacket);
}

FEDSPZO_FN uint32_t last_run(const Chunk& chunk, int packets) {
  const uint32_t places = uint32_t(packets * kPacket);
  return (uint32_t(chunk.end - chunk.base) + places - 1) / places;
}

// The runs that lie in the tensor whole: none where 16-byte accesses are not aligned.
struct Interior {
  uint32_t first, last;
};

FEDSPZO_FN Interior interior_runs(const Chunk& chunk, int packets, bool aligned) {
  const uint32_t places = uint32_t(packets * kPacket);
  const uint32_t first = (uint32_t(chunk.begin - chunk.base) + places - 1) / places;
  const uint32_t last = uint32_t(chunk.end - chunk.base) / places;
  return aligned && first < last ? Interior{first, last} : Interior{0, 0};
}

// Number `edge` of the runs outside the interior; beyond the last one a run without elements.
FEDSPZO_FN uint32_t edge_run(const Chunk& chunk, int packets, const Interior& interior,
                             uint32_t edge) {
  const uint32_t run = first_run(chunk, packets) + edge;
  if (interior.first == interior.last || run < interior.first) return run;
  return run - interior.first + interior.last;
}

}  // namespace fedspzo
