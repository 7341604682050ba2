// The kernels, included once per instruction set with
//   DCNV3_NAMESPACE     the namespace of the instruction set
//   DCNV3_VECTOR_BYTES  its register width; 0 for compilers without vector extensions
//
// A tile of neighbouring output pixels is computed in two steps. The first (points.h) computes
// position, bilinear weights and mask once for each sampling point, vectorised over points. The
// second (forward.h, backward.h) walks over pixels and groups with the channels of a group in
// vector registers.
#include "dcnv3_cpu.h"

namespace dcnv3 {
namespace DCNV3_NAMESPACE {
namespace {

// clang-format off: each builds on those before it
#include "simd.h"
#include "points.h"
#include "forward.h"
#include "backward.h"
#include "bound.h"
// clang-format on

}  // namespace

template <typename T>
Kernels<T> kernels() {
  return {forward_rows<T>, backward_band<T>, backward_far<T>, load_bound<T>};
}

template Kernels<float> kernels();
template Kernels<double> kernels();
template Kernels<BFloat16> kernels();
template Kernels<Float16> kernels();

}  // namespace DCNV3_NAMESPACE
}  // namespace dcnv3
