// The ops on CUDA, with one launch for all tensors of a dtype, or for all rows, on the current
// stream.
//
// They allocate nothing and the host does not wait, so a step can be captured in a CUDA graph.
// Seeds and coefficients are read on the device, and may differ in each replay.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../arguments.h"
#include "kernel.cuh"

// This function is in libtorch_cuda, which libtorch loads if torch has CUDA. It is weak, so that a
// torch without CUDA can load the library too, as tests do.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fedspzo {
namespace {

template <class Tensors>
Kernel<Tensors> choose(ScalarType dtype, int64_t stream, bool one_term, bool stochastic) {
  const auto choose_kernel_of = dtype == ScalarType::BFloat16 ? choose_kernel<Tensors, Bfloat16>
                                : dtype == ScalarType::Half   ? choose_kernel<Tensors, Float16>
                                                              : choose_kernel<Tensors, Float32>;
  return choose_kernel_of(stream == kNormal, one_term, stochastic);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "fedspzo: ", cudaGetErrorString(error));
}

void check_device(const Tensor& tensor, int32_t device, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device() == device, name,
                  " must be on CUDA device ", device, ", as the first tensor is");
}

void check_device(const std::vector<Tensor>& tensors, int32_t device, const char* name) {
  for (size_t t = 0; t < tensors.size(); ++t) {
    STD_TORCH_CHECK(tensors[t].is_cuda() && tensors[t].get_device() == device, name, "[", t,
                    "] is not on CUDA device ", device, " with the others");
  }
}

// The launches of one call, on a device's current stream.
class Launches {
 public:
  Launches(int32_t device, const Tensor& seeds, const Tensor& coeffs,
           const std::optional<Tensor>& rounding_seed, int64_t stream)
      : guard_(device), stream_(stream) {
    check_device(seeds, device, "seeds");
    check_device(coeffs, device, "coeffs");
    if (rounding_seed) check_device(*rounding_seed, device, "rounding_seed");
    STD_TORCH_CHECK(seeds.numel() <= 1 << 30, "seeds: ", seeds.numel(),
                    "; pass at most 2^30 at a time");
    terms_ = {seeds.const_data_ptr<int64_t>(), coeffs.const_data_ptr<float>(), int(seeds.numel()),
              rounding_seed ? rounding_seed->const_data_ptr<int64_t>() : nullptr};
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                    "fedspzo: this torch has no CUDA");
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    queue_ = static_cast<cudaStream_t>(current);
    check(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
  }

  // Launches at most as many blocks as the device holds at a time, so that each fills its table
  // once.
  template <class Tensors>
  void operator()(const Tensors& table, ScalarType dtype) const {
    if (table.chunks == 0) return;
    const Kernel<Tensors> kernel =
        choose<Tensors>(dtype, stream_, terms_.count == 1, terms_.rounding_seed != nullptr);
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0));
    const uint32_t most = uint32_t(processors_ * blocks);
    kernel<<<(table.chunks < most ? table.chunks : most), kThreads, 0, queue_>>>(table, terms_);
    check(cudaGetLastError());
  }

 private:
  const torch::stable::accelerator::DeviceGuard guard_;
  const int64_t stream_;
  Terms terms_;
  cudaStream_t queue_;
  int processors_ = 1;
};

void launch_tensors(const Launches& launch, const std::vector<Tensor>& sources,
                    const std::vector<Tensor>& outs, const std::vector<int64_t>& keys,
                    const std::vector<int64_t>& offsets) {
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    TensorTable table;
    table.tensors = table.chunks = 0;
    for (size_t t = 0; t < sources.size(); ++t) {
      if (sources[t].scalar_type() != dtype) continue;
      add_tensor(table, sources[t].const_data_ptr(), outs[t].mutable_data_ptr(),
                 uint64_t(offsets[t]), uint64_t(sources[t].numel()), uint64_t(keys[t]), kChunkSize);
      if (table.tensors == kMaxTensors) {
        launch(table, dtype);
        table.tensors = table.chunks = 0;
      }
    }
    launch(table, dtype);
  }
}

void perturb_(std::vector<Tensor> tensors, std::vector<int64_t> keys, std::vector<int64_t> offsets,
              Tensor seeds, Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(tensors, keys, offsets, seeds, coeffs, rounding_seed, stream);
  if (tensors.empty() || seeds.numel() == 0) return;
  const int32_t device = tensors[0].get_device();
  check_device(tensors, device, "tensors");
  launch_tensors({device, seeds, coeffs, rounding_seed, stream}, tensors, tensors, keys, offsets);
}

void perturb_out(std::vector<Tensor> sources, std::vector<Tensor> outs, std::vector<int64_t> keys,
                 std::vector<int64_t> offsets, Tensor seeds, Tensor coeffs,
                 std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(sources, keys, offsets, seeds, coeffs, rounding_seed, stream);
  check_outs(sources, outs);
  if (sources.empty()) return;
  const int32_t device = sources[0].get_device();
  check_device(sources, device, "sources");
  check_device(outs, device, "outs");
  launch_tensors({device, seeds, coeffs, rounding_seed, stream}, sources, outs, keys, offsets);
}

void perturb_rows(Tensor source, Tensor rows, Tensor out, int64_t key, int64_t offset, Tensor seeds,
                  Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_scalars(seeds, coeffs, rounding_seed, stream);
  check_rows(source, rows, out);
  const int32_t device = source.get_device();
  check_device(source, device, "source");
  check_device(rows, device, "rows");
  check_device(out, device, "out");
  if (out.numel() == 0) return;
  const uint64_t height = uint64_t(source.size(0)), width = uint64_t(source.size(1));
  const uint64_t most = (uint64_t(1) << 31) / chunks_of_row(width, kChunkSize);
  STD_TORCH_CHECK(uint64_t(rows.numel()) <= most, "rows: ", rows.numel(), "; pass at most ", most,
                  " of this width at a time");
  const RowTable table =
      row_table(source.const_data_ptr(), out.mutable_data_ptr(), uint64_t(offset), height, width,
                rows.const_data_ptr<int64_t>(), uint64_t(rows.numel()), uint64_t(key), kChunkSize);
  Launches(device, seeds, coeffs, rounding_seed, stream)(table, source.scalar_type());
}

}  // namespace
}  // namespace fedspzo

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CUDA, m) {
  m.impl("perturb_", TORCH_BOX(&fedspzo::perturb_));
  m.impl("perturb_out", TORCH_BOX(&fedspzo::perturb_out));
  m.impl("perturb_rows", TORCH_BOX(&fedspzo::perturb_rows));
}
