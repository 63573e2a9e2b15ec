// fedspzo::perturb_ on CUDA: one launch for all tensors of a dtype, on the current stream.
//
// Nothing is allocated and the host waits for nothing, so a step can be captured in a CUDA graph;
// seeds and coefficients are read on the device, and may differ in every replay.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../arguments.h"
#include "kernel.cuh"

// It is in libtorch_cuda, which libtorch brings along where torch has CUDA. Weak, so that a torch
// without CUDA can load the library too: as tests do.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fedspzo {
namespace {

Kernel choose(ScalarType dtype, int64_t stream, bool one_term, bool stochastic) {
  const bool normal = stream == kNormal;
  if (dtype == ScalarType::BFloat16) return choose_kernel<Bfloat16>(normal, one_term, stochastic);
  if (dtype == ScalarType::Half) return choose_kernel<Float16>(normal, one_term, stochastic);
  return choose_kernel<Float32>(normal, one_term, stochastic);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "perturb_: ", cudaGetErrorString(error));
}

// One launch, of no more blocks than the device holds at a time: each fills its table once.
void launch(Kernel kernel, const TensorTable& table, const Terms& terms, int processors,
            cudaStream_t stream) {
  if (table.chunks == 0) return;
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0));
  const uint32_t most = uint32_t(processors * blocks);
  kernel<<<(table.chunks < most ? table.chunks : most), kThreads, 0, stream>>>(table, terms);
  check(cudaGetLastError());
}

void perturb_(std::vector<Tensor> tensors, std::vector<int64_t> keys, std::vector<int64_t> offsets,
              Tensor seeds, Tensor coeffs, std::optional<Tensor> rounding_seed, int64_t stream) {
  check_arguments(tensors, keys, offsets, seeds, coeffs, rounding_seed, stream);
  if (tensors.empty() || seeds.numel() == 0) return;
  const int32_t device = tensors[0].get_device();
  for (size_t t = 0; t < tensors.size(); ++t) {
    STD_TORCH_CHECK(tensors[t].is_cuda() && tensors[t].get_device() == device, "tensors[", t,
                    "] is not on CUDA device ", device, " with the others");
  }
  for (const Tensor* scalars : {&seeds, &coeffs, rounding_seed ? &*rounding_seed : &seeds}) {
    STD_TORCH_CHECK(scalars->is_cuda() && scalars->get_device() == device,
                    "seeds, coeffs and rounding_seed must be on CUDA device ", device);
  }

  STD_TORCH_CHECK(seeds.numel() <= 1 << 30, "seeds: ", seeds.numel(),
                  "; pass at most 2^30 at a time");

  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                  "perturb_: this torch has no CUDA");
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
  int processors = 1;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));

  const Terms terms{seeds.const_data_ptr<int64_t>(), coeffs.const_data_ptr<float>(),
                    int(seeds.numel()),
                    rounding_seed ? rounding_seed->const_data_ptr<int64_t>() : nullptr};
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    const Kernel kernel = choose(dtype, stream, terms.count == 1, terms.rounding_seed != nullptr);
    TensorTable table;
    table.tensors = table.chunks = 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (tensors[t].scalar_type() != dtype) continue;
      add_tensor(table, tensors[t].mutable_data_ptr(), uint64_t(offsets[t]),
                 uint64_t(tensors[t].numel()), uint64_t(keys[t]), kChunkSize);
      if (table.tensors == kMaxTensors) {
        launch(kernel, table, terms, processors, static_cast<cudaStream_t>(current));
        table.tensors = table.chunks = 0;
      }
    }
    launch(kernel, table, terms, processors, static_cast<cudaStream_t>(current));
  }
}

}  // namespace
}  // namespace fedspzo

STABLE_TORCH_LIBRARY_IMPL(fedspzo, CUDA, m) { m.impl("perturb_", TORCH_BOX(&fedspzo::perturb_)); }
