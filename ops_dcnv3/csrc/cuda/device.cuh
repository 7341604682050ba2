// What the kernels share: number types, sampling points, the division of the work.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <type_traits>

#include "dcnv3_cuda.h"

// Adding 16 bytes at once to global memory exists from sm_90 on, in CUDA from 12.1 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 1))
#define DCNV3_VECTOR_ATOMICS 1
#else
#define DCNV3_VECTOR_ATOMICS 0
#endif

namespace dcnv3 {
namespace gpu {

constexpr int kWarp = 32;
constexpr int kLogWarps = 3;
constexpr int kThreads = kWarp << kLogWarps;  // of a block, at most
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedBytes = 48 * 1024;  // of a block, on every architecture
constexpr int kLargest = 1 << 30;        // sizes of an image and strides stay below

// ------------------------------------------------------------------------------------------ types

template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

__device__ inline float to_compute(float value) { return value; }
__device__ inline double to_compute(double value) { return value; }
__device__ inline float to_compute(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_compute(__half value) { return __half2float(value); }

__device__ inline void store(float value, float* to) { *to = value; }
__device__ inline void store(double value, double* to) { *to = value; }
__device__ inline void store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }
__device__ inline void store(float value, __half* to) { *to = __float2half_rn(value); }

// Blocks that shall fit a multiprocessor at a time: 64 registers a thread, 80 for float64.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 3 : 4;

// V neighbouring elements that one instruction moves.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <int V, typename T, typename S>
__device__ inline void load(const T* from, S (&to)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = to_compute(pack.value[v]);
}

template <int V, typename T, typename S>
__device__ inline void store(const S (&from)[V], T* to) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) store(from[v], &pack.value[v]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Four numbers of one sampling point, moved 16 bytes at a time.
template <typename S>
struct alignas(16) Quad {
  S value[4];
};

// ----------------------------------------------------------------------------- sampling geometry

// K = 9 for a full 3x3 kernel, whose loops are then unrolled, and 0 for any other.
template <int K, typename S>
struct Sampling {
  int height, width, out_height, out_width, groups;
  int points, kernel_h;  // as they are if K == 0
  int center;            // cell that is left out, or INT_MAX
  int stride_h, stride_w, dilation_h, dilation_w;
  int half_h, half_w;      // from the first cell to the kernel's centre
  int origin_h, origin_w;  // centre of the kernel at output pixel (0, 0)
  int offset_stride, mask_stride;
  S scale;
  bool logits;
  bool paired;  // offsets can be read as (x, y) pairs

  __device__ int count() const { return K != 0 ? K : points; }

  // Position of point p of output pixel (x, y), to which `offset` points.
  template <typename T>
  __device__ void position(const T* offset, int x, int y, int p, S& at_x, S& at_y) const {
    const int cell = K != 0 || p < center ? p : p + 1;
    const int rows = K != 0 ? 3 : kernel_h;
    const int column = cell / rows, row = cell - column * rows;
    S shift[2];
    if (paired) {
      load<2>(offset, shift);
    } else {
      shift[0] = to_compute(offset[0]);
      shift[1] = to_compute(offset[1]);
    }
    at_x = S(x * stride_w + origin_w) + scale * (S(column * dilation_w - half_w) + shift[0]);
    at_y = S(y * stride_h + origin_h) + scale * (S(row * dilation_h - half_h) + shift[1]);
  }

  // Split a position into its upper left pixel and fractions. Returns which of the corners (upper
  // left, upper right, lower left, lower right) lie in the image, as bits; 0 if the point does not
  // count, which is so for NaN.
  __device__ int locate(S& x, S& y, int& left, int& top) const {
    left = top = 0;
    if (!(x > S(-1) && x < S(width) && y > S(-1) && y < S(height))) {
      x = y = S(0);
      return 0;
    }
    const S floor_x = floor(x), floor_y = floor(y);
    left = int(floor_x);
    top = int(floor_y);
    x -= floor_x;
    y -= floor_y;
    // In integers: S(width) is rounded for sides beyond 2^24.
    const int columns = (left >= 0 && left < width ? 1 : 0) | (left + 1 < width ? 2 : 0);
    const int upper = top >= 0 && top < height ? columns : 0;
    const int lower = top + 1 < height ? columns : 0;
    return upper | lower << 2;
  }
};

// Bilinear weights, times mask, of the corners.
template <typename S>
__device__ inline void corner_weights(S x, S y, S mask, S (&weight)[4]) {
  const S upper = mask * (S(1) - y), lower = mask * y;
  weight[0] = upper * (S(1) - x);
  weight[1] = upper * x;
  weight[2] = lower * (S(1) - x);
  weight[3] = lower * x;
}

// Index of corner c relative to that of the upper left one.
__device__ inline int corner_step(int c, int width) { return (c & 1) + (c >> 1) * width; }

// ---------------------------------------------------------------------------- division of the work

// A task is one group of one output pixel. `1 << log_lanes` neighbouring lanes share a task, V
// channels each at a time; the tasks of a warp are `1 << log_chunk` groups of each of a few pixels.
// The warps of a block fill a tile of pixels of one image and one chunk of groups.
struct Division {
  int batch;
  int log_lanes, log_tasks, log_chunk;  // log_lanes + log_tasks == 5
  int log_tile_w, log_tile_h;
  int chunks, tiles_x, tiles_y;
  int group_channels, channels;
  int section;       // channels of a group that its lanes take at a time
  int point_chunk;   // points whose coefficients are kept at a time
  int point_stride;  // room for them: an odd number, so that tasks use different banks
  int warps, shared_bytes;

  int64_t column_blocks() const { return int64_t(tiles_x) * chunks; }
};

// The tile of a block and the place of a task of this warp in it.
struct Tile {
  int x, y, group;

  __device__ Tile(const Division& division, int tile_y) {
    const int column = int(blockIdx.x) / division.chunks;
    x = column << division.log_tile_w;
    y = tile_y << division.log_tile_h;
    group = (int(blockIdx.x) - column * division.chunks) << division.log_chunk;
  }
};

struct Task {
  int x, y, group;
  bool valid;

  template <typename Sampling>
  __device__ Task(const Division& division, const Sampling& sampling, const Tile& tile, int task) {
    const int warp = int(threadIdx.x) / kWarp;
    const int pixel = ((warp << division.log_tasks) + task) >> division.log_chunk;
    x = tile.x + (pixel & ((1 << division.log_tile_w) - 1));
    y = tile.y + (pixel >> division.log_tile_w);
    group = tile.group + (task & ((1 << division.log_chunk) - 1));
    valid = x < sampling.out_width && y < sampling.out_height && group < sampling.groups &&
            (pixel >> division.log_tile_w) >> division.log_tile_h == 0;
  }

  // Index of the output pixel in its image.
  __device__ int pixel(int out_width) const { return y * out_width + x; }
};

// Sum over the lanes that share a task. All lanes of the warp must call it.
template <typename S>
__device__ inline S sum_lanes(S value, int log_lanes) {
  for (int step = 1; step < 1 << log_lanes; step <<= 1) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

// The softmax over the points of a task: exp(logit - largest) * inverse.
template <typename S>
struct Softmax {
  S largest, inverse;

  __device__ S operator()(S logit) const { return exp(logit - largest) * inverse; }
};

// Found by the lanes of the task together; all lanes of the warp must call it.
template <typename T, typename S>
__device__ inline Softmax<S> find_softmax(const T* logits, int count, bool valid, int lane,
                                          int log_lanes) {
  const int lanes = 1 << log_lanes;
  S largest = -S(INFINITY), sum = S(0);
  if (valid) {
    for (int p = lane; p < count; p += lanes) {
      const S logit = to_compute(logits[p]);
      largest = logit > largest ? logit : largest;
    }
  }
  for (int step = 1; step < lanes; step <<= 1) {
    const S other = __shfl_xor_sync(kAllLanes, largest, step);
    largest = other > largest ? other : largest;
  }
  if (valid) {
    for (int p = lane; p < count; p += lanes) sum += exp(S(to_compute(logits[p])) - largest);
  }
  return {largest, S(1) / sum_lanes(sum, log_lanes)};
}

// What a warp keeps of the sampling points of its tasks in shared memory: point p of task t is
// entry t * point_stride + p.
template <typename S>
struct PointTable {
  Quad<S>* numbers;
  int2* places;  // index of the upper left pixel, and the corners in the image as bits

  static constexpr int kEntryBytes = int(sizeof(Quad<S>) + sizeof(int2));

  // `memory` is the block's.
  __device__ PointTable(const Division& division, uint4* memory) {
    const int entries = division.point_stride << division.log_tasks;
    const int warp = int(threadIdx.x) / kWarp;
    numbers = reinterpret_cast<Quad<S>*>(memory) + warp * entries;
    places =
        reinterpret_cast<int2*>(reinterpret_cast<Quad<S>*>(memory) + division.warps * entries) +
        warp * entries;
  }
};

// Call visit(e, task, p, point) for all points first <= p < first + size of the warp's tasks, one
// lane each, with e the entry of the point in the table. All lanes run the same number of rounds.
template <typename Visit>
__device__ inline void for_points(const Division& division, int size, Visit visit) {
  const int total = size << division.log_tasks;
  for (int start = 0; start < total; start += kWarp) {
    const int i = start + int(threadIdx.x) % kWarp;
    const bool exists = i < total;
    const int task = exists ? i / size : 0;
    const int p = exists ? i - task * size : 0;
    visit(task * division.point_stride + p, task, p, exists);
  }
}

// Fill the table with points [first, first + size). With kWeights the four numbers are the weights
// of the corners, else the two fractions, the mask and 0. `softmax` is that of this lane's task.
template <bool kWeights, int K, typename T, typename S>
__device__ inline void fill_table(const Division& division, const Sampling<K, S>& sampling,
                                  const Tile& tile, const T* offset, const T* mask,
                                  const Softmax<S>& softmax, int first, int size,
                                  const PointTable<S>& table) {
  for_points(division, size, [&](int entry, int t, int p, bool exists) {
    const int from = t << division.log_lanes;
    Softmax<S> own = {S(0), S(0)};
    if (sampling.logits) {
      own.largest = __shfl_sync(kAllLanes, softmax.largest, from);
      own.inverse = __shfl_sync(kAllLanes, softmax.inverse, from);
    }
    if (!exists) return;
    const Task task(division, sampling, tile, t);
    Quad<S> numbers = {{S(0), S(0), S(0), S(0)}};
    int2 place = make_int2(0, 0);
    if (task.valid) {
      const int pixel = task.pixel(sampling.out_width);
      const int point = task.group * sampling.count() + first + p;
      S x, y;
      int left, top;
      sampling.position(offset + int64_t(pixel) * sampling.offset_stride + 2 * point, task.x,
                        task.y, first + p, x, y);
      place.y = sampling.locate(x, y, left, top);
      place.x = top * sampling.width + left;
      S m = to_compute(mask[int64_t(pixel) * sampling.mask_stride + point]);
      if (sampling.logits) m = own(m);
      if (kWeights) {
        corner_weights(x, y, m, numbers.value);
      } else {
        numbers.value[0] = x;
        numbers.value[1] = y;
        numbers.value[2] = m;
      }
    }
    table.numbers[entry] = numbers;
    table.places[entry] = place;
  });
}

// ---------------------------------------------------------------------------------- on the host

inline int log2_ceil(int64_t value) {
  int log = 0;
  while ((int64_t(1) << log) < value) ++log;
  return log;
}

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

// Channels that one instruction can move: 16 bytes where sizes and pointers allow it.
template <typename T, typename... Pointers>
int vector_width(int64_t group_channels, Pointers... pointers) {
  for (int64_t bytes : {16, 4}) {
    const int64_t width = bytes / int64_t(sizeof(T));
    const bool fits[] = {width >= 1 && group_channels % width == 0, aligned(pointers, bytes)...};
    bool all = true;
    for (bool each : fits) all = all && each;
    if (all) return int(width);
  }
  return 1;
}

// The sizes as the kernels take them. False if one is too large.
template <int K, typename S>
bool describe(const Problem& problem, Sampling<K, S>* sampling) {
  const int64_t sizes[] = {problem.height * problem.width,
                           problem.out_height * problem.out_width,
                           problem.height + 2 * problem.pad_h,
                           problem.width + 2 * problem.pad_w,
                           problem.channels() * 8,
                           2 * problem.groups * problem.points(),
                           problem.offset_stride,
                           problem.mask_stride,
                           problem.batch};
  for (int64_t size : sizes) {
    if (size >= kLargest) return false;
  }
  // Products of the sizes above, so no number below can overflow.
  sampling->height = int(problem.height);
  sampling->width = int(problem.width);
  sampling->out_height = int(problem.out_height);
  sampling->out_width = int(problem.out_width);
  sampling->groups = int(problem.groups);
  sampling->points = int(problem.points());
  sampling->kernel_h = int(problem.kernel_h);
  sampling->center = problem.remove_center
                         ? int(problem.kernel_w / 2 * problem.kernel_h + problem.kernel_h / 2)
                         : INT_MAX;
  sampling->stride_h = int(problem.stride_h);
  sampling->stride_w = int(problem.stride_w);
  sampling->dilation_h = int(problem.dilation_h);
  sampling->dilation_w = int(problem.dilation_w);
  sampling->half_h = int(problem.dilation_h * (problem.kernel_h - 1) / 2);
  sampling->half_w = int(problem.dilation_w * (problem.kernel_w - 1) / 2);
  sampling->origin_h = sampling->half_h - int(problem.pad_h);
  sampling->origin_w = sampling->half_w - int(problem.pad_w);
  sampling->offset_stride = int(problem.offset_stride);
  sampling->mask_stride = int(problem.mask_stride);
  sampling->scale = S(problem.offset_scale);
  sampling->logits = problem.mask_is_logits;
  sampling->paired = false;
  return true;
}

// Whether the kernel is one for K = 9.
inline bool full_3x3(const Problem& problem) {
  return problem.kernel_h == 3 && problem.kernel_w == 3 && !problem.remove_center;
}

template <typename T>
bool paired_offsets(const Problem& problem, const void* offset) {
  return problem.offset_stride % 2 == 0 && aligned(offset, 2 * int64_t(sizeof(T)));
}

inline Division divide(const Problem& problem, int width, int bytes, int entry_bytes) {
  Division division = {};
  const auto smaller = [](int a, int b) { return a < b ? a : b; };
  division.batch = int(problem.batch);
  division.channels = int(problem.channels());
  division.group_channels = int(problem.group_channels);
  division.log_lanes = smaller(5, log2_ceil((problem.group_channels + width - 1) / width));
  division.log_tasks = 5 - division.log_lanes;
  division.section = width << division.log_lanes;
  // As many groups as fill a cache line of the input, so that neighbouring lanes read one.
  int log_chunk = 0;
  while (log_chunk < division.log_tasks && (1 << log_chunk) < problem.groups &&
         (division.group_channels * bytes) << (log_chunk + 1) <= 128) {
    ++log_chunk;
  }
  division.log_chunk = log_chunk;
  // All points of a kernel at a time, with fewer warps if its table is large.
  int log_warps = kLogWarps;
  const auto room = [&] {
    return (kSharedBytes >> log_warps) / (entry_bytes << division.log_tasks);
  };
  while (log_warps > 0 && room() < (problem.points() | 1)) --log_warps;
  const int64_t stride = problem.points() | 1;
  division.point_stride = stride <= room() ? int(stride) : (room() - 1) | 1;
  division.point_chunk = smaller(int(problem.points()), division.point_stride);
  // Tiles about as high as wide read the fewest input pixels for each output pixel.
  const int log_pixels = division.log_tasks + log_warps - log_chunk;
  division.log_tile_w = smaller((log_pixels + 1) / 2, log2_ceil(problem.out_width));
  division.log_tile_h = smaller(log_pixels - division.log_tile_w, log2_ceil(problem.out_height));
  const int pixels = 1 << (division.log_tile_w + division.log_tile_h);
  division.chunks = int((problem.groups + (1 << log_chunk) - 1) >> log_chunk);
  division.tiles_x =
      int((problem.out_width + (1 << division.log_tile_w) - 1) >> division.log_tile_w);
  division.tiles_y =
      int((problem.out_height + (1 << division.log_tile_h) - 1) >> division.log_tile_h);
  const int warp_pixels = 1 << (division.log_tasks - log_chunk);
  division.warps = (pixels + warp_pixels - 1) / warp_pixels;
  division.shared_bytes = (division.warps * division.point_stride * entry_bytes)
                          << division.log_tasks;
  return division;
}

// The same text for nvcc and for the emulator of the tests, hence not <<<>>>.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), Arguments arguments, dim3 grid, int threads,
                   int shared_bytes, cudaStream_t stream) {
  void* pointers[] = {&arguments};
  return cudaLaunchKernel(kernel, grid, dim3(unsigned(threads)), pointers, size_t(shared_bytes),
                          stream);
}

// Columns of tiles along x; rows and images along y and z, over which the kernels loop, since a
// grid has at most 65535 of them.
inline dim3 grid_of(const Division& division) {
  const auto bounded = [](int value) { return unsigned(value < 65535 ? value : 65535); };
  return dim3(unsigned(division.column_blocks()), bounded(division.tiles_y),
              bounded(division.batch));
}

}  // namespace gpu
}  // namespace dcnv3
