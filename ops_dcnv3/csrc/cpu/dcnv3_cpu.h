// DCNv3 on the CPU: raw pointers and sizes, nothing of torch.
//
// The formulas are those of docs/op.md. All tensors are channels last; a "row" is one output row of
// one image, a "group task" is one group of one image.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace dcnv3 {

// 16-bit floats as bits; the kernels convert them to float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
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

// Output rows [begin, end) of batch * out_height.
template <typename T>
using ForwardRows = void (*)(const Problem&, const T* input, const T* offset, const T* mask,
                             T* output, int64_t begin, int64_t end);

// Group tasks [begin, end) of batch * groups. A task owns its channels of grad_input, which must
// start as zeros, and its slices of grad_offset and grad_mask, which are contiguous: no two tasks
// write to the same element, so the result does not depend on the number of threads.
template <typename T>
using BackwardGroups = void (*)(const Problem&, const T* grad_output, const T* input,
                                const T* offset, const T* mask,
                                typename Compute<T>::type* grad_input, T* grad_offset, T* grad_mask,
                                int64_t begin, int64_t end);

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
  BackwardGroups<T> backward;
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
