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

template <typename T>
struct OrderedArguments {
  using S = typename Compute<T>::type;
  Sampling<0, S> sampling;
  int batch, channels, group_channels;
  int log_lanes, section, log_tile_w, log_tile_h;
  int survey_x, survey_y;  // output tiles
  int tiles_x, tiles_y;    // input tiles
  const T* grad_output;
  const T* offset;
  const T* mask;
  S* grad_input;
  int4* reach;          // [image][group][output tile]: first and last column, first and last row
  Softmax<S>* softmax;  // [image][output pixel][group], if the mask is logits
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) survey_kernel(const OrderedArguments<T> a) {
  using S = typename Compute<T>::type;
  const Sampling<0, S>& sampling = a.sampling;
  const int lane = int(threadIdx.x) % kWarp;
  const int tiles = a.survey_x * a.survey_y;
  const int tile = int(blockIdx.x) * (int(blockDim.x) / kWarp) + int(threadIdx.x) / kWarp;
  if (tile >= tiles) return;
  const int x = (tile % a.survey_x << kLogSurveyW) + (lane & ((1 << kLogSurveyW) - 1));
  const int y = (tile / a.survey_x << kLogSurveyH) + (lane >> kLogSurveyW);
  const bool valid = x < sampling.out_width && y < sampling.out_height;
  const int pixels = sampling.out_height * sampling.out_width;
  const int64_t images = int64_t(a.batch) * sampling.groups;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    const int group = int(image % sampling.groups);
    const int64_t pixel =
        image / sampling.groups * pixels + (valid ? y * sampling.out_width + x : 0);
    const int point = group * sampling.points;
    int4 reach = make_int4(INT_MAX, INT_MIN, INT_MAX, INT_MIN);
    if (valid) {
      for (int p = 0; p < sampling.points; ++p) {
        S at_x, at_y;
        int left, top;
        sampling.position(a.offset + pixel * sampling.offset_stride + 2 * (point + p), x, y, p,
                          at_x, at_y);
        if (sampling.locate(at_x, at_y, left, top) == 0) continue;
        reach.x = min(reach.x, left);
        reach.y = max(reach.y, left + 1);
        reach.z = min(reach.z, top);
        reach.w = max(reach.w, top + 1);
      }
    }
    for (int step = 1; step < kWarp; step <<= 1) {
      reach.x = min(reach.x, __shfl_xor_sync(kAllLanes, reach.x, step));
      reach.y = max(reach.y, __shfl_xor_sync(kAllLanes, reach.y, step));
      reach.z = min(reach.z, __shfl_xor_sync(kAllLanes, reach.z, step));
      reach.w = max(reach.w, __shfl_xor_sync(kAllLanes, reach.w, step));
    }
    if (lane == 0) a.reach[image * tiles + tile] = reach;
    if (sampling.logits) {
      const Softmax<S> softmax = find_softmax<T, S>(a.mask + pixel * sampling.mask_stride + point,
                                                    sampling.points, valid, 0, 0);
      if (valid) a.softmax[pixel * sampling.groups + group] = softmax;
    }
  }
}

