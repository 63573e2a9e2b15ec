// The CUDA kernel's index arithmetic on the host: its loops over chunks, runs and edges, with the
// same functions, must visit each element of each tensor once. Prints the number of cases.
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

// What the kernel does with one chunk, for all threads of a block.
static void visit(const Chunk& chunk, const TensorEntry& entry, int packets, bool aligned,
                  std::vector<int>& visits) {
  const uint32_t places = packets * kPacket;
  const auto mark = [&](uint64_t index) {
    if (index < entry.begin || index >= entry.end) fail("outside", entry.begin, entry.end, packets);
    ++visits[index - entry.begin];
  };
  const Interior interior = interior_runs(chunk, packets, aligned);
  for (uint32_t run = interior.first; run < interior.last; ++run)
    for (uint32_t place = 0; place < places; ++place) mark(chunk.base + run * places + place);
  const uint32_t edges =
      last_run(chunk, packets) - first_run(chunk, packets) - (interior.last - interior.first);
  for (uint32_t edge = 0; edge < (edges + kThreads - 1) / kThreads * kThreads; ++edge) {
    const Run run = run_at(chunk, edge_run(chunk, packets, interior, edge), packets);
    for (int place = run.first; place < run.last; ++place) mark(run.base + place);
  }
}

int main() {
  constexpr uint64_t kChunk = 16384;
  const uint64_t begins[] = {0, 1, 3, 4, 7, 8, 31, 32, 33, 16383, 16384, 16385,
                             (1ull << 34) - 5, 1ull << 34, (1ull << 62) + 6};
  const uint64_t sizes[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 4095,
                            8191, 16383, 16384, 16385, 40000};
  int cases = 0;
  for (const int packets : {1, 2, 4}) {
    for (const bool aligned : {false, true}) {
      for (const uint64_t begin : begins) {
        // one launch over tensors of all sizes
        TensorTable table{};
        std::vector<std::vector<int>> visits;
        for (const uint64_t size : sizes) {
          if (size == 0) continue;
          add_tensor(table, nullptr, begin, size, 0, kChunk);
          visits.emplace_back(size);
        }
        for (uint32_t number = 0; number < table.chunks; ++number) {
          const Chunk chunk = chunk_at(table, number, kChunk);
          if (chunk.base % kChunk || chunk.begin >= chunk.end || chunk.end - chunk.base > kChunk ||
              (chunk.end - 1) >> 34 != chunk.base >> 34)
            fail("chunk", chunk.begin, chunk.end, packets);
          visit(chunk, table.entries[chunk.tensor], packets, aligned, visits[chunk.tensor]);
        }
        for (uint32_t t = 0; t < table.tensors; ++t, ++cases)
          for (const int count : visits[t])
            if (count != 1) fail("visits", table.entries[t].begin, table.entries[t].end, packets);
      }
    }
  }
  std::printf("%d\n", cases);
}
