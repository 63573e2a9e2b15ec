// The ops on the CPU. Tensors are cut into spans, which torch's threads share.
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

// Returns the fastest kernels that are available, or those that FEDSPZO_CPU_CAPABILITY names.
const SpanKernels& kernels() {
  const char* wanted = std::getenv("FEDSPZO_CPU_CAPABILITY");
  for (const SpanKernels* choice : {avx512_kernels(), avx2_kernels(), &portable_kernels()}) {
    if (choice && (!wanted || !*wanted || std::string(wanted) == choice->name)) return *choice;
  }
  STD_TORCH_CHECK(false, "FEDSPZO_CPU_CAPABILITY is '", wanted,
                  "', which this machine or build lacks; set avx512, avx2 or default, or unset it");
}

// Switches the thread to IEEE arithmetic for the life of the object, as the caller's thread may
// flush subnormals to zero.
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

// Elements index to index + count - 1 of the parameter `key`. They cross no multiple of kSpan.
// `source` and `out` may be the same memory.
struct Span {
  const void* source;
  void* out;
  ScalarType dtype;
  uint64_t key, index;
  int64_t count;
};

// The words whose bits, from bit `first` on, are the signs of a span's elements.
struct Signs {
  uint32_t words[kSpan / 32];
  int64_t first;

  Signs(const SpanKernels& kernels, const Span& span, Stream stream) {
    constexpr int64_t kPerCounter = 128;
    const uint64_t start = span.index / kSpan * kSpan;
    first = int64_t(span.index - start);
    kernels.fill_words(words, start / kPerCounter, kSpan / kPerCounter, stream, 0);
  }
};

void add_terms(const SpanKernels& kernels, const Span& span, const Terms& terms,
               const float* source, float* values) {
  if (source != values && terms.count == 0) {
    std::memcpy(values, source, size_t(span.count) * sizeof(float));
  }
  for (int64_t k = 0; k < terms.count; ++k) {
    const Stream stream{span.key, uint64_t(terms.seeds[k])};
    const float* from = k == 0 ? source : values;
    if (terms.stream == kNormal) {
      kernels.add_normal(from, values, span.index, span.count, stream, terms.coeffs[k]);
    } else {
      const Signs signs(kernels, span, stream);
      kernels.add_signs(from, values, signs.words, signs.first, span.count, terms.coeffs[k]);
    }
  }
}

// Adds a single term to bfloat16 elements, rounded to nearest.
void add_term_bfloat16(const SpanKernels& kernels, const Span& span, const Terms& terms,
                       const uint16_t* source, uint16_t* out) {
  const Stream stream{span.key, uint64_t(terms.seeds[0])};
  const float coeff = terms.coeffs[0];
  if (terms.stream == kNormal) {
    kernels.add_normal_bfloat16(source, out, span.index, span.count, stream, coeff);
  } else {
    const Signs signs(kernels, span, stream);
    kernels.add_signs_bfloat16(source, out, signs.words, signs.first, span.count, coeff);
  }
}

void perturb_span(const SpanKernels& kernels, const Span& span, const Terms& terms) {
  if (span.dtype == ScalarType::Float) {
    add_terms(kernels, span, terms, static_cast<const float*>(span.source),
              static_cast<float*>(span.out));
    return;
  }
  const auto* source = static_cast<const uint16_t*>(span.source);
  auto* out = static_cast<uint16_t*>(span.out);
  const bool brain = span.dtype == ScalarType::BFloat16;
  // One term, rounded to nearest, is the common case: each perturbation of a step. A kernel of its
  // own saves a pass over the span.
  if (brain && terms.count == 1 && !terms.rounding_seed) {
    add_term_bfloat16(kernels, span, terms, source, out);
    return;
  }
  alignas(64) float values[kSpan];
  (brain ? kernels.load_bfloat16 : kernels.load_float16)(values, source, span.count);
  add_terms(kernels, span, terms, values, values);

  const uint16_t* random = nullptr;
  alignas(64) uint16_t buffer[kSpan];
  if (terms.rounding_seed) {
    // A counter's four words hold the 16 random bits of eight elements, in order on a little-endian
    // machine.
    constexpr int64_t kPerCounter = 8;
    const uint64_t start = span.index / kPerCounter;
    const int64_t skipped = int64_t(span.index % kPerCounter);
    const int64_t counters = (skipped + span.count + kPerCounter - 1) / kPerCounter;
    uint32_t words[kSpan / 2];
    kernels.fill_words(words, start, counters, {span.key, *terms.rounding_seed}, kRoundingDomain);
    std::memcpy(buffer, reinterpret_cast<uint16_t*>(words) + skipped, 2 * span.count);
    random = buffer;
  }
  (brain ? kernels.store_bfloat16 : kernels.store_float16)(out, values, random, span.count);
}

