// Connects the CUDA kernels with the operators. Built where nvcc is.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "arguments.h"
#include "cuda/dcnv3_cuda.h"

namespace {

using at::Tensor;
using dcnv3::Call;
using dcnv3::Problem;
using dcnv3::gpu::DType;

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "dcnv3: float32, float64, bfloat16 or float16 expected, got ",
                       tensor.scalar_type());
  }
}

void check(cudaError_t error, const Problem& problem) {
  TORCH_CHECK_VALUE(
      error != cudaErrorNotSupported,
      "dcnv3: the CUDA kernels take sizes of one image, 8 * channels and 2 * groups * points below "
      "2^30, got an input of ",
      problem.batch, "x", problem.height, "x", problem.width, "x", problem.channels(),
      " and an output of ", problem.out_height, "x", problem.out_width,
      "; use backend='reference'");
  C10_CUDA_CHECK(error);
}

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask,
               at::IntArrayRef window, int64_t groups, double offset_scale, bool remove_center,
               bool mask_is_logits) {
  const Call call(input, offset, mask, window, groups, offset_scale, remove_center, mask_is_logits);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor output = at::empty(call.output_sizes(), call.input.options());
  check(dcnv3::gpu::forward(call.problem, dtype_of(input), call.input.const_data_ptr(),
                            call.offset.const_data_ptr(), call.mask.const_data_ptr(),
                            output.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()),
        call.problem);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_, const Tensor& input,
                                            const Tensor& offset, const Tensor& mask,
                                            at::IntArrayRef window, int64_t groups,
                                            double offset_scale, bool remove_center,
                                            bool mask_is_logits) {
  const Call call(input, offset, mask, window, groups, offset_scale, remove_center, mask_is_logits);
  const Tensor grad_output = call.readable_gradient(grad_output_);
  const c10::cuda::CUDAGuard guard(input.device());
  const DType dtype = dtype_of(input);
  const bool ordered = at::globalContext().deterministicAlgorithms();
  const Tensor grad_input =
      ordered ? at::empty(input.sizes(), call.sums()) : at::zeros(input.sizes(), call.sums());
  const Tensor grad_offset = at::empty(offset.sizes(), offset.options());
  const Tensor grad_mask = at::empty(mask.sizes(), mask.options());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  check(dcnv3::gpu::backward(call.problem, dtype, grad_output.const_data_ptr(),
                             call.input.const_data_ptr(), call.offset.const_data_ptr(),
                             call.mask.const_data_ptr(),
                             ordered ? nullptr : grad_input.mutable_data_ptr(),
                             grad_offset.mutable_data_ptr(), grad_mask.mutable_data_ptr(), stream),
        call.problem);
  if (ordered) {
    const Tensor workspace = at::empty({dcnv3::gpu::ordered_workspace_bytes(call.problem, dtype)},
                                       input.options().dtype(at::kByte));
    check(dcnv3::gpu::backward_input_ordered(
              call.problem, dtype, grad_output.const_data_ptr(), call.offset.const_data_ptr(),
              call.mask.const_data_ptr(), grad_input.mutable_data_ptr(),
              workspace.mutable_data_ptr(), stream),
          call.problem);
  }
  return {grad_input.to(input.scalar_type()), grad_offset, grad_mask};
}

}  // namespace

// Tells Python that the kernels are there, and what they were built with.
TORCH_LIBRARY_FRAGMENT(ops_dcnv3, library) {
  library.def("cuda_version() -> int", [] { return int64_t(CUDART_VERSION); });
}

TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
