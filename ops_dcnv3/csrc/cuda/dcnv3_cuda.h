// DCNv3 on NVIDIA GPUs: raw pointers, sizes and a stream, nothing of torch.
//
// The formulas are those of docs/op.md, which also describes how the work is divided. No function
// allocates, waits or prints, so all may be captured in a graph; each returns the first error of
// its launches. Tensors are dense, offset and mask but for the pixel strides of the problem.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../problem.h"

namespace dcnv3 {
namespace gpu {

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

// grad_input is summed in float64 for float64 tensors and in float32 for all others.
inline int64_t sum_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// cudaErrorNotSupported from the functions below: the sizes are beyond the kernels. They take any
// number of elements, but sizes of one image and strides must stay below 2^30.
cudaError_t forward(const Problem& problem, DType dtype, const void* input, const void* offset,
                    const void* mask, void* output, cudaStream_t stream);

// Gradients with respect to offset and mask, both dense, and to input unless that is null.
// grad_input must start as zeros, at a multiple of 16 bytes. Its sums are made with atomics, in no
// fixed order.
cudaError_t backward(const Problem& problem, DType dtype, const void* grad_output,
                     const void* input, const void* offset, const void* mask, void* grad_input,
                     void* grad_offset, void* grad_mask, cudaStream_t stream);

// The gradient with respect to input alone, each element summed by one thread in a fixed order.
// grad_input needs no initial value; it and the workspace start at multiples of 16 bytes.
cudaError_t backward_input_ordered(const Problem& problem, DType dtype, const void* grad_output,
                                   const void* offset, const void* mask, void* grad_input,
                                   void* workspace, cudaStream_t stream);

// Size of that workspace.
int64_t ordered_workspace_bytes(const Problem& problem, DType dtype);

}  // namespace gpu
}  // namespace dcnv3
