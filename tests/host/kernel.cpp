// The CUDA kernel on the host: csrc/cuda/kernel.cuh by the host's compiler, as a library. A block is
// kThreads threads with real barriers; the blocks of a launch run one after another.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

// CUDA's language, as far as the kernel speaks it. Shared memory is static: one block runs at a time.
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  uint32_t x;
};
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static thread_local int barriers;
static std::barrier<>* block;

static void __syncthreads() {
  ++barriers;
  block->arrive_and_wait();
}

using std::min;

// The four bytes of a (0 to 3) and b (4 to 7) that the digits of `selector` name, the lowest first.
static uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= uint32_t(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}

// Toward zero: the product of two float32 is exact in float64.
static float __fmul_rz(float a, float b) {
  const double product = double(a) * double(b);
  const float nearest = float(product);
  return std::fabs(double(nearest)) > std::fabs(product) ? std::nextafterf(nearest, 0.0f) : nearest;
}

#include "../../csrc/cuda/kernel.cuh"

using namespace fedspzo;

static std::atomic<bool> misaligned;

void fedspzo::check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) misaligned = true;
}

// Returns whether the threads of each block met at the same barriers.
template <class Tensors>
static bool launch(Kernel<Tensors> kernel, const Tensors& table, const Terms& terms,
                   uint32_t blocks) {
  std::barrier<> all(kThreads);
  block = &all;
  gridDim.x = blocks;
  std::vector<int> met(kThreads);
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      threadIdx.x = thread;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel(table, terms);
        __syncthreads();  // the next block has the shared memory of this one
      }
      met[thread] = barriers;
      all.arrive_and_drop();  // nobody waits for a thread that is done
    });
  }
  for (std::thread& thread : threads) thread.join();
  return std::count(met.begin(), met.end(), met[0]) == kThreads;
}

struct Settings {
  const int64_t* seeds;
  const float* coeffs;
  int64_t terms;
  const int64_t* rounding_seed;
  int dtype;   // 0 float32, 1 bfloat16, 2 float16
  int stream;  // 0 normal-v1, 1 rademacher-v1
  uint32_t blocks;
};

// One launch of at most settings.blocks blocks. Returns what a GPU would not have forgiven, or null.
template <class Tensors>
static const char* run(const Tensors& table, const Settings& settings) {
  const auto choose = settings.dtype == 0   ? choose_kernel<Tensors, Float32>
                      : settings.dtype == 1 ? choose_kernel<Tensors, Bfloat16>
                                            : choose_kernel<Tensors, Float16>;
  const bool stochastic = settings.rounding_seed != nullptr;
  const Terms terms{settings.seeds, settings.coeffs, int(settings.terms), settings.rounding_seed};
  misaligned = false;
  if (!launch(choose(settings.stream == 0, settings.terms == 1, stochastic), table, terms,
              min(settings.blocks, table.chunks)))
    return "threads of a block met at different barriers";
  return misaligned ? "a 16-byte access at an address that is no multiple of 16" : nullptr;
}

// perturb_out for tensors of one dtype; where the sources are the outs, perturb_.
extern "C" const char* perturb_out(int64_t tensors, void* const* sources, void* const* outs,
                                   const int64_t* numel, const int64_t* keys,
                                   const int64_t* offsets, const Settings* settings) {
  static TensorTable table;
  table.tensors = table.chunks = 0;
  for (int64_t t = 0; t < tensors; ++t)
    add_tensor(table, sources[t], outs[t], uint64_t(offsets[t]), uint64_t(numel[t]),
               uint64_t(keys[t]), kChunkSize);
  return run(table, *settings);
}

extern "C" const char* perturb_rows(const void* source, int64_t height, int64_t width,
                                    const int64_t* rows, int64_t count, void* out, int64_t key,
                                    int64_t offset, const Settings* settings) {
  return run(row_table(source, out, uint64_t(offset), uint64_t(height), uint64_t(width), rows,
                       uint64_t(count), uint64_t(key), kChunkSize),
             *settings);
}

// The bytes from the table's start at which thread i % kThreads of a block reads for words[i].
extern "C" void table_offsets(const uint32_t* words, uint32_t* offsets, int64_t count) {
  static Table table;
  for (int64_t i = 0; i < count; ++i) {
    threadIdx.x = uint32_t(i % kThreads);
    const Cubic* row = &table.at(bits_of(float(int32_t(words[i] | 1u))));
    offsets[i] = uint32_t(reinterpret_cast<const char*>(row) - reinterpret_cast<char*>(&table));
  }
}
