// The forward kernel.
#include "device.cuh"

namespace dcnv3 {
namespace gpu {

template <typename T, int K>
struct ForwardWork : Work<T, K> {
  const T* input;
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
__global__ void __launch_bounds__(kThreads, kBlocks<T>) forward_kernel(const ForwardWork<T, K> a) {
  using S = typename Compute<T>::type;
  extern __shared__ uint4 shared_memory[];
  const PointTable<S> table(a, shared_memory);
  const int lane = int(threadIdx.x) % kWarp;
  const int first_entry = (lane >> a.log_lanes) * a.point_stride;
  const bool once = a.point_chunk >= a.count();

  for_tiles(a, [&](const Tile<T, K>& tile, const Task& task, const Softmax<S>& softmax) {
    for (int section = 0; section < a.group_channels; section += a.section) {
      const int c = section + (lane & ((1 << a.log_lanes) - 1)) * V;
      const bool active = task.valid && c < a.group_channels;
      const int channel = task.group * a.group_channels + c;
      const T* image = a.input + int64_t(tile.image) * a.in_pixels() * a.channels + channel;
      S sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = S(0);
      for (int first = 0; first < a.count(); first += a.point_chunk) {
        const int size = a.chunk_size(first);
        if (section == 0 || !once) fill_table<true>(tile, softmax, first, size, table);
        if (active) {
#pragma unroll(K != 0 ? K : 1)
          for (int p = 0; p < size; ++p) {
            add_point<V>(table.numbers[first_entry + p], table.places[first_entry + p], image,
                         a.width, a.channels, sum);
          }
        }
      }
      if (active) {
        const int64_t pixel = int64_t(tile.image) * a.out_pixels() + task.pixel;
        store(sum, a.output + pixel * a.channels + channel);
      }
    }
  });
}

cudaError_t forward(const Problem& problem, DType dtype, const void* input, const void* offset,
                    const void* mask, void* output, cudaStream_t stream) {
  if (problem.batch * problem.out_height * problem.out_width * problem.channels() == 0) {
    return cudaSuccess;
  }
  const auto run = [&](auto variant) {
    using T = typename decltype(variant)::T;
    constexpr int V = decltype(variant)::V, K = decltype(variant)::K;
    ForwardWork<T, K> a = {};
    if (!describe(problem, offset, mask, V, &a)) return cudaErrorNotSupported;
    a.input = static_cast<const T*>(input);
    a.output = static_cast<T*>(output);
    return launch_tiles(forward_kernel<T, V, K>, a, stream);
  };
  return with_variant(problem, dtype, run, input, output);
}

}  // namespace gpu
}  // namespace dcnv3
