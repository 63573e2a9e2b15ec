// fedspzo::perturb_ on the CPU: tensors cut into spans, the spans shared out among torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../arguments.h"
#include "../noise.h"
#include "span.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fedspzo {
namespace {

// The best kernels there are, or those FEDSPZO_CPU_CAPABILITY names.
const SpanKernels& kernels() {
  const char* wanted = std::getenv("FEDSPZO_CPU_CAPABILITY");
  for (const SpanKernels* choice : {avx512_kernels(), avx2_kernels(), &portable_kernels()}) {
    if (choice && (!wanted || !*wanted || std::string(wanted) == choice->name)) return *choice;
  }
  STD_TORCH_CHECK(false, "FEDSPZO_CPU_CAPABILITY is '", wanted,
                  "', which this machine or build lacks; set avx512, avx2 or default, or unset it");
}

// IEEE arithmetic for the life of the object, whatever flush-to-zero mode the thread was in.
class IeeeFloats {
 public:
#if defined(__x86_64__)
  IeeeFloats() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~IeeeFloats() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

struct Terms {
  const int64_t* seeds;
  const float* coeffs;
  int64_t count;
  std::optional<uint64_t> rounding_seed;
  int64_t stream;
};

// Elements index to index + count - 1 of the parameter `key`, none beyond a multiple of kSpan.
struct Span {
  void* data;
  ScalarType dtype;
  uint64_t key, index;
  int64_t count;
};

void add_terms(const SpanKernels& kernels, const Span& span, const Terms& terms, float* values) {
  for (int64_t k = 0; k < terms.count; ++k) {
    const Stream stream{span.key, uint64_t(terms.seeds[k])};
    if (terms.stream == kNormal) {
      kernels.add_normal(values, span.index, span.count, stream, terms.coeffs[k]);
    } else {
      constexpr int64_t kPerCounter = 128;
      uint32_t words[kSpan / 32];
      const uint64_t start = span.index / kSpan * kSpan;
      kernels.fill_words(words, start / kPerCounter, kSpan / kPerCounter, stream, 0);
      kernels.add_signs(values, words, int64_t(span.index - start), span.count, terms.coeffs[k]);
    }
  }
}

void perturb_span(const SpanKernels& kernels, const Span& span, const Terms& terms) {
  if (span.dtype == ScalarType::Float) {
    add_terms(kernels, span, terms, static_cast<float*>(span.data));
    return;
  }
  auto* bits = static_cast<uint16_t*>(span.data);
  const bool brain = span.dtype == ScalarType::BFloat16;
  // One term, rounded to nearest: every perturbation of a step. Worth a pass less over the span.
  if (brain && terms.count == 1 && terms.stream == kNormal && !terms.rounding_seed) {
    kernels.add_normal_bfloat16(bits, span.index, span.count, {span.key, uint64_t(terms.seeds[0])},
                                terms.coeffs[0]);
    return;
  }
  alignas(64) float values[kSpan];
  (brain ? kernels.load_bfloat16 : kernels.load_float16)(values, bits, span.count);
  add_terms(kernels, span, terms, values);

  const uint16_t* random = nullptr;
  alignas(64) uint16_t buffer[kSpan];
  if (terms.rounding_seed) {
    // A counter's four words are the 16 random bits of eight elements, in order on a
    // little-endian machine.
    constexpr int64_t kPerCounter = 8;
    const uint64_t start = span.index / kPerCounter;
    const int64_t skipped = int64_t(span.index % kPerCounter);
    const int64_t counters = (skipped + span.count + kPerCounter - 1) / kPerCounter;
    uint32_t words[kSpan / 2];
    kernels.fill_words(words, start, counters, {span.key, *terms.rounding_seed}, kRoundingDomain);
    std::memcpy(buffer, reinterpret_cast<uint16_t*>(words) + skipped, 2 * span.count);
    random = buffer;
  }
  (brain ? kernels.store_bfloat16 : kernels.store_float16)(bits, values, random, span.count);
}

void perturb_(std::vector<Tensor> tensors, std::vector<int64_t> keys, std::vector<int64_t> offsets,
              Tensor seeds, Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(tensors, keys, offsets, seeds, coeffs, rounding_seed, stream);
  Terms terms{seeds.const_data_ptr<int64_t>(), coeffs.const_data_ptr<float>(), seeds.numel(),
              std::nullopt, stream};
  if (rounding_seed) terms.rounding_seed = uint64_t(*rounding_seed->const_data_ptr<int64_t>());

  std::vector<Span> spans;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const ScalarType dtype = tensors[t].scalar_type();
    auto* data = static_cast<char*>(tensors[t].mutable_data_ptr());
    const uint64_t first = uint64_t(offsets[t]), end = first + uint64_t(tensors[t].numel());
    const int64_t size = element_size(dtype);
    for (uint64_t index = first; index < end;) {
      const uint64_t next = std::min(end, (index / kSpan + 1) * kSpan);
      spans.push_back({data + int64_t(index - first) * size, dtype, uint64_t(keys[t]), index,
                       int64_t(next - index)});
      index = next;
    }
  }

  const SpanKernels& chosen = kernels();
  torch::stable::parallel_for(0, int64_t(spans.size()), 1, [&](int64_t begin, int64_t end) {
    const IeeeFloats ieee;
    for (int64_t s = begin; s < end; ++s) perturb_span(chosen, spans[s], terms);
  });
}

std::string cpu_capability() { return kernels().name; }

}  // namespace
}  // namespace fedspzo

STABLE_TORCH_LIBRARY_FRAGMENT(fedspzo, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CPU, m) { m.impl("perturb_", TORCH_BOX(&fedspzo::perturb_)); }

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fedspzo::cpu_capability));
}