template <typename S>
struct List {
  S x[kListed], y[kListed], mask[kListed];
  int pixel[kListed];  // output pixel
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    collect_kernel(const OrderedArguments<T> a) {
  using S = typename Compute<T>::type;
  extern __shared__ uint4 shared_memory[];
  const Sampling<0, S>& sampling = a.sampling;
  List<S>& list = reinterpret_cast<List<S>*>(shared_memory)[threadIdx.x / kWarp];
  const int lane = int(threadIdx.x) % kWarp;
  const int tile = int(blockIdx.x) * (int(blockDim.x) / kWarp) + int(threadIdx.x) / kWarp;
  if (tile >= a.tiles_x * a.tiles_y) return;
  const int first_x = tile % a.tiles_x << a.log_tile_w, first_y = tile / a.tiles_x << a.log_tile_h;
  const int last_x = first_x + (1 << a.log_tile_w) - 1, last_y = first_y + (1 << a.log_tile_h) - 1;
  const int own = lane >> a.log_lanes;
  const int x = first_x + (own & ((1 << a.log_tile_w) - 1)), y = first_y + (own >> a.log_tile_w);
  const bool valid = x < sampling.width && y < sampling.height;
  const int channel = (lane & ((1 << a.log_lanes) - 1)) * V;
  const int pixels = sampling.out_height * sampling.out_width;
  const int surveys = a.survey_x * a.survey_y;
  const int candidates = sampling.points << (kLogSurveyW + kLogSurveyH);
  const int64_t images = int64_t(a.batch) * sampling.groups;

  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    const int group = int(image % sampling.groups);
    const int64_t n = image / sampling.groups;
    const T* offset = a.offset + n * pixels * sampling.offset_stride;
    const T* mask = a.mask + n * pixels * sampling.mask_stride;
    const Softmax<S>* softmax = a.softmax + n * pixels * sampling.groups + group;
    for (int section = 0; section < a.group_channels; section += a.section) {
      const int c = section + channel;
      const bool active = valid && c < a.group_channels;
      const T* grad_output = a.grad_output + n * pixels * a.channels + group * a.group_channels + c;
      S sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = S(0);
      int listed = 0;  // the same on all lanes

      const auto add_listed = [&] {
        __syncwarp();
        if (active) {
          for (int i = 0; i < listed; ++i) {
            const S near_x = S(1) - fabs(list.x[i] - S(x)), near_y = S(1) - fabs(list.y[i] - S(y));
            if (!(near_x > S(0) && near_y > S(0))) continue;
            const S weight = list.mask[i] * (near_y * near_x);
            S grad[V];
            load(grad_output + int64_t(list.pixel[i]) * a.channels, grad);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += weight * grad[v];
          }
        }
        __syncwarp();
        listed = 0;
      };

      for (int start = 0; start < surveys; start += kWarp) {
        bool reaches = false;
        if (start + lane < surveys) {
          const int4 reach = a.reach[image * surveys + start + lane];
          reaches =
              reach.x <= last_x && reach.y >= first_x && reach.z <= last_y && reach.w >= first_y;
        }
        unsigned todo = __ballot_sync(kAllLanes, reaches);
        while (todo != 0) {
          const int survey = start + __ffs(int(todo)) - 1;
          todo &= todo - 1;
          const int survey_x = survey % a.survey_x << kLogSurveyW;
          const int survey_y = survey / a.survey_x << kLogSurveyH;
          for (int base = 0; base < candidates; base += kWarp) {
            const int q = (base + lane) / sampling.points;
            const int p = base + lane - q * sampling.points;
            const int out_x = survey_x + (q & ((1 << kLogSurveyW) - 1));
            const int out_y = survey_y + (q >> kLogSurveyW);
            S at_x = S(0), at_y = S(0), m = S(0);
            int pixel = 0;
            bool found = false;
            if (base + lane < candidates && out_x < sampling.out_width &&
                out_y < sampling.out_height) {
              pixel = out_y * sampling.out_width + out_x;
              const int point = group * sampling.points + p;
              sampling.position(offset + int64_t(pixel) * sampling.offset_stride + 2 * point, out_x,
                                out_y, p, at_x, at_y);
              S x_part = at_x, y_part = at_y;
              int left, top;
              found = sampling.locate(x_part, y_part, left, top) != 0 && left <= last_x &&
                      left + 1 >= first_x && top <= last_y && top + 1 >= first_y;
              if (found) {
                m = to_compute(mask[int64_t(pixel) * sampling.mask_stride + point]);
                if (sampling.logits) m = softmax[int64_t(pixel) * sampling.groups](m);
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
            listed += __popc(finds);
            if (listed > kListed - kWarp) add_listed();
          }
        }
      }
      add_listed();
      if (active) {
        S* to = a.grad_input +
                (n * (sampling.height * sampling.width) + y * sampling.width + x) * a.channels +
                group * a.group_channels + c;
        store(sum, to);
      }
    }
  }
}

template <typename T>
void describe_tiles(const Problem& problem, OrderedArguments<T>* a) {
  a->batch = int(problem.batch);
  a->channels = int(problem.channels());
  a->group_channels = int(problem.group_channels);
  a->survey_x = int((problem.out_width + (1 << kLogSurveyW) - 1) >> kLogSurveyW);
  a->survey_y = int((problem.out_height + (1 << kLogSurveyH) - 1) >> kLogSurveyH);
}

int64_t reach_bytes(const Problem& problem) {
  const int64_t columns = (problem.out_width + (1 << kLogSurveyW) - 1) >> kLogSurveyW;
  const int64_t rows = (problem.out_height + (1 << kLogSurveyH) - 1) >> kLogSurveyH;
  return problem.batch * problem.groups * columns * rows * int64_t(sizeof(int4));
}

template <typename T, int V>
cudaError_t ordered_as(const Problem& problem, const void* grad_output, const void* offset,
                       const void* mask, void* grad_input, void* workspace, cudaStream_t stream) {
  using S = typename Compute<T>::type;
  OrderedArguments<T> a = {};
  if (!describe(problem, &a.sampling)) return cudaErrorInvalidValue;
  a.sampling.paired = paired_offsets<T>(problem, offset);
  describe_tiles(problem, &a);
  const int log_lanes = log2_ceil((problem.group_channels + V - 1) / V);
  a.log_lanes = log_lanes < 5 ? log_lanes : 5;
  a.section = V << a.log_lanes;
  a.log_tile_w = (6 - a.log_lanes) / 2;
  a.log_tile_h = 5 - a.log_lanes - a.log_tile_w;
  a.tiles_x = int((problem.width + (1 << a.log_tile_w) - 1) >> a.log_tile_w);
  a.tiles_y = int((problem.height + (1 << a.log_tile_h) - 1) >> a.log_tile_h);
  a.grad_output = static_cast<const T*>(grad_output);
  a.offset = static_cast<const T*>(offset);
  a.mask = static_cast<const T*>(mask);
  a.grad_input = static_cast<S*>(grad_input);
  a.reach = static_cast<int4*>(workspace);
  a.softmax = reinterpret_cast<Softmax<S>*>(static_cast<char*>(workspace) + reach_bytes(problem));

  const int64_t images = problem.batch * problem.groups;
  const auto grid = [&](int tiles) {
    constexpr int kBlockTiles = kThreads / kWarp;
    return dim3(unsigned((tiles + kBlockTiles - 1) / kBlockTiles),
                unsigned(images < 65535 ? images : 65535));
  };
  if (a.survey_x * a.survey_y > 0) {
    const cudaError_t error =
        launch(survey_kernel<T>, a, grid(a.survey_x * a.survey_y), kThreads, 0, stream);
    if (error != cudaSuccess) return error;
  }
  return launch(collect_kernel<T, V>, a, grid(a.tiles_x * a.tiles_y), kThreads,
                int(sizeof(List<S>)) * (kThreads / kWarp), stream);
}

template <typename T>
cudaError_t ordered_of(const Problem& problem, const void* grad_output, const void* offset,
                       const void* mask, void* grad_input, void* workspace, cudaStream_t stream) {
  constexpr int kWide = 16 / int(sizeof(T));
  const int width = vector_width<T>(problem.group_channels, grad_output, grad_input);
  const auto run = width == kWide ? ordered_as<T, kWide> : ordered_as<T, 1>;
  return run(problem, grad_output, offset, mask, grad_input, workspace, stream);
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
  const auto run = dtype == DType::kFloat32    ? ordered_of<float>
                   : dtype == DType::kFloat64  ? ordered_of<double>
                   : dtype == DType::kBFloat16 ? ordered_of<__nv_bfloat16>
                                               : ordered_of<__half>;
  return run(problem, grad_output, offset, mask, grad_input, workspace, stream);
}

}  // namespace gpu
}  // namespace dcnv3
