// The backward kernel: gradients with respect to offset and mask, and to input by atomics.
#include "device.cuh"

namespace dcnv3 {
namespace gpu {

template <typename T, int K>
struct BackwardWork : Work<T, K> {
  const T* grad_output;
  const T* input;
  typename Compute<T>::type* grad_input;  // or null
  T* grad_offset;
  T* grad_mask;
};

// Adding one number at a time keeps more addresses in registers.
template <typename T>
constexpr int kBackwardBlocks = DCNV3_VECTOR_ATOMICS ? kBlocks<T> : 3;

__device__ inline void add_four(float* to, float a, float b, float c, float d) {
#if DCNV3_VECTOR_ATOMICS
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(a, b, c, d));
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// Add weight times V values.
template <int V, typename S>
__device__ inline void add_atomically(S* to, S weight, const S (&value)[V]) {
  if constexpr (std::is_same<S, float>::value && V % 4 == 0) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      add_four(to + v, weight * value[v], weight * value[v + 1], weight * value[v + 2],
               weight * value[v + 3]);
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) atomicAdd(to + v, weight * value[v]);
  }
}

// Multiply this lane's channels of the output gradient with those of the corners of a point, which
// start at `image` in the input, and with `add` add them to grad_input. `grad` holds the V that
// there are; of very wide groups there are more, `left` in all, which pass through it.
template <typename T, int V, int K, typename S>
__device__ inline void multiply_corners(const BackwardWork<T, K>& a, const Quad<S>& numbers,
                                        int2 place, int64_t image, const T* grad_output, int left,
                                        S (&grad)[V], bool add, S (&dot)[4]) {
  S weight[4];
  corner_weights(numbers.value[0], numbers.value[1], numbers.value[2], weight);
  for (int c = 0; c < left; c += a.section) {
    if (left > a.section) load(grad_output + c, grad);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if ((place.y >> k & 1) == 0) continue;
      const int64_t at = image + int64_t(place.x + corner_step(k, a.width)) * a.channels + c;
      S value[V];
      load(a.input + at, value);
#pragma unroll
      for (int v = 0; v < V; ++v) dot[k] += grad[v] * value[v];
      if (a.grad_input != nullptr && add) add_atomically(a.grad_input + at, weight[k], grad);
    }
  }
}

// Write the gradients of points [first, first + size), which the table holds in place of their
// fractions. `mean`: of those of this lane's task with respect to mask, weighted with the mask.
template <typename T, int K, typename S>
__device__ inline void write_gradients(const BackwardWork<T, K>& a, const Tile<T, K>& tile,
                                       int first, int size, S mean, const PointTable<S>& table) {
  __syncwarp();
  for_points(a, size, [&](int entry, int t, int p, bool exists) {
    S task_mean = S(0);
    if (a.logits) task_mean = __shfl_sync(kAllLanes, mean, t << a.log_lanes);
    const Task task = tile.task(t);
    if (!exists || !task.valid) return;
    const Quad<S> numbers = table.numbers[entry];
    const int64_t pixel = int64_t(tile.image) * a.out_pixels() + task.pixel;
    const int64_t at = pixel * (a.groups * a.count()) + task.group * a.count() + first + p;
    const S shift[2] = {numbers.value[0], numbers.value[1]};
    S grad_m = numbers.value[2];
    if (a.logits) grad_m = numbers.value[3] * (grad_m - task_mean);
    store(shift, a.grad_offset + 2 * at);
    store(grad_m, a.grad_mask + at);
  });
}

template <typename T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    backward_kernel(const BackwardWork<T, K> a) {
  using S = typename Compute<T>::type;
  extern __shared__ uint4 shared_memory[];
  const PointTable<S> table(a, shared_memory);
  const int lane = int(threadIdx.x) % kWarp;
  const int task_lane = lane & ((1 << a.log_lanes) - 1);
  const int first_entry = (lane >> a.log_lanes) * a.point_stride;
  // The gradient of the softmax needs a sum over all points before the first one can be written.
  const int rounds = a.logits && a.point_chunk < a.count() ? 2 : 1;

  for_tiles(a, [&](const Tile<T, K>& tile, const Task& task, const Softmax<S>& softmax) {
    const int channel = task.group * a.group_channels + (task.valid ? task_lane * V : 0);
    const int64_t image = int64_t(tile.image) * a.in_pixels() * a.channels + channel;
    const T* grad_output =
        a.grad_output + (int64_t(tile.image) * a.out_pixels() + task.pixel) * a.channels + channel;
    const int left = task.valid ? a.group_channels - task_lane * V : 0;  // channels of this lane
    S grad[V];
#pragma unroll
    for (int v = 0; v < V; ++v) grad[v] = S(0);
    if (left > 0) load(grad_output, grad);

    S mean = S(0);  // of the gradients of the mask, weighted with the mask
    for (int round = 0; round < rounds; ++round) {
      const bool last = round + 1 == rounds;
      for (int first = 0; first < a.count(); first += a.point_chunk) {
        const int size = a.chunk_size(first);
        fill_table<false>(tile, softmax, first, size, table);
        for (int entry = first_entry; entry < first_entry + size; ++entry) {
          const Quad<S> numbers = table.numbers[entry];
          const int2 place = table.places[entry];
          const S x = numbers.value[0], y = numbers.value[1], m = numbers.value[2];
          S dot[4] = {S(0), S(0), S(0), S(0)};
          if (left > 0 && place.y != 0) {
            multiply_corners(a, numbers, place, image, grad_output, left, grad, last, dot);
          }
          const S upper = S(1) - y, before = S(1) - x;
          S grad_m = upper * (before * dot[0] + x * dot[1]) + y * (before * dot[2] + x * dot[3]);
          grad_m = sum_lanes(grad_m, a.log_lanes);
          if (round == 0) mean += m * grad_m;
          if (!last) continue;
          const S grad_x =
              sum_lanes(upper * (dot[1] - dot[0]) + y * (dot[3] - dot[2]), a.log_lanes);
          const S grad_y =
              sum_lanes(before * (dot[2] - dot[0]) + x * (dot[3] - dot[1]), a.log_lanes);
          if (task_lane == 0) {
            // All lanes of the task have read the entry: their values are in the sums.
            const S factor = a.scale * m;
            table.numbers[entry] = {{factor * grad_x, factor * grad_y, grad_m, m}};
          }
        }
        if (last) write_gradients(a, tile, first, size, mean, table);
      }
    }
  });
}

cudaError_t backward(const Problem& problem, DType dtype, const void* grad_output,
                     const void* input, const void* offset, const void* mask, void* grad_input,
                     void* grad_offset, void* grad_mask, cudaStream_t stream) {
  if (problem.batch * problem.out_height * problem.out_width * problem.groups == 0) {
    return cudaSuccess;
  }
  const auto run = [&](auto variant) {
    using T = typename decltype(variant)::T;
    constexpr int V = decltype(variant)::V, K = decltype(variant)::K;
    BackwardWork<T, K> a = {};
    if (!describe(problem, offset, mask, V, &a)) return cudaErrorNotSupported;
    a.grad_output = static_cast<const T*>(grad_output);
    a.input = static_cast<const T*>(input);
    a.grad_input = static_cast<typename Compute<T>::type*>(grad_input);
    a.grad_offset = static_cast<T*>(grad_offset);
    a.grad_mask = static_cast<T*>(grad_mask);
    return launch_tiles(backward_kernel<T, V, K>, a, stream);
  };
  return with_variant(problem, dtype, run, input, grad_output);
}

}  // namespace gpu
}  // namespace dcnv3
