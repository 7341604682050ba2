// The gradient with respect to input without atomics, for deterministic training.
//
// Instead of adding each output gradient to the input pixels it was sampled from, each input pixel
// collects the points that sampled it. Offsets may send a point anywhere, so a first kernel finds
// for each tile of output pixels the rectangle of input pixels that its points reach. A warp then
// owns a tile of input pixels of one group. It looks for the output tiles that reach it, in order,
// lists their points that do, and each lane adds up what the listed points give to its pixel.
#include "device.cuh"

namespace dcnv3 {
namespace gpu {

constexpr int kLogSurveyW = 3, kLogSurveyH = 2;  // 8 x 4 output pixels, one lane each
constexpr int kListed = 128;                     // points listed at a time

// Tiles and tasks are those of the input here.
template <typename T>
struct OrderedWork : Work<T, 0> {
  using S = typename Compute<T>::type;
  int survey_x, survey_y;  // output tiles
  const T* grad_output;
  S* grad_input;
  int4* reach;          // [image][group][output tile], a rectangle
  Softmax<S>* softmax;  // [image][output pixel][group], if the mask is logits
};

// Rectangles of pixels: first and last column, first and last row.
__device__ inline bool overlap(const int4& a, const int4& b) {
  return a.x <= b.y && a.y >= b.x && a.z <= b.w && a.w >= b.z;
}

// Call visit(image, group, tile) for one of `tiles` of each image and group, the one of this warp.
template <typename T, typename Visit>
__device__ inline void for_groups(const OrderedWork<T>& work, int tiles, Visit visit) {
  const int tile = int(blockIdx.x) * (int(blockDim.x) / kWarp) + int(threadIdx.x) / kWarp;
  if (tile >= tiles) return;
  const int64_t all = int64_t(work.batch) * work.groups;
  for (int64_t i = blockIdx.y; i < all; i += gridDim.y) {
    visit(i / work.groups, int(i % work.groups), tile);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) survey_kernel(const OrderedWork<T> a) {
  using S = typename Compute<T>::type;
  const int lane = int(threadIdx.x) % kWarp;
  const int tiles = a.survey_x * a.survey_y;
  for_groups(a, tiles, [&](int64_t n, int group, int tile) {
    const int x = (tile % a.survey_x << kLogSurveyW) + (lane & ((1 << kLogSurveyW) - 1));
    const int y = (tile / a.survey_x << kLogSurveyH) + (lane >> kLogSurveyW);
    const bool valid = x < a.out_width && y < a.out_height;
    int4 reach = make_int4(INT_MAX, INT_MIN, INT_MAX, INT_MIN);
    for (int p = 0; valid && p < a.points; ++p) {
      S at_x, at_y;
      int left, top;
      a.position(a.offsets_of(n), x, y, group, p, at_x, at_y);
      if (a.locate(at_x, at_y, left, top) == 0) continue;
      reach = make_int4(min(reach.x, left), max(reach.y, left + 1), min(reach.z, top),
                        max(reach.w, top + 1));
    }
    for (int step = 1; step < kWarp; step <<= 1) {
      reach.x = min(reach.x, __shfl_xor_sync(kAllLanes, reach.x, step));
      reach.y = max(reach.y, __shfl_xor_sync(kAllLanes, reach.y, step));
      reach.z = min(reach.z, __shfl_xor_sync(kAllLanes, reach.z, step));
      reach.w = max(reach.w, __shfl_xor_sync(kAllLanes, reach.w, step));
    }
    if (lane == 0) a.reach[(n * a.groups + group) * tiles + tile] = reach;
    if (a.logits) {
      const int pixel = valid ? y * a.out_width + x : 0;
      const Softmax<S> softmax =
          find_softmax<T, S>(a.masks_at(a.masks_of(n), pixel, group), a.points, valid, 0, 0);
      if (valid) a.softmax[(n * a.out_pixels() + pixel) * a.groups + group] = softmax;
    }
  });
}

// Points that reach a tile of the input, of one warp.
template <typename S>
struct List {
  S x[kListed], y[kListed], mask[kListed];
  int pixel[kListed];  // output pixel
};

// List the points among 32 of output tile `survey` from point `base` on that reach `tile`, after
// the first `listed` of the list. Returns how many they are, on all lanes.
template <typename T, typename S>
__device__ inline int list_points(const OrderedWork<T>& a, int64_t n, int group, int survey,
                                  int base, const int4& tile, int listed, List<S>& list) {
  const int lane = int(threadIdx.x) % kWarp;
  const int q = (base + lane) / a.points, p = base + lane - q * a.points;
  const int x = (survey % a.survey_x << kLogSurveyW) + (q & ((1 << kLogSurveyW) - 1));
  const int y = (survey / a.survey_x << kLogSurveyH) + (q >> kLogSurveyW);
  // Unsigned: below the image the product may overflow, where nothing uses it.
  const int pixel = int(unsigned(y) * unsigned(a.out_width) + unsigned(x));
  S at_x = S(0), at_y = S(0), m = S(0);
  bool found = false;
  if (q >> (kLogSurveyW + kLogSurveyH) == 0 && x < a.out_width && y < a.out_height) {
    a.position(a.offsets_of(n), x, y, group, p, at_x, at_y);
    S x_part = at_x, y_part = at_y;
    int left, top;
    found = a.locate(x_part, y_part, left, top) != 0 &&
            overlap(make_int4(left, left + 1, top, top + 1), tile);
    if (found) {
      m = to_compute(a.masks_at(a.masks_of(n), pixel, group)[p]);
      if (a.logits) m = a.softmax[(n * a.out_pixels() + pixel) * a.groups + group](m);
    }
  }
  const unsigned finds = __ballot_sync(kAllLanes, found);
  if (found) {
    const int i = listed + __popc(finds & ((1u << lane) - 1));
    list.x[i] = at_x;
    list.y[i] = at_y;
    list.mask[i] = m;
    list.pixel[i] = pixel;
  }
  return __popc(finds);
}

// Add to `sum` what the listed points give to input pixel (x, y). `grad_output` is that of the
// image, from this lane's first channel on.
template <typename T, int V, typename S>
__device__ inline void add_listed(const List<S>& list, int listed, const T* grad_output,
                                  int channels, int x, int y, S (&sum)[V]) {
  for (int i = 0; i < listed; ++i) {
    const S near_x = S(1) - fabs(list.x[i] - S(x)), near_y = S(1) - fabs(list.y[i] - S(y));
    if (!(near_x > S(0) && near_y > S(0))) continue;
    const S weight = list.mask[i] * (near_y * near_x);
    S grad[V];
    load(grad_output + int64_t(list.pixel[i]) * channels, grad);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += weight * grad[v];
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) collect_kernel(const OrderedWork<T> a) {
  using S = typename Compute<T>::type;
  extern __shared__ uint4 shared_memory[];
  List<S>& list = reinterpret_cast<List<S>*>(shared_memory)[threadIdx.x / kWarp];
  const int lane = int(threadIdx.x) % kWarp, own = lane >> a.log_lanes;
  const int surveys = a.survey_x * a.survey_y;
  const int candidates = a.points << (kLogSurveyW + kLogSurveyH);

  for_groups(a, a.tiles_x * a.tiles_y, [&](int64_t n, int group, int number) {
    const int width = 1 << a.log_tile_w, height = 1 << a.log_tile_h;
    const int left = number % a.tiles_x * width, top = number / a.tiles_x * height;
    const int4 tile = make_int4(left, left + width - 1, top, top + height - 1);
    const int x = left + (own & (width - 1)), y = top + (own >> a.log_tile_w);
    const int4* reach = a.reach + (n * a.groups + group) * surveys;
    for (int section = 0; section < a.group_channels; section += a.section) {
      const int c = section + (lane & ((1 << a.log_lanes) - 1)) * V;
      const int channel = group * a.group_channels + c;
      const bool active = x < a.width && y < a.height && c < a.group_channels;
      const T* grad_output = a.grad_output + n * a.out_pixels() * a.channels + channel;
      S sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = S(0);
      int listed = 0;  // the same on all lanes
      const auto empty_list = [&] {
        __syncwarp();
        if (active) add_listed(list, listed, grad_output, a.channels, x, y, sum);
        __syncwarp();
        listed = 0;
      };
      for (int start = 0; start < surveys; start += kWarp) {
        const bool reaches = start + lane < surveys && overlap(reach[start + lane], tile);
        for (unsigned todo = __ballot_sync(kAllLanes, reaches); todo != 0; todo &= todo - 1) {
          const int survey = start + __ffs(int(todo)) - 1;
          for (int base = 0; base < candidates; base += kWarp) {
            listed += list_points(a, n, group, survey, base, tile, listed, list);
            if (listed > kListed - kWarp) empty_list();
          }
        }
      }
      empty_list();
      if (active) {
        store(sum, a.grad_input + (n * a.in_pixels() + y * a.width + x) * a.channels + channel);
      }
    }
  });
}

// Output tiles along one axis.
int64_t survey_columns(const Problem& problem) { return steps(problem.out_width, kLogSurveyW); }
int64_t survey_rows(const Problem& problem) { return steps(problem.out_height, kLogSurveyH); }

int64_t reach_bytes(const Problem& problem) {
  return problem.batch * problem.groups * survey_columns(problem) * survey_rows(problem) *
         int64_t(sizeof(int4));
}

int64_t ordered_workspace_bytes(const Problem& problem, DType dtype) {
  const int64_t softmax = problem.mask_is_logits ? 2 * sum_bytes(dtype) : 0;
  return reach_bytes(problem) +
         problem.batch * problem.out_height * problem.out_width * problem.groups * softmax;
}

cudaError_t backward_input_ordered(const Problem& problem, DType dtype, const void* grad_output,
                                   const void* offset, const void* mask, void* grad_input,
                                   void* workspace, cudaStream_t stream) {
  if (problem.batch * problem.height * problem.width * problem.channels() == 0) return cudaSuccess;
  const auto run = [&](auto variant) {
    using T = typename decltype(variant)::T;
    using S = typename Compute<T>::type;
    constexpr int V = decltype(variant)::V;
    OrderedWork<T> a = {};
    if (!describe(problem, offset, mask, V, &a)) return cudaErrorNotSupported;
    a.log_tile_w = (a.log_tasks + 1) / 2;
    a.log_tile_h = a.log_tasks - a.log_tile_w;
    a.tiles_x = steps(a.width, a.log_tile_w);
    a.tiles_y = steps(a.height, a.log_tile_h);
    a.survey_x = int(survey_columns(problem));
    a.survey_y = int(survey_rows(problem));
    a.grad_output = static_cast<const T*>(grad_output);
    a.grad_input = static_cast<S*>(grad_input);
    a.reach = static_cast<int4*>(workspace);
    a.softmax = reinterpret_cast<Softmax<S>*>(static_cast<char*>(workspace) + reach_bytes(problem));
    const auto grid = [&](int tiles) {
      return dim3(unsigned(steps(tiles, kLogWarps)),
                  unsigned(std::min(problem.batch * problem.groups, int64_t(kMostRows))));
    };
    const cudaError_t error =
        launch(survey_kernel<T>, a, grid(a.survey_x * a.survey_y), kThreads, 0, stream);
    if (error != cudaSuccess) return error;
    return launch(collect_kernel<T, V>, a, grid(a.tiles_x * a.tiles_y), kThreads,
                  int(sizeof(List<S>)) << kLogWarps, stream);
  };
  return with_variant(problem, dtype, run, grad_output);
}

}  // namespace gpu
}  // namespace dcnv3
