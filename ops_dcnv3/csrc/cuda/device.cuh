// What the kernels share: number types, sampling points, the division of the work.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
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
constexpr int kMostRows = 65535;         // of blocks, and as many layers of them
constexpr int kLargest = 1 << 30;        // sizes of an image and strides stay below

// ------------------------------------------------------------------------------------------ types

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

// V neighbouring elements that are moved at most 16 bytes at a time.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
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

// ------------------------------------------------------------------------------ work of a kernel

// Sizes, options and the tensors that say where to sample; each kernel adds tensors of its own.
// K = 9 for a full 3x3 kernel, whose loops are then unrolled, and 0 for any other.
//
// A task is one group of one output pixel. `1 << log_lanes` neighbouring lanes share a task, V
// channels each at a time; the tasks of a warp are `1 << log_chunk` groups of each of a few pixels.
// The warps of a block fill a tile of pixels of one image and one chunk of groups.
template <typename T, int K>
struct Work {
  using S = typename Compute<T>::type;
  int batch, height, width, out_height, out_width, groups, group_channels, channels;
  int points, kernel_h;  // as they are if K == 0
  int center;            // cell that is left out, or INT_MAX
  int stride_h, stride_w, dilation_h, dilation_w;
  int half_h, half_w;      // from the first cell to the kernel's centre
  int origin_h, origin_w;  // centre of the kernel at output pixel (0, 0)
  int offset_stride, mask_stride;
  S scale;
  bool logits;
  bool paired;  // offsets can be read as (x, y) pairs
  const T* offset;
  const T* mask;

  int log_lanes, log_tasks, log_chunk;  // log_lanes + log_tasks == 5
  int section;                          // channels of a group that its lanes take at a time
  int log_tile_w, log_tile_h, tiles_x, tiles_y, chunks;
  int point_chunk;   // points whose coefficients are kept at a time
  int point_stride;  // room for them: an odd number, so that tasks use different banks
  int warps;

  __device__ int count() const { return K != 0 ? K : points; }
  __device__ int chunk_size(int first) const {
    return K != 0 ? K : min(points - first, point_chunk);
  }
  __device__ int in_pixels() const { return height * width; }
  __device__ int out_pixels() const { return out_height * out_width; }

  // Those of one image.
  __device__ const T* offsets_of(int64_t n) const {
    return offset + n * out_pixels() * offset_stride;
  }
  __device__ const T* masks_of(int64_t n) const { return mask + n * out_pixels() * mask_stride; }

  // Masks, or logits, of a group at an output pixel of the image with these masks.
  __device__ const T* masks_at(const T* masks, int pixel, int group) const {
    return masks + int64_t(pixel) * mask_stride + group * count();
  }

