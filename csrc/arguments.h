// The arguments of fedspzo::perturb_, checked: what the CPU's and CUDA's implementations share.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

namespace fedspzo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Codes of fedspzo_kernels.streams.
constexpr int64_t kNormal = 0, kRademacher = 1;

inline void check_arguments(const std::vector<Tensor>& tensors, const std::vector<int64_t>& keys,
                            const std::vector<int64_t>& offsets, const Tensor& seeds,
                            const Tensor& coeffs, const std::optional<Tensor>& rounding_seed,
                            int64_t stream) {
  STD_TORCH_CHECK(keys.size() == tensors.size(), "keys: ", keys.size(), " for ", tensors.size(),
                  " tensors");
  STD_TORCH_CHECK(offsets.size() == tensors.size(), "offsets: ", offsets.size(), " for ",
                  tensors.size(), " tensors");
  STD_TORCH_CHECK(seeds.scalar_type() == ScalarType::Long && seeds.is_contiguous(),
                  "seeds: pass a contiguous int64 tensor");
  STD_TORCH_CHECK(coeffs.scalar_type() == ScalarType::Float && coeffs.is_contiguous(),
                  "coeffs: pass a contiguous float32 tensor");
  STD_TORCH_CHECK(seeds.numel() == coeffs.numel(), "coeffs: ", coeffs.numel(), " for ",
                  seeds.numel(), " seeds");
  STD_TORCH_CHECK(!rounding_seed || (rounding_seed->scalar_type() == ScalarType::Long &&
                                     rounding_seed->numel() == 1),
                  "rounding_seed: pass an int64 tensor of one element");
  STD_TORCH_CHECK(stream == kNormal || stream == kRademacher, "stream: no code ", stream);
  for (size_t t = 0; t < tensors.size(); ++t) {
    const ScalarType dtype = tensors[t].scalar_type();
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
        "tensors[", t, "]: pass float32, bfloat16 or float16");
    STD_TORCH_CHECK(tensors[t].is_contiguous(), "tensors[", t, "]: pass a contiguous tensor");
  }
}

inline int64_t element_size(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

}  // namespace fedspzo
