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
using dcnv3::check_grad_output;
using dcnv3::make_problem;
using dcnv3::Problem;
using dcnv3::readable;
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

void check_devices(const Tensor& input, const Tensor& other) {
  TORCH_CHECK_VALUE(other.device() == input.device(), "dcnv3: tensors must be on the device of ",
                    "input, ", input.device(), ", got ", other.device());
}

void check(cudaError_t error, const Problem& problem) {
  TORCH_CHECK_VALUE(
      error != cudaErrorInvalidValue,
      "dcnv3: the CUDA kernels take sizes of one image, 8 * channels and 2 * groups * points below "
      "2^30, got an input of ",
      problem.batch, "x", problem.height, "x", problem.width, "x", problem.channels(),
      " and an output of ", problem.out_height, "x", problem.out_width,
      "; use backend='reference'");
  C10_CUDA_CHECK(error);
}

Tensor forward(const Tensor& input_, const Tensor& offset_, const Tensor& mask_,
               at::IntArrayRef window, int64_t groups, double offset_scale, bool remove_center,
               bool mask_is_logits) {
  check_devices(input_, offset_);
  check_devices(input_, mask_);
  const c10::cuda::CUDAGuard guard(input_.device());
  const Tensor input = input_.contiguous();
  const auto [offset, offset_stride] = readable(offset_);
  const auto [mask, mask_stride] = readable(mask_);
  const Problem problem = make_problem(input, offset, mask, offset_stride, mask_stride, window,
                                       groups, offset_scale, remove_center, mask_is_logits);
  const DType dtype = dtype_of(input);
  const Tensor output = at::empty(
      {problem.batch, problem.out_height, problem.out_width, problem.channels()}, input.options());
  check(dcnv3::gpu::forward(problem, dtype, input.const_data_ptr(), offset.const_data_ptr(),
                            mask.const_data_ptr(), output.mutable_data_ptr(),
                            c10::cuda::getCurrentCUDAStream()),
        problem);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_, const Tensor& input_,
                                            const Tensor& offset_, const Tensor& mask_,
                                            at::IntArrayRef window, int64_t groups,
                                            double offset_scale, bool remove_center,
                                            bool mask_is_logits) {
  check_devices(input_, offset_);
  check_devices(input_, mask_);
  check_devices(input_, grad_output_);
  const c10::cuda::CUDAGuard guard(input_.device());
  const Tensor input = input_.contiguous(), grad_output = grad_output_.contiguous();
  const auto [offset, offset_stride] = readable(offset_);
  const auto [mask, mask_stride] = readable(mask_);
  const Problem problem = make_problem(input, offset, mask, offset_stride, mask_stride, window,
                                       groups, offset_scale, remove_center, mask_is_logits);
  check_grad_output(problem, grad_output, input);
  const DType dtype = dtype_of(input);
  const bool ordered = at::globalContext().deterministicAlgorithms();
  const auto sums = input.options().dtype(dtype == DType::kFloat64 ? at::kDouble : at::kFloat);
  const Tensor grad_input =
      ordered ? at::empty(input.sizes(), sums) : at::zeros(input.sizes(), sums);
  const Tensor grad_offset = at::empty(offset.sizes(), offset.options());
  const Tensor grad_mask = at::empty(mask.sizes(), mask.options());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  check(dcnv3::gpu::backward(problem, dtype, grad_output.const_data_ptr(), input.const_data_ptr(),
                             offset.const_data_ptr(), mask.const_data_ptr(),
                             ordered ? nullptr : grad_input.mutable_data_ptr(),
                             grad_offset.mutable_data_ptr(), grad_mask.mutable_data_ptr(), stream),
        problem);
  if (ordered) {
    const Tensor workspace = at::empty({dcnv3::gpu::ordered_workspace_bytes(problem, dtype)},
                                       input.options().dtype(at::kByte));
    check(dcnv3::gpu::backward_input_ordered(problem, dtype, grad_output.const_data_ptr(),
                                             offset.const_data_ptr(), mask.const_data_ptr(),
                                             grad_input.mutable_data_ptr(),
                                             workspace.mutable_data_ptr(), stream),
          problem);
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
