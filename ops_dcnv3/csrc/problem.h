// Sizes and options of one DCNv3 call, for the kernels of every device.
#pragma once

#include <cstdint>

namespace dcnv3 {

struct Problem {
  int64_t batch, height, width;  // input
  int64_t out_height, out_width;
  int64_t groups, group_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t offset_stride, mask_stride;  // elements between neighbouring output pixels
  double offset_scale;
  bool remove_center, mask_is_logits;

  int64_t channels() const { return groups * group_channels; }
  int64_t points() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
};

// Type in which positions and sums of a storage type are computed.
template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

}  // namespace dcnv3
