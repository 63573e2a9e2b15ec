// The CUDA kernel's index arithmetic on the host: its loops over chunks, runs and edges, with the
// same functions, must visit each element of each tensor, and of each row looked up, once. Prints the
// number of cases.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/layout.h"

using namespace fedspzo;

static void fail(const char* what, uint64_t begin, uint64_t end, int packets) {
  std::printf("%s: elements %llu to %llu, %d packets\n", what, (unsigned long long)begin,
              (unsigned long long)end, packets);
  std::exit(1);
}

constexpr uint64_t kChunk = 16384;

// What the kernel does with one chunk, for all threads of a block: counts, for each place of what is
// written, the visits with the index that belongs there, begin + (place - out_begin).
static void visit(const Chunk& chunk, uint64_t begin, uint64_t end, uint64_t out_begin, int packets,
                  bool aligned, std::vector<int>& visits) {
  if (chunk.base % kChunk || chunk.begin > chunk.end || chunk.end > kChunk ||
      (chunk.base + kChunk - 1) >> 34 != chunk.base >> 34)
    fail("chunk", begin, end, packets);
  const uint32_t places = packets * kPacket;
  const auto mark = [&](uint64_t place) {
    const uint64_t index = chunk.base + place, written = uint64_t(chunk.out_place) + place;
    if (index < begin || index >= end || written - out_begin != index - begin)
      fail("outside", begin, end, packets);
    ++visits[written];
  };
  const Interior interior = interior_runs(chunk, packets, aligned);
  for (uint32_t run = interior.first; run < interior.last; ++run)
    for (uint32_t place = 0; place < places; ++place) mark(run * places + place);
  const uint32_t edges =
      last_run(chunk, packets) - first_run(chunk, packets) - (interior.last - interior.first);
  for (uint32_t edge = 0; edge < (edges + kThreads - 1) / kThreads * kThreads; ++edge) {
    const uint32_t run = edge_run(chunk, packets, interior, edge);
    const Run part = run_at(chunk, run, packets);
    for (int place = part.first; place < part.last; ++place) mark(run * places + place);
  }
}

static void check(const std::vector<int>& visits, uint64_t begin, uint64_t end, int packets) {
  for (const int count : visits)
    if (count != 1) fail("visits", begin, end, packets);
}

// One launch over tensors of these sizes, all of which begin at the same index.
static int whole(uint64_t begin, const std::vector<uint64_t>& sizes, int packets, bool aligned) {
  static TensorTable table;
  table.tensors = table.chunks = 0;
  std::vector<std::vector<int>> visits;
  for (const uint64_t size : sizes) {
    if (size == 0) continue;
    add_tensor(table, nullptr, nullptr, begin, size, 0, kChunk);
    visits.emplace_back(size);
  }
  for (uint32_t number = 0; number < table.chunks; ++number) {
    const Chunk chunk = chunk_at(table, number, kChunk);
    const TensorEntry& entry = table.entries[chunk.tensor];
    if (chunk.begin == chunk.end) fail("empty chunk", entry.begin, entry.end, packets);
    visit(chunk, entry.begin, entry.end, 0, packets, aligned, visits[chunk.tensor]);
  }
  for (uint32_t t = 0; t < table.tensors; ++t)
    check(visits[t], table.entries[t].begin, table.entries[t].end, packets);
  return int(table.tensors);
}

// One launch over rows of a width, of a tensor of five, two of which it has not.
static int rows(uint64_t begin, uint64_t width, int packets, bool aligned) {
  const std::vector<int64_t> ids = {4, -1, 0, 3, 3, 5};
  const RowTable table =
      row_table(nullptr, nullptr, begin, 5, width, ids.data(), ids.size(), 0, kChunk);
  std::vector<int> visits(ids.size() * width);
  for (uint32_t number = 0; number < table.chunks; ++number) {
    const Chunk chunk = chunk_at(table, number, kChunk);
    const uint64_t place = number % ids.size();
    const bool missing = ids[place] < 0 || ids[place] >= 5;
    if (chunk.missing != missing) fail("row", begin, width, packets);
    const uint64_t row = missing ? 0 : uint64_t(ids[place]);
    visit(chunk, begin + row * width, begin + (row + 1) * width, place * width, packets, aligned,
          visits);
  }
  check(visits, begin, begin + 5 * width, packets);
  return 1;
}

// Rows so long that what is written has more than 2^32 elements: the first and last chunk of each.
static int long_rows(uint64_t begin) {
  constexpr uint64_t kWidth = (1ull << 33) + 5;
  const int64_t ids[] = {1, 2, 0};
  const RowTable table = row_table(nullptr, nullptr, begin, 3, kWidth, ids, 3, 0, kChunk);
  for (uint32_t place = 0; place < 3; ++place) {
    const uint64_t first = begin + uint64_t(ids[place]) * kWidth, last = first + kWidth - 1;
    const uint32_t after = uint32_t(last / kChunk - first / kChunk);  // chunks
    for (const uint64_t index : {first, last}) {
      const Chunk chunk = chunk_at(table, place + 3 * (index == first ? 0 : after), kChunk);
      const uint64_t part = index - chunk.base;
      if (part < chunk.begin || part >= chunk.end ||
          uint64_t(chunk.out_place) + part != place * kWidth + (index - first))
        fail("long row", first, last, 0);
    }
  }
  return 1;
}

int main() {
  const uint64_t begins[] = {0, 1, 3, 4, 7, 8, 31, 32, 33, 16383, 16384, 16385,
                             (1ull << 34) - 5, 1ull << 34, (1ull << 62) + 6};
  const std::vector<uint64_t> sizes = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255,
                                       4095, 8191, 16383, 16384, 16385, 40000};
  int cases = 0;
  for (const int packets : {1, 2, 4}) {
    for (const bool aligned : {false, true}) {
      for (const uint64_t begin : begins) {
        cases += long_rows(begin);
        cases += whole(begin, sizes, packets, aligned);
        for (const uint64_t width : {1, 3, 8, 576, 1001, 16384, 40000})
          cases += rows(begin, width, packets, aligned);
      }
    }
  }
  std::printf("%d\n", cases);
}
