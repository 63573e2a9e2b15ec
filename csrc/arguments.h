// Checks the arguments of the ops, for the CPU and for CUDA.
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

inline void check_scalars(const Tensor& seeds, const Tensor& coeffs,
                          const std::optional<Tensor>& rounding_seed, int64_t stream) {
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
}

inline void check_tensor(const Tensor& tensor, const char* name, size_t number) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
      name, "[", number, "]: pass float32, bfloat16 or float16");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, "[", number, "]: pass a contiguous tensor");
}

// Checks the arguments of perturb_, and those of perturb_out but for `outs`.
inline void check_arguments(const std::vector<Tensor>& tensors, const std::vector<int64_t>& keys,
                            const std::vector<int64_t>& offsets, const Tensor& seeds,
                            const Tensor& coeffs, const std::optional<Tensor>& rounding_seed,
                            int64_t stream) {
  STD_TORCH_CHECK(keys.size() == tensors.size(), "keys: ", keys.size(), " for ", tensors.size(),
                  " tensors");
  STD_TORCH_CHECK(offsets.size() == tensors.size(), "offsets: ", offsets.size(), " for ",
                  tensors.size(), " tensors");
  check_scalars(seeds, coeffs, rounding_seed, stream);
  for (size_t t = 0; t < tensors.size(); ++t) check_tensor(tensors[t], "tensors", t);
}

// Checks the `outs` of perturb_out.
inline void check_outs(const std::vector<Tensor>& sources, const std::vector<Tensor>& outs) {
  STD_TORCH_CHECK(outs.size() == sources.size(), "outs: ", outs.size(), " for ", sources.size(),
                  " sources");
  for (size_t t = 0; t < outs.size(); ++t) {
    check_tensor(outs[t], "outs", t);
    STD_TORCH_CHECK(
        outs[t].scalar_type() == sources[t].scalar_type() && outs[t].numel() == sources[t].numel(),
        "outs[", t, "]: pass the dtype and the size of its source");
  }
}

inline void check_rows(const Tensor& source, const Tensor& rows, const Tensor& out) {
  check_tensor(source, "source", 0);
  check_tensor(out, "out", 0);
  STD_TORCH_CHECK(source.dim() == 2, "source: pass a tensor of two dimensions");
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Long && rows.dim() == 1 && rows.is_contiguous(),
                  "rows: pass a contiguous int64 tensor of one dimension");
  STD_TORCH_CHECK(out.scalar_type() == source.scalar_type() && out.dim() == 2 &&
                      out.size(0) == rows.numel() && out.size(1) == source.size(1),
                  "out: pass the dtype of source, and a row of its width for each of rows");
}

inline int64_t element_size(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

}  // namespace fedspzo
