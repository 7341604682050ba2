// DCNv3 on the CPU: raw pointers and sizes, nothing of torch.
//
// The formulas are those of docs/op.md. All tensors are channels last; a "row" is one output row of
// one image.
#pragma once

// All that the kernels use: kernels_*.cpp include headers here, before their pragmas.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../problem.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DCNV3_X86_DISPATCH
#endif

namespace dcnv3 {

// 16-bit floats as bits; the kernels convert them to float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Output rows [begin, end) of batch * out_height.
template <typename T>
using ForwardRows = void (*)(const Problem&, const T* input, const T* offset, const T* mask,
                             T* output, int64_t begin, int64_t end);

// Tensors of the backward. grad_input, grad_offset and grad_mask may hold anything before; they,
// grad_output and input are contiguous.
template <typename T>
struct BackwardTensors {
  const T *grad_output, *input, *offset, *mask;
  typename Compute<T>::type* grad_input;
  T *grad_offset, *grad_mask;
};

// Groups of some output rows of one image, and the rows of the image that they may add to.
struct Band {
  int64_t image, first_row, last_row;  // the last one excluded, here and below
  int64_t start_row;                   // comes first; after the last row, those before it
  int64_t lowest, highest;             // -1 and height + 1 where there is no limit
  int64_t first_group, last_group;
  bool starts;  // the sums: sets its rows and groups of grad_input to zero before it adds to them
};

// The gradients of a band, but for what is appended to `far`: groups of output pixels, as
// pixel * groups + group, with a point that reaches rows beyond the limits. Writes to those rows
// and groups of grad_input, and to its own elements of grad_offset and grad_mask.
template <typename T>
using BackwardBand = void (*)(const Problem&, const BackwardTensors<T>&, const Band&,
                              std::vector<int64_t>* far);

// Those of one group in `far`, without limits.
template <typename T>
using BackwardFar = void (*)(const Problem&, const BackwardTensors<T>&, int64_t group,
                             const std::vector<int64_t>& far);

// The loads and multiply-adds of a 3x3 kernel, for `count` pixels and groups, and nothing else
// (bound.h), on as many elements of `data` and `output` as their constants say and four weights.
template <typename T>
using LoadBound = void (*)(const T* data, const typename Compute<T>::type* weight,
                           typename Compute<T>::type* output, int64_t count,
                           int64_t group_channels);
constexpr int kBoundBlock = 32;  // channels at once, at most
constexpr int kBoundShifts = 4;
constexpr int kBoundData = (4 * 9 + kBoundShifts) * kBoundBlock;
constexpr int kBoundOutput = kBoundShifts * kBoundBlock;

template <typename T>
struct Kernels {
  ForwardRows<T> forward;
  BackwardBand<T> backward_band;
  BackwardFar<T> backward_far;
  LoadBound<T> load_bound;
};

// The kernels for the best instruction set of this processor.
template <typename T>
Kernels<T> kernels();

// One per instruction set, each in a source file of its own.
namespace baseline {
template <typename T>
Kernels<T> kernels();
}
#ifdef DCNV3_X86_DISPATCH
namespace avx2 {
template <typename T>
Kernels<T> kernels();
}
namespace avx512 {
template <typename T>
Kernels<T> kernels();
}
#endif

}  // namespace dcnv3
