// The checks of tensors that the operators share, whatever the device.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>

#include "problem.h"

namespace dcnv3 {

// Elements between neighbouring pixels if (N, H, W, C) has one such number for all and a dense last
// dimension, else 0. Broadcast dimensions (stride 0) have none.
inline int64_t pixel_stride(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return tensor.size(3);
  if (tensor.size(3) > 1 && tensor.stride(3) != 1) return 0;
  int64_t pixel = 0;  // not known before the first dimension that is longer than 1
  int64_t pixels = 1;
  for (int dim = 2; dim >= 0; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (pixels == 1) pixel = tensor.stride(dim);
    if (pixel < tensor.size(3) || tensor.stride(dim) != pixel * pixels) return 0;
    pixels *= tensor.size(dim);
  }
  return pixels == 1 ? tensor.size(3) : pixel;
}

// The tensor as the kernels can read it, and its pixel stride.
inline std::tuple<at::Tensor, int64_t> readable(const at::Tensor& tensor) {
  const int64_t stride = pixel_stride(tensor);
  if (stride != 0) return {tensor, stride};
  return {tensor.contiguous(), tensor.size(3)};
}

// A call of an operator: its tensors as the kernels can read them, and the problem. Raises where a
// kernel would read outside a tensor; the public function has told the user what is wrong before.
struct Call {
  at::Tensor input, offset, mask;
  Problem problem;

  Call(const at::Tensor& input_, const at::Tensor& offset_, const at::Tensor& mask_,
       at::IntArrayRef window, int64_t groups, double offset_scale, bool remove_center,
       bool mask_is_logits) {
    TORCH_CHECK_VALUE(input_.dim() == 4 && offset_.dim() == 4 && mask_.dim() == 4,
                      "dcnv3: tensors must have 4 dimensions");
    input = input_.contiguous();
    std::tie(offset, problem.offset_stride) = readable(offset_);
    std::tie(mask, problem.mask_stride) = readable(mask_);
    TORCH_CHECK_VALUE(
        window.size() == 8,
        "dcnv3: window must be kernel_size, stride, padding and dilation, (h, w) each, "
        "got ",
        window);
    const auto at_least = [&](size_t first, int64_t minimum) {
      return std::min(window[first], window[first + 1]) >= minimum;
    };
    TORCH_CHECK_VALUE(
        at_least(0, 1) && at_least(2, 1) && at_least(4, 0) && at_least(6, 1),
        "dcnv3: kernel_size, stride and dilation must be positive, padding not negative, got ",
        window);
    TORCH_CHECK_TYPE(offset.dtype() == input.dtype() && mask.dtype() == input.dtype(),
                     "dcnv3: input, offset and mask must have one dtype");
    TORCH_CHECK_VALUE(offset.device() == input.device() && mask.device() == input.device(),
                      "dcnv3: tensors must be on the device of input, ", input.device(), ", got ",
                      offset.device(), " and ", mask.device());
    TORCH_CHECK_VALUE(groups >= 1 && input.size(3) % groups == 0, "dcnv3: groups must divide ",
                      input.size(3), " channels, got ", groups);
    problem.batch = input.size(0);
    problem.height = input.size(1);
    problem.width = input.size(2);
    problem.groups = groups;
    problem.group_channels = input.size(3) / groups;
    problem.kernel_h = window[0];
    problem.kernel_w = window[1];
    problem.stride_h = window[2];
    problem.stride_w = window[3];
    problem.pad_h = window[4];
    problem.pad_w = window[5];
    problem.dilation_h = window[6];
    problem.dilation_w = window[7];
    problem.offset_scale = offset_scale;
    problem.remove_center = remove_center;
    problem.mask_is_logits = mask_is_logits;
    const int64_t span_h =
        problem.height + 2 * problem.pad_h - (problem.dilation_h * (problem.kernel_h - 1) + 1);
    const int64_t span_w =
        problem.width + 2 * problem.pad_w - (problem.dilation_w * (problem.kernel_w - 1) + 1);
    TORCH_CHECK_VALUE(span_h >= 0 && span_w >= 0 && problem.points() >= 1,
                      "dcnv3: the kernel does not fit into the padded input");
    problem.out_height = span_h / problem.stride_h + 1;
    problem.out_width = span_w / problem.stride_w + 1;
    const int64_t per_pixel = groups * problem.points();
    const auto check = [&](const at::Tensor& tensor, int64_t size) {
      TORCH_CHECK_VALUE(tensor.size(0) == problem.batch && tensor.size(1) == problem.out_height &&
                            tensor.size(2) == problem.out_width && tensor.size(3) == size,
                        "dcnv3: offset or mask has shape ", tensor.sizes(), ", expected [",
                        problem.batch, ", ", problem.out_height, ", ", problem.out_width, ", ",
                        size, "]");
    };
    check(offset, 2 * per_pixel);
    check(mask, per_pixel);
    TORCH_CHECK_VALUE(problem.height * problem.width <= std::numeric_limits<int32_t>::max(),
                      "dcnv3: an image must have fewer than 2^31 pixels, got ", problem.height, "x",
                      problem.width);
  }

  std::array<int64_t, 4> output_sizes() const {
    return {problem.batch, problem.out_height, problem.out_width, problem.channels()};
  }

  // What grad_input is summed in: halves in float32.
  at::TensorOptions sums() const {
    return input.options().dtype(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  }

  // The gradient of the output as the kernels can read it.
  at::Tensor readable_gradient(const at::Tensor& grad_output) const {
    TORCH_CHECK_VALUE(grad_output.sizes() == at::IntArrayRef(output_sizes()) &&
                          grad_output.dtype() == input.dtype() &&
                          grad_output.device() == input.device(),
                      "dcnv3: grad_output must be like the output, got shape ", grad_output.sizes(),
                      ", dtype ", grad_output.dtype(), " and device ", grad_output.device());
    return grad_output.contiguous();
  }
};

}  // namespace dcnv3
