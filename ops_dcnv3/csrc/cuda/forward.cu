// The forward kernel.
#include "device.cuh"

namespace dcnv3 {
namespace gpu {

template <typename T, int K>
struct ForwardArguments {
  Sampling<K, typename Compute<T>::type> sampling;
  Division division;
  const T* input;
  const T* offset;
  const T* mask;
  T* output;
};

// Add to `sum` what the corners of a point contribute to V channels, which start at `image`.
template <int V, typename T, typename S>
__device__ inline void add_point(const Quad<S>& weights, int2 place, const T* image, int width,
                                 int channels, S (&sum)[V]) {
  S value[V];
  if (place.y == 15) {  // nearly always
    S corner[4][V];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      load(image + int64_t(place.x + corner_step(c, width)) * channels, corner[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weights.value[c] * corner[c][v];
    }
  } else if (place.y != 0) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if ((place.y >> c & 1) == 0) continue;
      load(image + int64_t(place.x + corner_step(c, width)) * channels, value);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weights.value[c] * value[v];
    }
  }
}

template <typename T, int V, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    forward_kernel(const ForwardArguments<T, K> a) {
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
  const bool once = division.point_chunk >= points;

  for (int n = int(blockIdx.z); n < division.batch; n += int(gridDim.z)) {
    const T* offset = a.offset + int64_t(n) * pixels * sampling.offset_stride;
    const T* mask = a.mask + int64_t(n) * pixels * sampling.mask_stride;
    for (int row = int(blockIdx.y); row < division.tiles_y; row += int(gridDim.y)) {
      const Tile tile(division, row);
      const Task task(division, sampling, tile, own);
      const int pixel = task.valid ? task.pixel(sampling.out_width) : 0;
      Softmax<S> softmax = {S(0), S(0)};
      if (sampling.logits) {
        softmax = find_softmax<T, S>(
            mask + int64_t(pixel) * sampling.mask_stride + (task.valid ? task.group * points : 0),
            points, task.valid, task_lane, division.log_lanes);
      }
      for (int section = 0; section < division.group_channels; section += division.section) {
        const int c = section + task_lane * V;
        const bool active = task.valid && c < division.group_channels;
        const int channel = task.group * division.group_channels + c;
        const T* image =
            a.input + int64_t(n) * (sampling.height * sampling.width) * division.channels + channel;
        S sum[V];
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = S(0);
        for (int first = 0; first < points; first += division.point_chunk) {
          const int left = points - first;
          const int size = K != 0 ? K : left < division.point_chunk ? left : division.point_chunk;
          if (section == 0 || !once) {
            __syncwarp();
            fill_table<true>(division, sampling, tile, offset, mask, softmax, first, size, table);
            __syncwarp();
          }
          if (active) {
#pragma unroll(K != 0 ? K : 1)
            for (int p = 0; p < size; ++p) {
              const int entry = own * division.point_stride + p;
              add_point<V>(table.numbers[entry], table.places[entry], image, sampling.width,
                           division.channels, sum);
            }
          }
        }
        if (active) {
          store(sum, a.output + (int64_t(n) * pixels + pixel) * division.channels + channel);
        }
      }
    }
  }
}

template <typename T, int V, int K>
cudaError_t forward_as(const Problem& problem, const void* input, const void* offset,
                       const void* mask, void* output, cudaStream_t stream) {
  using S = typename Compute<T>::type;
  ForwardArguments<T, K> a = {};
  if (!describe(problem, &a.sampling)) return cudaErrorInvalidValue;
  a.sampling.paired = paired_offsets<T>(problem, offset);
  a.division = divide(problem, V, int(sizeof(T)), PointTable<S>::kEntryBytes);
  a.input = static_cast<const T*>(input);
  a.offset = static_cast<const T*>(offset);
  a.mask = static_cast<const T*>(mask);
  a.output = static_cast<T*>(output);
  return launch(forward_kernel<T, V, K>, a, grid_of(a.division), a.division.warps * kWarp,
                a.division.shared_bytes, stream);
}

template <typename T>
cudaError_t forward_of(const Problem& problem, const void* input, const void* offset,
                       const void* mask, void* output, cudaStream_t stream) {
  constexpr int kWide = 16 / int(sizeof(T)), kNarrow = sizeof(T) < 4 ? 4 / int(sizeof(T)) : 1;
  const int width = vector_width<T>(problem.group_channels, input, output);
  const auto run = width == kWide
                       ? (full_3x3(problem) ? forward_as<T, kWide, 9> : forward_as<T, kWide, 0>)
                   : width == kNarrow ? forward_as<T, kNarrow, 0>
                                      : forward_as<T, 1, 0>;
  return run(problem, input, offset, mask, output, stream);
}

cudaError_t forward(const Problem& problem, DType dtype, const void* input, const void* offset,
                    const void* mask, void* output, cudaStream_t stream) {
  if (problem.batch * problem.out_height * problem.out_width * problem.channels() == 0) {
    return cudaSuccess;
  }
  const auto run = dtype == DType::kFloat32    ? forward_of<float>
                   : dtype == DType::kFloat64  ? forward_of<double>
                   : dtype == DType::kBFloat16 ? forward_of<__nv_bfloat16>
                                               : forward_of<__half>;
  return run(problem, input, offset, mask, output, stream);
}

}  // namespace gpu
}  // namespace dcnv3
