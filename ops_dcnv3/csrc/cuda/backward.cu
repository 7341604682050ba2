// The backward kernel: gradients with respect to offset and mask, and to input by atomics.
#include "device.cuh"

namespace dcnv3 {
namespace gpu {

template <typename T, int K>
struct BackwardArguments {
  using S = typename Compute<T>::type;
  Sampling<K, S> sampling;
  Division division;
  const T* grad_output;
  const T* input;
  const T* offset;
  const T* mask;
  S* grad_input;  // or null
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

template <typename T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    backward_kernel(const BackwardArguments<T, K> a) {
  using S = typename Compute<T>::type;
  extern __shared__ uint4 shared_memory[];
  const Division& division = a.division;
  const Sampling<K, S>& sampling = a.sampling;
  const PointTable<S> table(division, shared_memory);
  const int lane = int(threadIdx.x) % kWarp;
  const int task_lane = lane & ((1 << division.log_lanes) - 1);
  const int own = lane >> division.log_lanes;
  const int points = sampling.count();
  const int pixels = sampling.out_height * sampling.out_width;
  const int in_pixels = sampling.height * sampling.width;
  const bool once = division.point_chunk >= points;
  // The gradient of the softmax needs a sum over all points before the first one can be written.
  const int rounds = sampling.logits && !once ? 2 : 1;

  for (int n = int(blockIdx.z); n < division.batch; n += int(gridDim.z)) {
    const T* offset = a.offset + int64_t(n) * pixels * sampling.offset_stride;
    const T* mask = a.mask + int64_t(n) * pixels * sampling.mask_stride;
    for (int row = int(blockIdx.y); row < division.tiles_y; row += int(gridDim.y)) {
      const Tile tile(division, row);
      const Task task(division, sampling, tile, own);
      const int pixel = task.valid ? task.pixel(sampling.out_width) : 0;
      const int channel = task.valid ? task.group * division.group_channels + task_lane * V : 0;
      const int64_t image = int64_t(n) * in_pixels * division.channels + channel;
      const T* grad_output =
          a.grad_output + (int64_t(n) * pixels + pixel) * division.channels + channel;
      const bool active = task.valid && task_lane * V < division.group_channels;
      Softmax<S> softmax = {S(0), S(0)};
      if (sampling.logits) {
        softmax = find_softmax<T, S>(
            mask + int64_t(pixel) * sampling.mask_stride + (task.valid ? task.group * points : 0),
            points, task.valid, task_lane, division.log_lanes);
      }
      S grad[V];  // of the first section, which is the only one for all but very wide groups
#pragma unroll
      for (int v = 0; v < V; ++v) grad[v] = S(0);
      if (active) load(grad_output, grad);

      S mean = S(0);  // of the gradients of the mask, weighted with the mask
      for (int round = 0; round < rounds; ++round) {
        const bool last = round + 1 == rounds;
        for (int first = 0; first < points; first += division.point_chunk) {
          const int left = points - first;
          const int size = K != 0 ? K : left < division.point_chunk ? left : division.point_chunk;
          __syncwarp();
          fill_table<false>(division, sampling, tile, offset, mask, softmax, first, size, table);
          __syncwarp();
          for (int p = 0; p < size; ++p) {
            const int entry = own * division.point_stride + p;
            const Quad<S> numbers = table.numbers[entry];
            const int2 place = table.places[entry];
            const S x = numbers.value[0], y = numbers.value[1], m = numbers.value[2];
            S dot[4] = {S(0), S(0), S(0), S(0)};
            if (active && place.y != 0) {
              S weight[4];
              corner_weights(x, y, m, weight);
              for (int c = 0; c < division.group_channels - task_lane * V; c += division.section) {
                S later[V];
                if (c != 0) load(grad_output + c, later);
                const S(&factor)[V] = c != 0 ? later : grad;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                  if ((place.y >> k & 1) == 0) continue;
                  const int64_t at =
                      image +
                      int64_t(place.x + corner_step(k, sampling.width)) * division.channels + c;
                  S value[V];
                  load(a.input + at, value);
#pragma unroll
                  for (int v = 0; v < V; ++v) dot[k] += factor[v] * value[v];
                  if (a.grad_input != nullptr && last) {
                    add_atomically(a.grad_input + at, weight[k], factor);
                  }
                }
              }
            }
            const S upper = S(1) - y, before = S(1) - x;
            S grad_m = upper * (before * dot[0] + x * dot[1]) + y * (before * dot[2] + x * dot[3]);
            S grad_x = upper * (dot[1] - dot[0]) + y * (dot[3] - dot[2]);
            S grad_y = before * (dot[2] - dot[0]) + x * (dot[3] - dot[1]);
            grad_m = sum_lanes(grad_m, division.log_lanes);
            if (last) {
              grad_x = sum_lanes(grad_x, division.log_lanes);
              grad_y = sum_lanes(grad_y, division.log_lanes);
            }
            if (round == 0) mean += m * grad_m;
            if (last && task_lane == 0) {
              // All lanes of the task have read the entry: their values are in the sums.
              const S factor = sampling.scale * m;
              table.numbers[entry] = {{factor * grad_x, factor * grad_y, grad_m, m}};
            }
          }
          if (!last) continue;
          __syncwarp();
          for_points(division, size, [&](int entry, int t, int p, bool exists) {
            S task_mean = S(0);
            if (sampling.logits) task_mean = __shfl_sync(kAllLanes, mean, t << division.log_lanes);
            const Task to(division, sampling, tile, t);
            if (!exists || !to.valid) return;
            const Quad<S> numbers = table.numbers[entry];
            const int64_t at =
                (int64_t(n) * pixels + to.pixel(sampling.out_width)) * (sampling.groups * points) +
                to.group * points + first + p;
            const S shift[2] = {numbers.value[0], numbers.value[1]};
            S grad_m = numbers.value[2];
            if (sampling.logits) grad_m = numbers.value[3] * (grad_m - task_mean);
            store(shift, a.grad_offset + 2 * at);
            store(grad_m, a.grad_mask + at);
          });
        }
      }
    }
  }
}

template <typename T, int V, int K>
cudaError_t backward_as(const Problem& problem, const void* grad_output, const void* input,
                        const void* offset, const void* mask, void* grad_input, void* grad_offset,
                        void* grad_mask, cudaStream_t stream) {
  using S = typename Compute<T>::type;
  BackwardArguments<T, K> a = {};
  if (!describe(problem, &a.sampling)) return cudaErrorInvalidValue;
  a.sampling.paired = paired_offsets<T>(problem, offset);
  a.division = divide(problem, V, int(sizeof(T)), PointTable<S>::kEntryBytes);
  a.grad_output = static_cast<const T*>(grad_output);
  a.input = static_cast<const T*>(input);
  a.offset = static_cast<const T*>(offset);
  a.mask = static_cast<const T*>(mask);
  a.grad_input = static_cast<S*>(grad_input);
  a.grad_offset = static_cast<T*>(grad_offset);
  a.grad_mask = static_cast<T*>(grad_mask);
  return launch(backward_kernel<T, V, K>, a, grid_of(a.division), a.division.warps * kWarp,
                a.division.shared_bytes, stream);
}

template <typename T>
cudaError_t backward_of(const Problem& problem, const void* grad_output, const void* input,
                        const void* offset, const void* mask, void* grad_input, void* grad_offset,
                        void* grad_mask, cudaStream_t stream) {
  constexpr int kWide = 16 / int(sizeof(T)), kNarrow = sizeof(T) < 4 ? 4 / int(sizeof(T)) : 1;
  const int width = vector_width<T>(problem.group_channels, input, grad_output, grad_input);
  const auto run = width == kWide
                       ? (full_3x3(problem) ? backward_as<T, kWide, 9> : backward_as<T, kWide, 0>)
                   : width == kNarrow ? backward_as<T, kNarrow, 0>
                                      : backward_as<T, 1, 0>;
  return run(problem, grad_output, input, offset, mask, grad_input, grad_offset, grad_mask, stream);
}

cudaError_t backward(const Problem& problem, DType dtype, const void* grad_output,
                     const void* input, const void* offset, const void* mask, void* grad_input,
                     void* grad_offset, void* grad_mask, cudaStream_t stream) {
  if (problem.batch * problem.out_height * problem.out_width * problem.groups == 0) {
    return cudaSuccess;
  }
  const auto run = dtype == DType::kFloat32    ? backward_of<float>
                   : dtype == DType::kFloat64  ? backward_of<double>
                   : dtype == DType::kBFloat16 ? backward_of<__nv_bfloat16>
                                               : backward_of<__half>;
  return run(problem, grad_output, input, offset, mask, grad_input, grad_offset, grad_mask, stream);
}

}  // namespace gpu
}  // namespace dcnv3
