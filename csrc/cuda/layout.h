// The division of elements among threads. It is index arithmetic, so that a test can run it on the
// host over many sizes.
//
// A tensor is elements begin to end - 1 of its parameter. It is cut into chunks at multiples of
// kChunkSize, and a chunk into packets at multiples of kPacket. A block takes whole chunks, and its
// threads take the packets in turn. A chunk's Philox counters share their high word. A row that is
// looked up is cut like a tensor.
#pragma once

#include <cstdint>

#include "../noise.h"

namespace fedspzo {

constexpr int kThreads = 256;
constexpr int kPacket = 8;
constexpr int kMaxTensors = 512;

struct TensorEntry {
  const void* source;   // address at which element `begin` is read
  void* out;            // address at which it is written; the same if in place
  uint64_t begin, end;  // indices in the whole parameter
  uint64_t key;
  uint32_t first_chunk;  // number of the tensor's first chunk in the launch
};

// The tensors of one launch. The table is a kernel argument, which needs no allocation and no copy
// and does not have to outlive the call. So a launch can be captured in a graph.
struct TensorTable {
  TensorEntry entries[kMaxTensors];
  uint32_t tensors, chunks;
};

// The rows of a tensor that one launch looks up. They are written one after another.
struct RowTable {
  TensorEntry entries[1];
  const int64_t* ids;      // the rows, in the device's memory
  uint32_t count;          // number of ids
  uint64_t height, width;  // shape of the tensor
  uint32_t chunks;
};

struct Chunk {
  uint32_t tensor;
  uint64_t base;        // index in the parameter, a multiple of the chunk's size
  uint32_t begin, end;  // the tensor's part of this chunk, relative to base; equal if it is empty
  int64_t out_place;    // place of the base in the output, negative if the output begins after it
  bool missing;         // true for a row that the tensor lacks
};

FEDSPZO_FN uint64_t chunks_of(uint64_t begin, uint64_t end, uint64_t chunk_size) {
  return begin == end ? 0 : (end - 1) / chunk_size - begin / chunk_size + 1;
}

// Adds elements begin to begin + numel - 1 of a parameter, unless numel is 0. `source` and `out`
// are the addresses of the first.
FEDSPZO_FN void add_tensor(TensorTable& table, const void* source, void* out, uint64_t begin,
                           uint64_t numel, uint64_t key, uint64_t chunk_size) {
  if (numel == 0) return;
  table.entries[table.tensors++] = {source, out, begin, begin + numel, key, table.chunks};
  table.chunks += uint32_t(chunks_of(begin, begin + numel, chunk_size));
}

// Returns the largest number of chunks that a row can overlap, wherever it begins.
FEDSPZO_FN uint64_t chunks_of_row(uint64_t width, uint64_t chunk_size) {
  return (width + chunk_size - 2) / chunk_size + 1;
}

// Makes the table of a lookup. `source` is the address of element `begin` of a parameter, which has
// rows of `width`, and `out` that of the first row to write. There must be at most 2^31 chunks.
FEDSPZO_FN RowTable row_table(const void* source, void* out, uint64_t begin, uint64_t height,
                              uint64_t width, const int64_t* ids, uint64_t count, uint64_t key,
                              uint64_t chunk_size) {
  const uint64_t chunks = count * chunks_of_row(width, chunk_size);
  const TensorEntry entry{source, out, begin, begin + height * width, key, 0};
  return {{entry}, ids, uint32_t(count), height, width, uint32_t(chunks)};
}

// Returns the number of the tensor to which a chunk of the launch belongs.
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

// Returns the chunk with number `number` of those that elements begin to end - 1 overlap. Element
// `begin` is written at the place `out_place`.
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

// Returns a chunk of the launch by its number.
FEDSPZO_FN Chunk chunk_at(const TensorTable& table, uint32_t chunk, uint64_t chunk_size) {
  const uint32_t tensor = find_tensor(table, chunk);
  const TensorEntry& entry = table.entries[tensor];
  return part_at(tensor, entry.begin, entry.end, chunk - entry.first_chunk, 0, false, chunk_size);
}

// Numbers the first chunks of all rows first, as most rows have no others.
FEDSPZO_FN Chunk chunk_at(const RowTable& table, uint32_t chunk, uint64_t chunk_size) {
  const uint32_t number = chunk / table.count, place = chunk % table.count;
  const uint64_t row = uint64_t(table.ids[place]);  // a negative row becomes a large number
  const bool missing = row >= table.height;
  const uint64_t begin = table.entries[0].begin + (missing ? 0 : row * table.width);
  return part_at(0, begin, begin + table.width, number, place * table.width, missing, chunk_size);
}

// A thread's turn is a run of `packets` neighbouring packets. Run r of a chunk begins at the place
// base + r * packets * kPacket. A `Run` tells the places of it that are in the tensor, first to
// last - 1.
struct Run {
  int first, last;
};

FEDSPZO_FN Run run_at(const Chunk& chunk, uint32_t run, int packets) {
  const uint32_t places = uint32_t(packets * kPacket), base = run * places;
  if (base >= chunk.end || base + places <= chunk.begin) return {0, 0};
  return {chunk.begin > base ? int(chunk.begin - base) : 0,
          chunk.end < base + places ? int(chunk.end - base) : int(places)};
}

// The runs of a chunk that have elements are first_run to last_run - 1.
FEDSPZO_FN uint32_t first_run(const Chunk& chunk, int packets) {
  return chunk.begin / uint32_t(packets * kPacket);
}

FEDSPZO_FN uint32_t last_run(const Chunk& chunk, int packets) {
  const uint32_t places = uint32_t(packets * kPacket);
  return (chunk.end + places - 1) / places;
}

// The runs that lie entirely in the tensor. There are none if 16-byte accesses are not aligned.
struct Interior {
  uint32_t first, last;
};

FEDSPZO_FN Interior interior_runs(const Chunk& chunk, int packets, bool aligned) {
  const uint32_t places = uint32_t(packets * kPacket);
  const uint32_t first = (chunk.begin + places - 1) / places, last = chunk.end / places;
  return aligned && first < last ? Interior{first, last} : Interior{0, 0};
}

// Returns the run with number `edge` of those outside the interior. Beyond the last one it returns
// a run without elements.
FEDSPZO_FN uint32_t edge_run(const Chunk& chunk, int packets, const Interior& interior,
                             uint32_t edge) {
  const uint32_t run = first_run(chunk, packets) + edge;
  if (interior.first == interior.last || run < interior.first) return run;
  return run - interior.first + interior.last;
}

}  // namespace fedspzo
