// Which thread takes which elements: plain index arithmetic, shared by the kernel and by the host,
// where a test runs it over many sizes.
//
// A tensor is elements begin to end - 1 of its parameter. It is cut at multiples of kChunk, a chunk
// into packets of kPacket elements at multiples of kPacket. A block takes whole chunks; its threads
// take the packets in turn. A chunk's Philox counters share their high word. A row that is looked
// up is cut as a tensor is.
#pragma once

#include <cstdint>

#include "../noise.h"

namespace fedspzo {

constexpr int kThreads = 256;
constexpr int kPacket = 8;
constexpr int kMaxTensors = 512;

struct TensorEntry {
  const void* source;   // what is read for element `begin`
  void* out;            // what is written for it: in place the same memory
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

// The rows of a tensor that one launch looks up, one after another in what is written.
struct RowTable {
  TensorEntry entries[1];
  const int64_t* ids;      // in the device's memory
  uint32_t count;          // of ids
  uint64_t height, width;  // of the tensor
  uint32_t chunks;
};

struct Chunk {
  uint32_t tensor;
  uint64_t base;        // a multiple of the chunk's size
  uint32_t begin, end;  // the part of the tensor in this chunk, from base on; the same if none is
  int64_t out_place;    // of the base in what is written, negative where that begins after it
  bool missing;         // of a row that the tensor has not
};

FEDSPZO_FN uint64_t chunks_of(uint64_t begin, uint64_t end, uint64_t chunk_size) {
  return begin == end ? 0 : (end - 1) / chunk_size - begin / chunk_size + 1;
}

// Adds elements begin to begin + numel - 1 of a parameter, if there are any; `source` and `out`
// have the first.
FEDSPZO_FN void add_tensor(TensorTable& table, const void* source, void* out, uint64_t begin,
                           uint64_t numel, uint64_t key, uint64_t chunk_size) {
  if (numel == 0) return;
  table.entries[table.tensors++] = {source, out, begin, begin + numel, key, table.chunks};
  table.chunks += uint32_t(chunks_of(begin, begin + numel, chunk_size));
}

// The most chunks that a row meets, wherever it begins.
FEDSPZO_FN uint64_t chunks_of_row(uint64_t width, uint64_t chunk_size) {
  return (width + chunk_size - 2) / chunk_size + 1;
}

// `source` has element `begin` of a parameter, in rows of `width`, `out` the first row to write.
// There must be no more than 2^31 chunks.
FEDSPZO_FN RowTable row_table(const void* source, void* out, uint64_t begin, uint64_t height,
                              uint64_t width, const int64_t* ids, uint64_t count, uint64_t key,
                              uint64_t chunk_size) {
  const uint64_t chunks = count * chunks_of_row(width, chunk_size);
  const TensorEntry entry{source, out, begin, begin + height * width, key, 0};
  return {{entry}, ids, uint32_t(count), height, width, uint32_t(chunks)};
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

// The part of elements begin to end - 1 in chunk number `number` of those that they meet. What is
// written for element `begin` has the place `out_place`.
FEDSPZO_FN Chunk part_at(uint32_t tensor, uint64_t begin, uint64_t end, uint64_t number,
                         uint64_t out_place, bool missing, uint64_t chunk_size) {
  const uint64_t base = (begin / chunk_size + number) * chunk_size, after = base + chunk_size;
  return {tensor,
          base,
          begin > base ? uint32_t(begin - base) : 0,
          end <= base ? 0 : uint32_t((end < after ? end : after) - base),
          int64_t(out_place + (base - begin)),
          missing};
}

// Chunk number `chunk` of the launch.
FEDSPZO_FN Chunk chunk_at(const TensorTable& table, uint32_t chunk, uint64_t chunk_size) {
  const uint32_t tensor = find_tensor(table, chunk);
  const TensorEntry& entry = table.entries[tensor];
  return part_at(tensor, entry.begin, entry.end, chunk - entry.first_chunk, 0, false, chunk_size);
}

// The first chunks of all rows come first: most rows have no others.
FEDSPZO_FN Chunk chunk_at(const RowTable& table, uint32_t chunk, uint64_t chunk_size) {
  const uint32_t number = chunk / table.count, place = chunk % table.count;
  const uint64_t row = uint64_t(table.ids[place]);  // a large number where it is negative
  const bool missing = row >= table.height;
  const uint64_t begin = table.entries[0].begin + (missing ? 0 : row * table.width);
  return part_at(0, begin, begin + table.width, number, place * table.width, missing, chunk_size);
}

// A thread's turn is a run of `packets` neighbouring packets. Run r of a chunk has the places from
// base + r * packets * kPacket on. Those that are in the chunk's part of the tensor:
struct Run {
  int first, last;
};

FEDSPZO_FN Run run_at(const Chunk& chunk, uint32_t run, int packets) {
  const uint32_t places = uint32_t(packets * kPacket), base = run * places;
  if (base >= chunk.end || base + places <= chunk.begin) return {0, 0};
  return {chunk.begin > base ? int(chunk.begin - base) : 0,
          chunk.end < base + places ? int(chunk.end - base) : int(places)};
}

// The runs of a chunk that have elements: first to last - 1.
FEDSPZO_FN uint32_t first_run(const Chunk& chunk, int packets) {
  return chunk.begin / uint32_t(packets * kPacket);
}

FEDSPZO_FN uint32_t last_run(const Chunk& chunk, int packets) {
  const uint32_t places = uint32_t(packets * kPacket);
  return (chunk.end + places - 1) / places;
}

// The runs that lie in the tensor whole: none where 16-byte accesses are not aligned.
struct Interior {
  uint32_t first, last;
};

FEDSPZO_FN Interior interior_runs(const Chunk& chunk, int packets, bool aligned) {
  const uint32_t places = uint32_t(packets * kPacket);
  const uint32_t first = (chunk.begin + places - 1) / places, last = chunk.end / places;
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
