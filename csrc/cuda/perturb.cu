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

namespace fedspzo {
namespace {

constexpr int kBlocksPerProcessor = 8;

using Kernel = void (*)(TensorTable, Terms);

template <class Storage, class Noise, bool kStochastic>
Kernel choose(bool one_term) {
  return one_term ? perturb_kernel<Storage, Noise, true, kStochastic>
                  : perturb_kernel<Storage, Noise, false, kStochastic>;
}

template <class Storage>
Kernel choose(int64_t stream, bool one_term, bool stochastic) {
  if (stream == kNormal) {
    return stochastic ? choose<Storage, NormalNoise, true>(one_term)
                      : choose<Storage, NormalNoise, false>(one_term);
  }
  return stochastic ? choose<Storage, SignNoise, true>(one_term)
                    : choose<Storage, SignNoise, false>(one_term);
}

Kernel choose(ScalarType dtype, int64_t stream, bool one_term, bool stochastic) {
  if (dtype == ScalarType::BFloat16) return choose<Bfloat16>(stream, one_term, stochastic);
  if (dtype == ScalarType::Half) return choose<Float16>(stream, one_term, stochastic);
  return stream == kNormal ? choose<Float32, NormalNoise, false>(one_term)
                           : choose<Float32, SignNoise, false>(one_term);
}

void launch(Kernel kernel, const TensorTable& table, const Terms& terms, int processors,
            cudaStream_t stream) {
  if (table.chunks == 0) return;
  const uint32_t most = uint32_t(processors) * kBlocksPerProcessor;
  kernel<<<(table.chunks < most ? table.chunks : most), kThreads, 0, stream>>>(table, terms);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "perturb_: ", cudaGetErrorString(error));
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

  const torch::stable::accelerator::DeviceGuard guard(device);
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);

  const Terms terms{seeds.const_data_ptr<int64_t>(), coeffs.const_data_ptr<float>(), seeds.numel(),
                    rounding_seed ? rounding_seed->const_data_ptr<int64_t>() : nullptr};
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}) {
    const Kernel kernel =
        choose(dtype, stream, terms.count == 1, terms.rounding_seed && dtype != ScalarType::Float);
    TensorTable table;
    table.tensors = table.chunks = 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (tensors[t].scalar_type() != dtype || tensors[t].numel() == 0) continue;
      const uint64_t begin = uint64_t(offsets[t]), end = begin + uint64_t(tensors[t].numel());
      table.entries[table.tensors++] = {tensors[t].mutable_data_ptr(), begin, end,
                                        uint64_t(keys[t]), table.chunks};
      table.chunks += uint32_t(chunks_of(begin, end, kChunkSize));
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