  // Position of point p of a group at output pixel (x, y) of the image with these offsets.
  __device__ void position(const T* offsets, int x, int y, int group, int p, S& at_x,
                           S& at_y) const {
    const int cell = K != 0 || p < center ? p : p + 1;
    const int rows = K != 0 ? 3 : kernel_h;
    const int column = cell / rows, row = cell - column * rows;
    const T* from =
        offsets + int64_t(y * out_width + x) * offset_stride + 2 * (group * count() + p);
    S shift[2];
    if (paired) {
      load<2>(from, shift);
    } else {
      shift[0] = to_compute(from[0]);
      shift[1] = to_compute(from[1]);
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

// ---------------------------------------------------------------------------------- tile of a warp

struct Task {
  int x, y, group;
  int pixel;  // index of the output pixel in its image
  bool valid;
};

// The tile of output pixels and the chunk of groups of this block.
template <typename T, int K>
struct Tile {
  using S = typename Compute<T>::type;
  const Work<T, K>& work;
  int image, x, y, group;  // the first of each
  const T* offsets;        // of the image
  const T* masks;

  __device__ Tile(const Work<T, K>& work_, int image_, int row) : work(work_), image(image_) {
    const int column = int(blockIdx.x) / work.chunks;
    x = column << work.log_tile_w;
    y = row << work.log_tile_h;
    group = (int(blockIdx.x) - column * work.chunks) << work.log_chunk;
    offsets = work.offsets_of(image);
    masks = work.masks_of(image);
  }

  // Task t of this warp.
  __device__ Task task(int t) const {
    const int warp = int(threadIdx.x) / kWarp;
    const int pixel = ((warp << work.log_tasks) + t) >> work.log_chunk;
    Task task;
    task.x = x + (pixel & ((1 << work.log_tile_w) - 1));
    task.y = y + (pixel >> work.log_tile_w);
    task.group = group + (t & ((1 << work.log_chunk) - 1));
    task.pixel = task.y * work.out_width + task.x;
    task.valid = task.x < work.out_width && task.y < work.out_height && task.group < work.groups &&
                 (pixel >> work.log_tile_w) >> work.log_tile_h == 0;
    return task;
  }
};

// Call visit(tile, task, softmax), with the task of this lane, for all tiles of this block: a grid
// has at most 65535 rows and as many images.
template <typename T, int K, typename Visit>
__device__ inline void for_tiles(const Work<T, K>& work, Visit visit) {
  using S = typename Compute<T>::type;
  const int lane = int(threadIdx.x) % kWarp;
  for (int n = int(blockIdx.z); n < work.batch; n += int(gridDim.z)) {
    for (int row = int(blockIdx.y); row < work.tiles_y; row += int(gridDim.y)) {
      const Tile<T, K> tile(work, n, row);
      Task task = tile.task(lane >> work.log_lanes);
      if (!task.valid) task.pixel = task.group = 0;
      Softmax<S> softmax = {S(0), S(0)};
      if (work.logits) {
        softmax =
            find_softmax<T, S>(work.masks_at(tile.masks, task.pixel, task.group), work.count(),
                               task.valid, lane & ((1 << work.log_lanes) - 1), work.log_lanes);
      }
      visit(tile, task, softmax);
    }
  }
}

// What a warp keeps of the sampling points of its tasks in shared memory: point p of task t is
// entry t * point_stride + p.
template <typename S>
struct PointTable {
  Quad<S>* numbers;
  int2* places;  // index of the upper left pixel, and the corners in the image as bits

  static constexpr int kEntryBytes = int(sizeof(Quad<S>) + sizeof(int2));

  // `memory` is the block's.
  template <typename Work>
  __device__ PointTable(const Work& work, uint4* memory) {
    const int entries = work.point_stride << work.log_tasks;
    const int warp = int(threadIdx.x) / kWarp;
    numbers = reinterpret_cast<Quad<S>*>(memory) + warp * entries;
    places = reinterpret_cast<int2*>(reinterpret_cast<Quad<S>*>(memory) + work.warps * entries) +
             warp * entries;
  }
};

// Call visit(e, t, p, exists) for all points p < size of the warp's tasks t, one lane each, with e
// the entry of the point in the table. All lanes run the same number of rounds.
template <typename Work, typename Visit>
__device__ inline void for_points(const Work& work, int size, Visit visit) {
  const int total = size << work.log_tasks;
  for (int start = 0; start < total; start += kWarp) {
    const int i = start + int(threadIdx.x) % kWarp;
    const bool exists = i < total;
    const int t = exists ? i / size : 0;
    const int p = exists ? i - t * size : 0;
    visit(t * work.point_stride + p, t, p, exists);
  }
}

// Fill the table with points [first, first + size). With kWeights the four numbers are the weights
// of the corners, else the two fractions, the mask and 0. `softmax` is that of this lane's task.
template <bool kWeights, int K, typename T, typename S>
__device__ inline void fill_table(const Tile<T, K>& tile, const Softmax<S>& softmax, int first,
                                  int size, const PointTable<S>& table) {
  const Work<T, K>& work = tile.work;
  __syncwarp();
  for_points(work, size, [&](int entry, int t, int p, bool exists) {
    const int from = t << work.log_lanes;
    Softmax<S> own = {S(0), S(0)};
    if (work.logits) {
      own.largest = __shfl_sync(kAllLanes, softmax.largest, from);
      own.inverse = __shfl_sync(kAllLanes, softmax.inverse, from);
    }
    if (!exists) return;
    const Task task = tile.task(t);
    Quad<S> numbers = {{S(0), S(0), S(0), S(0)}};
    int2 place = make_int2(0, 0);
    if (task.valid) {
      S x, y;
      int left, top;
      work.position(tile.offsets, task.x, task.y, task.group, first + p, x, y);
      place.y = work.locate(x, y, left, top);
      place.x = top * work.width + left;
      S m = to_compute(work.masks_at(tile.masks, task.pixel, task.group)[first + p]);
      if (work.logits) m = own(m);
      if (kWeights) {
        corner_weights(x, y, m, numbers.value);
      } else {
        numbers = {{x, y, m, S(0)}};
      }
    }
    table.numbers[entry] = numbers;
    table.places[entry] = place;
  });
  __syncwarp();
}

// ---------------------------------------------------------------------------------- on the host

inline int log2_ceil(int64_t value) {
  int log = 0;
  while ((int64_t(1) << log) < value) ++log;
  return log;
}

// Of as many numbers as `1 << log` at a time.
inline int steps(int64_t size, int log) { return int((size + (1 << log) - 1) >> log); }

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

// The sizes as the kernels take them. False if one is too large.
template <typename T, int K>
bool describe(const Problem& problem, const void* offset, const void* mask, int width,
              Work<T, K>* work) {
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
  work->batch = int(problem.batch);
  work->height = int(problem.height);
  work->width = int(problem.width);
  work->out_height = int(problem.out_height);
  work->out_width = int(problem.out_width);
  work->groups = int(problem.groups);
  work->group_channels = int(problem.group_channels);
  work->channels = int(problem.channels());
  work->points = int(problem.points());
  work->kernel_h = int(problem.kernel_h);
  work->center = problem.remove_center
                     ? int(problem.kernel_w / 2 * problem.kernel_h + problem.kernel_h / 2)
                     : INT_MAX;
  work->stride_h = int(problem.stride_h);
  work->stride_w = int(problem.stride_w);
  work->dilation_h = int(problem.dilation_h);
  work->dilation_w = int(problem.dilation_w);
  work->half_h = int(problem.dilation_h * (problem.kernel_h - 1) / 2);
  work->half_w = int(problem.dilation_w * (problem.kernel_w - 1) / 2);
  work->origin_h = work->half_h - int(problem.pad_h);
  work->origin_w = work->half_w - int(problem.pad_w);
  work->offset_stride = int(problem.offset_stride);
  work->mask_stride = int(problem.mask_stride);
  work->scale = typename Work<T, K>::S(problem.offset_scale);
  work->logits = problem.mask_is_logits;
  work->paired = problem.offset_stride % 2 == 0 && aligned(offset, 2 * int64_t(sizeof(T)));
  work->offset = static_cast<const T*>(offset);
  work->mask = static_cast<const T*>(mask);
  work->log_lanes = std::min(5, log2_ceil((problem.group_channels + width - 1) / width));
  work->log_tasks = 5 - work->log_lanes;
  work->section = width << work->log_lanes;
  return true;
}

// The same text for nvcc and for the emulator of the tests, hence not <<<>>>.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), Arguments arguments, dim3 grid, int threads,
                   int shared_bytes, cudaStream_t stream) {
  void* pointers[] = {&arguments};
  return cudaLaunchKernel(kernel, grid, dim3(unsigned(threads)), pointers, size_t(shared_bytes),
                          stream);
}

// Divide the output into tiles, and run a kernel that goes over them by for_tiles().
template <typename Arguments>
cudaError_t launch_tiles(void (*kernel)(Arguments), Arguments a, cudaStream_t stream) {
  constexpr int kEntryBytes = PointTable<typename Arguments::S>::kEntryBytes;
  // As many groups as fill a cache line of the input, so that neighbouring lanes read one.
  const int bytes = a.group_channels * int(sizeof *a.offset);
  while (a.log_chunk < a.log_tasks && 1 << a.log_chunk < a.groups &&
         bytes << (a.log_chunk + 1) <= 128) {
    ++a.log_chunk;
  }
  // All points of a kernel at a time, with fewer warps if its table is large.
  int log_warps = kLogWarps;
  const auto room = [&] { return (kSharedBytes >> log_warps) / (kEntryBytes << a.log_tasks); };
  while (log_warps > 0 && room() < (a.points | 1)) --log_warps;
  a.point_stride = std::min(a.points | 1, (room() - 1) | 1);
  a.point_chunk = std::min(a.points, a.point_stride);
  // Tiles about as high as wide read the fewest input pixels for each output pixel.
  const int log_pixels = a.log_tasks + log_warps - a.log_chunk;
  a.log_tile_w = std::min((log_pixels + 1) / 2, log2_ceil(a.out_width));
  a.log_tile_h = std::min(log_pixels - a.log_tile_w, log2_ceil(a.out_height));
  a.chunks = steps(a.groups, a.log_chunk);
  a.tiles_x = steps(a.out_width, a.log_tile_w);
  a.tiles_y = steps(a.out_height, a.log_tile_h);
  a.warps = steps(1 << (a.log_tile_w + a.log_tile_h), a.log_tasks - a.log_chunk);
  const dim3 grid(unsigned(a.tiles_x) * unsigned(a.chunks),
                  unsigned(std::min(a.tiles_y, kMostRows)), unsigned(std::min(a.batch, kMostRows)));
  return launch(kernel, a, grid, a.warps * kWarp,
                (a.warps * a.point_stride * kEntryBytes) << a.log_tasks, stream);
}

// The types and constants of a kernel: V channels are moved by one instruction.
template <typename T_, int V_, int K_>
struct Variant {
  using T = T_;
  static constexpr int V = V_, K = K_;
};

// Return run(Variant<T, V, K>()) for a problem with these tensors: 16 bytes of channels at a time
// where sizes and pointers allow it, else 4 or one channel.
template <typename Run, typename... Pointers>
cudaError_t with_variant(const Problem& problem, DType dtype, Run run, Pointers... tensors) {
  const auto with_type = [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = 16 / int(sizeof(T)), kNarrow = sizeof(T) < 4 ? 4 / int(sizeof(T)) : 1;
    const auto fits = [&](int width) {
      return problem.group_channels % width == 0 &&
             (aligned(tensors, width * int64_t(sizeof(T))) && ...);
    };
    const bool full_3x3 = problem.kernel_h == 3 && problem.kernel_w == 3 && !problem.remove_center;
    if (fits(kWide)) {
      return full_3x3 ? run(Variant<T, kWide, 9>()) : run(Variant<T, kWide, 0>());
    }
    return fits(kNarrow) ? run(Variant<T, kNarrow, 0>()) : run(Variant<T, 1, 0>());
  };
  switch (dtype) {
    case DType::kFloat32:
      return with_type(float());
    case DType::kFloat64:
      return with_type(double());
    case DType::kBFloat16:
      return with_type(__nv_bfloat16());
    default:
      return with_type(__half());
  }
}

}  // namespace gpu
}  // namespace dcnv3