Terms terms_of(const Tensor& seeds, const Tensor& coeffs,
               const std::optional<Tensor>& rounding_seed, int64_t stream) {
  Terms terms{seeds.const_data_ptr<int64_t>(), coeffs.const_data_ptr<float>(), seeds.numel(),
              std::nullopt, stream};
  if (rounding_seed) terms.rounding_seed = uint64_t(*rounding_seed->const_data_ptr<int64_t>());
  return terms;
}

// Appends the spans of elements first to first + count - 1 of the parameter `key`.
void cut(std::vector<Span>& spans, const void* source, void* out, ScalarType dtype, uint64_t key,
         uint64_t first, int64_t count) {
  const uint64_t end = first + uint64_t(count);
  const int64_t size = element_size(dtype);
  for (uint64_t index = first; index < end;) {
    const uint64_t next = std::min(end, (index / kSpan + 1) * kSpan);
    const int64_t bytes = int64_t(index - first) * size;
    spans.push_back({static_cast<const char*>(source) + bytes, static_cast<char*>(out) + bytes,
                     dtype, key, index, int64_t(next - index)});
    index = next;
  }
}

void perturb_spans(const std::vector<Span>& spans, const Terms& terms) {
  // Number of additions that take about as long as waking a thread.
  constexpr int64_t kWorth = 1 << 15;
  int64_t elements = 0;
  for (const Span& span : spans) elements += span.count;
  const int64_t count = int64_t(spans.size());
  const int64_t additions = elements * std::max<int64_t>(terms.count, 1);
  const int64_t grain = std::max<int64_t>(1, kWorth * count / std::max<int64_t>(additions, 1));

  const SpanKernels& chosen = kernels();
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const IeeeFloats ieee;
    for (int64_t s = begin; s < end; ++s) perturb_span(chosen, spans[s], terms);
  });
}

void perturb_tensors(const std::vector<Tensor>& sources, const std::vector<Tensor>& outs,
                     const std::vector<int64_t>& keys, const std::vector<int64_t>& offsets,
                     const Terms& terms) {
  std::vector<Span> spans;
  for (size_t t = 0; t < sources.size(); ++t) {
    cut(spans, sources[t].const_data_ptr(), outs[t].mutable_data_ptr(), sources[t].scalar_type(),
        uint64_t(keys[t]), uint64_t(offsets[t]), sources[t].numel());
  }
  perturb_spans(spans, terms);
}

void perturb_(std::vector<Tensor> tensors, std::vector<int64_t> keys, std::vector<int64_t> offsets,
              Tensor seeds, Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(tensors, keys, offsets, seeds, coeffs, rounding_seed, stream);
  perturb_tensors(tensors, tensors, keys, offsets, terms_of(seeds, coeffs, rounding_seed, stream));
}

void perturb_out(std::vector<Tensor> sources, std::vector<Tensor> outs, std::vector<int64_t> keys,
                 std::vector<int64_t> offsets, Tensor seeds, Tensor coeffs,
                 std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(sources, keys, offsets, seeds, coeffs, rounding_seed, stream);
  check_outs(sources, outs);
  perturb_tensors(sources, outs, keys, offsets, terms_of(seeds, coeffs, rounding_seed, stream));
}

void perturb_rows(Tensor source, Tensor rows, Tensor out, int64_t key, int64_t offset, Tensor seeds,
                  Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_scalars(seeds, coeffs, rounding_seed, stream);
  check_rows(source, rows, out);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t count = source.size(0), width = source.size(1);
  const int64_t bytes = width * element_size(source.scalar_type());
  const auto* from = static_cast<const char*>(source.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  std::vector<Span> spans;
  for (int64_t r = 0; r < rows.numel(); ++r) {
    STD_TORCH_CHECK(row[r] >= 0 && row[r] < count, "rows[", r, "] is ", row[r],
                    "; pass indices in [0, ", count, ")");
    cut(spans, from + row[r] * bytes, to + r * bytes, source.scalar_type(), uint64_t(key),
        uint64_t(offset) + uint64_t(row[r]) * uint64_t(width), width);
  }
  perturb_spans(spans, terms_of(seeds, coeffs, rounding_seed, stream));
}

std::string cpu_capability() { return kernels().name; }

}  // namespace
}  // namespace fedspzo

STABLE_TORCH_LIBRARY_FRAGMENT(fedspzo, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CPU, m) {
  m.impl("perturb_", TORCH_BOX(&fedspzo::perturb_));
  m.impl("perturb_out", TORCH_BOX(&fedspzo::perturb_out));
  m.impl("perturb_rows", TORCH_BOX(&fedspzo::perturb_rows));
}

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fedspzo::cpu_capability));
}
