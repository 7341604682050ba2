// Connects the CPU kernels with the operators.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <tuple>

#include "arguments.h"
#include "cpu/backward_bands.h"
#include "cpu/dcnv3_cpu.h"

namespace {

using at::Tensor;
using dcnv3::Call;
using dcnv3::Problem;

// Storage type of the kernels for a torch dtype.
template <typename Visit>
void visit_dtype(const Tensor& tensor, Visit visit) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return visit(float());
    case at::kDouble:
      return visit(double());
    case at::kBFloat16:
      return visit(dcnv3::BFloat16());
    case at::kHalf:
      return visit(dcnv3::Float16());
    default:
      TORCH_CHECK_TYPE(false, "dcnv3: float32, float64, bfloat16 or float16 expected, got ",
                       tensor.scalar_type());
  }
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Output rows of one chunk of work: enough for the hand-over to a thread to pay.
int64_t rows_per_chunk(const Problem& problem) {
  const int64_t row = problem.out_width * problem.channels() * problem.points();
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, row));
}

// An uninitialised tensor. From 32 MiB on, glibc takes the memory of each from the system and gives
// it back, so every call pays for all pages anew; where the system allows, it does so with pages of
// 2 MiB instead of 4 KiB, of which there are 512 times as many.
Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const Tensor tensor = at::empty(sizes, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (tensor.nbytes() >= size_t(32) << 20) {
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (start + page - 1) / page * page;
    // Only advice: it may fail, and nothing depends on it.
    madvise(reinterpret_cast<void*>(first), start + tensor.nbytes() - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask,
               at::IntArrayRef window, int64_t groups, double offset_scale, bool remove_center,
               bool mask_is_logits) {
  const Call call(input, offset, mask, window, groups, offset_scale, remove_center, mask_is_logits);
  const Problem& problem = call.problem;
  const Tensor output = allocate(call.output_sizes(), call.input.options());
  visit_dtype(input, [&](auto type) {
    using T = decltype(type);
    const auto kernel = dcnv3::kernels<T>().forward;
    at::parallel_for(0, problem.batch * problem.out_height, rows_per_chunk(problem),
                     [&](int64_t begin, int64_t end) {
                       kernel(problem, read<T>(call.input), read<T>(call.offset),
                              read<T>(call.mask), write<T>(output), begin, end);
                     });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output_, const Tensor& input,
                                            const Tensor& offset, const Tensor& mask,
                                            at::IntArrayRef window, int64_t groups,
                                            double offset_scale, bool remove_center,
                                            bool mask_is_logits) {
  const Call call(input, offset, mask, window, groups, offset_scale, remove_center, mask_is_logits);
  const Tensor grad_output = call.readable_gradient(grad_output_);
  const Tensor grad_input = allocate(input.sizes(), call.sums());
  const Tensor grad_offset = allocate(offset.sizes(), offset.options());
  const Tensor grad_mask = allocate(mask.sizes(), mask.options());
  visit_dtype(input, [&](auto type) {
    using T = decltype(type);
    using S = typename dcnv3::Compute<T>::type;
    const dcnv3::BackwardTensors<T> tensors{
        read<T>(grad_output), read<T>(call.input),   read<T>(call.offset), read<T>(call.mask),
        write<S>(grad_input), write<T>(grad_offset), write<T>(grad_mask)};
    dcnv3::backward(
        call.problem, dcnv3::kernels<T>(), tensors, at::get_num_threads(),
        [](int64_t size, auto work) { at::parallel_for(0, size, 1, work); },
        dcnv3::number_of_bands(call.problem));
  });
  return {grad_input.to(input.scalar_type()), grad_offset, grad_mask};
}

// Do the loads and multiply-adds of a forward for this input, on the same threads, on data in the
// first-level cache. For the benchmark, which times it.
void load_bound(const Tensor& input, int64_t groups) {
  TORCH_CHECK_VALUE(input.dim() == 4 && groups > 0 && input.size(3) % groups == 0,
                    "load_bound: (N, H, W, C) and a number of groups that divides C expected, got ",
                    input.sizes(), " and ", groups);
  const Tensor data = at::ones({dcnv3::kBoundData}, input.options());
  const int64_t per_row = input.size(2) * groups, group_channels = input.size(3) / groups;
  visit_dtype(input, [&](auto type) {
    using T = decltype(type);
    using S = typename dcnv3::Compute<T>::type;
    const S weight[4] = {1, 2, 3, 4};
    const auto kernel = dcnv3::kernels<T>().load_bound;
    at::parallel_for(0, input.size(0) * input.size(1), 1, [&](int64_t begin, int64_t end) {
      alignas(64) S output[dcnv3::kBoundOutput];
      kernel(read<T>(data), weight, output, (end - begin) * per_row, group_channels);
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ops_dcnv3, library) {
  library.def("load_bound(Tensor input, int groups) -> ()");
}

TORCH_LIBRARY_IMPL(ops_dcnv3, CPU, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
  library.impl("load_bound", &load_bound);
}
