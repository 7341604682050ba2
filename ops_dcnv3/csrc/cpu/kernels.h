// The kernels, included once per instruction set with
//   DCNV3_NAMESPACE     the namespace of the instruction set
//   DCNV3_VECTOR_BYTES  its register width; 0 for compilers without vector extensions
//
// A tile of neighbouring output pixels is computed in two steps. The first computes position,
// bilinear weights and mask once for each sampling point, vectorised over points. The second walks
// over pixels and groups with the channels of a group in vector registers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "dcnv3_cpu.h"

namespace dcnv3 {
namespace DCNV3_NAMESPACE {
namespace {

// ------------------------------------------------------------------------------------ 16-bit
// floats

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_compute(float value) { return value; }
inline double to_compute(double value) { return value; }
inline float to_compute(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }

inline float to_compute(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Moving the exponent field as it is and scaling by the difference of the biases (2^112) is exact
  // for normal and subnormal numbers alike.
  const float finite = from_bits(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13 | 0x7f800000u) : to_bits(finite);
  return from_bits(bits | uint32_t(value.bits & 0x8000u) << 16);
}

inline void store(float value, float* to) { *to = value; }
inline void store(double value, double* to) { *to = value; }

// Both round to nearest, ties to even.
inline void store(float value, BFloat16* to) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to->bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

inline void store(float value, Float16* to) {
  const uint32_t bits = to_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  // Half a unit in the last place of 0.5f is the unit of subnormal halves, so the addition rounds.
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;              // 65520
  half = magnitude > 0x7f800000u ? 0x7e00u : half;               // NaN
  to->bits = uint16_t(half | (bits >> 16 & 0x8000u));
}

// --------------------------------------------------------------------------- channels in registers

// N channels of one group. Vectors are at most one register wide.
template <typename S, int N>
struct Lanes {
#if DCNV3_VECTOR_BYTES
  static constexpr int kRegister = DCNV3_VECTOR_BYTES / int(sizeof(S));
  static constexpr int kWidth = N < kRegister ? N : kRegister;
  typedef S Vector __attribute__((vector_size(kWidth * sizeof(S))));
#else
  static constexpr int kWidth = 1;
  using Vector = S;
#endif
  static constexpr int kCount = N / kWidth;
};

template <typename S>
struct Lanes<S, 1> {
  static constexpr int kWidth = 1;
  using Vector = S;
  static constexpr int kCount = 1;
};

template <typename V, typename S>
inline V load(const S* from, const S*) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline float load_scalar(const BFloat16* from) { return to_compute(*from); }
inline float load_scalar(const Float16* from) { return to_compute(*from); }

#if DCNV3_VECTOR_BYTES
// W unsigned 16-bit numbers as 32-bit ones. Written out for each width, since GCC 12 rejects
// __builtin_convertvector on vectors of dependent size.
template <int W>
struct Bits;

#define DCNV3_BITS(W)                                            \
  template <>                                                    \
  struct Bits<W> {                                               \
    typedef uint16_t Narrow __attribute__((vector_size(W * 2))); \
    typedef uint32_t Wide __attribute__((vector_size(W * 4)));   \
    static Wide load(const void* from) {                         \
      Narrow narrow;                                             \
      std::memcpy(&narrow, from, sizeof narrow);                 \
      return __builtin_convertvector(narrow, Wide);              \
    }                                                            \
  };
DCNV3_BITS(4)
#if DCNV3_VECTOR_BYTES >= 32
DCNV3_BITS(8)
#endif
#if DCNV3_VECTOR_BYTES >= 64
DCNV3_BITS(16)
#endif
#undef DCNV3_BITS

template <typename V>
inline V load(const BFloat16* from, const float*) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  if constexpr (kWidth == 1) {
    return load_scalar(from);
  } else {
    const auto bits = Bits<kWidth>::load(from) << 16;
    V value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
}

template <typename V>
inline V load(const Float16* from, const float*) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  if constexpr (kWidth == 1) {
    return load_scalar(from);
  } else {
    using Wide = typename Bits<kWidth>::Wide;
    const Wide bits = Bits<kWidth>::load(from);
    const Wide magnitude = bits & 0x7fffu;
    const Wide moved = magnitude << 13;
    V finite;
    std::memcpy(&finite, &moved, sizeof finite);
    finite *= 0x1p112f;
    Wide result;
    std::memcpy(&result, &finite, sizeof result);
    result = magnitude >= 0x7c00u ? (moved | 0x7f800000u) : result;
    result |= (bits & 0x8000u) << 16;
    V value;
    std::memcpy(&value, &result, sizeof value);
    return value;
  }
}
#else
template <typename V>
inline V load(const BFloat16* from, const float*) {
  return load_scalar(from);
}
template <typename V>
inline V load(const Float16* from, const float*) {
  return load_scalar(from);
}
#endif

template <typename V, typename S, typename T>
inline void store_vector(V value, T* to) {
  if constexpr (sizeof(V) == sizeof(S)) {
    store(value, to);
  } else if constexpr (std::is_same<S, T>::value) {
    std::memcpy(to, &value, sizeof value);
  } else {
    S lanes[sizeof(V) / sizeof(S)];
    std::memcpy(lanes, &value, sizeof value);
    for (size_t i = 0; i < sizeof(V) / sizeof(S); ++i) store(lanes[i], to + i);
  }
}

template <typename S, int W, typename V>
inline S sum_lanes(V value) {
  if constexpr (W == 1) {
    return value;
  } else {
    using Half = typename Lanes<S, W / 2>::Vector;
    Half parts[2];
    std::memcpy(parts, &value, sizeof value);
    return sum_lanes<S, W / 2>(parts[0] + parts[1]);
  }
}

// ------------------------------------------------------------------------------- sampling points

constexpr int32_t kBorder = -1;   // some corners are outside the image
constexpr int32_t kOutside = -2;  // the point does not count

// Arrays over the points of a tile.
template <typename S>
struct Points {
  std::vector<S> reals;
  std::vector<int32_t> ints;
  S *fraction_x, *fraction_y, *mask;  // first positions, then fractions
  S* weight[4];                       // mask times bilinear weight: top left, top right, bottom ...
  int32_t *left, *top;
  int32_t* pixel;  // index of the top left corner, or kBorder, or kOutside

  explicit Points(int64_t size) : reals(7 * size), ints(3 * size) {
    fraction_x = reals.data();
    fraction_y = fraction_x + size;
    mask = fraction_y + size;
    for (int c = 0; c < 4; ++c) weight[c] = mask + (c + 1) * size;
    left = ints.data();
    top = left + size;
    pixel = top + size;
  }
};

// The regular grid about the kernel's centre, for `repeat` groups one after the other.
template <typename S>
struct Grid {
  std::vector<S> x, y;

  Grid(const Problem& problem, int64_t repeat) {
    const int64_t half_w = problem.dilation_w * (problem.kernel_w - 1) / 2;
    const int64_t half_h = problem.dilation_h * (problem.kernel_h - 1) / 2;
    for (int64_t r = 0; r < repeat; ++r) {
      for (int64_t i = 0; i < problem.kernel_w; ++i) {
        for (int64_t j = 0; j < problem.kernel_h; ++j) {
          if (problem.remove_center && i == problem.kernel_w / 2 && j == problem.kernel_h / 2) {
            continue;
          }
          x.push_back(S(i * problem.dilation_w - half_w));
          y.push_back(S(j * problem.dilation_h - half_h));
        }
      }
    }
  }
};

// Positions and masks of `count` points of one output pixel.
template <typename T, typename S>
inline void read_points(const Problem& problem, const Grid<S>& grid, int64_t out_y, int64_t out_x,
                        const T* __restrict__ offset, const T* __restrict__ mask, int64_t count,
                        S* __restrict__ x, S* __restrict__ y, S* __restrict__ m) {
  const S scale = S(problem.offset_scale);
  const S center_x =
      S(out_x * problem.stride_w - problem.pad_w + problem.dilation_w * (problem.kernel_w - 1) / 2);
  const S center_y =
      S(out_y * problem.stride_h - problem.pad_h + problem.dilation_h * (problem.kernel_h - 1) / 2);
  const S* __restrict__ grid_x = grid.x.data();
  const S* __restrict__ grid_y = grid.y.data();
  for (int64_t p = 0; p < count; ++p) {
    x[p] = center_x + scale * (grid_x[p] + to_compute(offset[2 * p]));
    y[p] = center_y + scale * (grid_y[p] + to_compute(offset[2 * p + 1]));
    m[p] = to_compute(mask[p]);
  }
}

inline double exp_nonpositive(double x) { return std::exp(x); }

// exp(x) for finite x <= 0, written so that compilers vectorise it: 2^n * exp(r) with n the nearest
// integer to x / ln 2 and the Taylor polynomial of exp on |r| <= ln(2) / 2 (error below 2e-7).
inline float exp_nonpositive(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  const int32_t n = int32_t(bounded * 1.44269504f - 0.5f);  // truncates towards zero: rounds
  const float r = (bounded - float(n) * 0.693145752f) - float(n) * 1.42860677e-6f;
  float sum = 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const float power = from_bits(uint32_t(n + 127) << 23);
  return x < -87.0f ? 0.0f : sum * power;
}

// Softmax over each run of `points` masks.
template <typename S>
inline void softmax(S* __restrict__ mask, int64_t groups, int64_t points) {
  for (int64_t g = 0; g < groups; ++g) {
    S* __restrict__ logits = mask + g * points;
    S largest = logits[0];
    S finite = 0;  // becomes NaN if a logit is NaN or infinite
    for (int64_t p = 0; p < points; ++p) {
      largest = logits[p] > largest ? logits[p] : largest;
      finite += logits[p] * S(0);
    }
    if (finite == S(0)) {
      for (int64_t p = 0; p < points; ++p) logits[p] = exp_nonpositive(logits[p] - largest);
    } else {
      for (int64_t p = 0; p < points; ++p) {
        largest = logits[p] != logits[p] ? logits[p] : largest;
      }
      for (int64_t p = 0; p < points; ++p) logits[p] = std::exp(logits[p] - largest);
    }
    S sum = 0;
    for (int64_t p = 0; p < points; ++p) sum += logits[p];
    const S inverse = S(1) / sum;
    for (int64_t p = 0; p < points; ++p) logits[p] *= inverse;
  }
}

// Turn positions into fractions, weights and corner indices.
template <typename S>
inline void locate(const Problem& problem, int64_t count, const Points<S>& points) {
  const S width = S(problem.width), height = S(problem.height);
  const int32_t row = int32_t(problem.width);
  const int32_t last_column = row - 1, last_row = int32_t(problem.height) - 1;
  S* __restrict__ fraction_x = points.fraction_x;
  S* __restrict__ fraction_y = points.fraction_y;
  const S* __restrict__ mask = points.mask;
  S* __restrict__ w0 = points.weight[0];
  S* __restrict__ w1 = points.weight[1];
  S* __restrict__ w2 = points.weight[2];
  S* __restrict__ w3 = points.weight[3];
  int32_t* __restrict__ left = points.left;
  int32_t* __restrict__ top = points.top;
  int32_t* __restrict__ pixel = points.pixel;
  for (int64_t p = 0; p < count; ++p) {
    S x = fraction_x[p], y = fraction_y[p];
    // False for NaN, which so becomes a point outside.
    // As integers and not as bool, which GCC does not vectorise here.
    const int32_t counts =
        (x > S(-1) ? 1 : 0) & (x < width ? 1 : 0) & (y > S(-1) ? 1 : 0) & (y < height ? 1 : 0);
    x = counts != 0 ? x : S(0);
    y = counts != 0 ? y : S(0);
    int32_t x0 = int32_t(x), y0 = int32_t(y);
    x0 -= x < S(x0) ? 1 : 0;  // floor
    y0 -= y < S(y0) ? 1 : 0;
    // In integers: sides beyond 2^24 have no exact float.
    const int32_t inside = counts & (x0 >= 0 ? 1 : 0) & (x0 < last_column ? 1 : 0) &
                           (y0 >= 0 ? 1 : 0) & (y0 < last_row ? 1 : 0);
    const S fx = x - S(x0), fy = y - S(y0);
    const S gx = S(1) - fx, gy = S(1) - fy;
    w0[p] = mask[p] * (gy * gx);
    w1[p] = mask[p] * (gy * fx);
    w2[p] = mask[p] * (fy * gx);
    w3[p] = mask[p] * (fy * fx);
    fraction_x[p] = fx;
    fraction_y[p] = fy;
    left[p] = x0;
    top[p] = y0;
    const int32_t otherwise = counts != 0 ? kBorder : kOutside;
    pixel[p] = inside != 0 ? y0 * row + x0 : otherwise;
  }
}

// Index of corner c of a border point, or -1 if it is outside the image.
inline int64_t border_corner(const Problem& problem, int32_t left, int32_t top, int c) {
  const int64_t x = int64_t(left) + (c & 1), y = int64_t(top) + (c >> 1);
  const bool inside = x >= 0 && x < problem.width && y >= 0 && y < problem.height;
  return inside ? y * problem.width + x : -1;
}

// Neighbouring pixels of a tile, so that its points stay in the first-level cache.
inline int64_t tile_pixels(int64_t points_per_pixel) {
  return std::max<int64_t>(1, 256 / points_per_pixel);
}

// --------------------------------------------------------------------------------------- forward

// N channels of one group at one output pixel.
template <int N, typename T, typename S>
inline void sample(const Problem& problem, const Points<S>& points, int64_t first, int64_t count,
                   const T* __restrict__ image, T* __restrict__ output) {
  using L = Lanes<S, N>;
  using Vector = typename L::Vector;
  // Several sums, because a multiply-add has to wait for the one before it on the same register.
  constexpr int kSums = L::kCount >= 4 ? 1 : (L::kCount == 2 ? 2 : 4);
  const int64_t channels = problem.channels();
  const int64_t step[4] = {0, channels, problem.width * channels, (problem.width + 1) * channels};
  Vector sum[kSums][L::kCount] = {};
  for (int64_t p = first; p < first + count; ++p) {
    const int32_t pixel = points.pixel[p];
    if (pixel >= 0) {
      const T* from = image + pixel * channels;
      for (int c = 0; c < 4; ++c) {
        const S weight = points.weight[c][p];
        for (int v = 0; v < L::kCount; ++v) {
          sum[c % kSums][v] +=
              weight * load<Vector>(from + step[c] + v * L::kWidth, static_cast<S*>(nullptr));
        }
      }
    } else if (pixel == kBorder) {
      for (int c = 0; c < 4; ++c) {
        const int64_t corner = border_corner(problem, points.left[p], points.top[p], c);
        if (corner < 0) continue;
        const S weight = points.weight[c][p];
        for (int v = 0; v < L::kCount; ++v) {
          sum[0][v] += weight * load<Vector>(image + corner * channels + v * L::kWidth,
                                             static_cast<S*>(nullptr));
        }
      }
    }
  }
  for (int v = 0; v < L::kCount; ++v) {
    Vector total = sum[0][v];
    for (int s = 1; s < kSums; ++s) total += sum[s][v];
    store_vector<Vector, S>(total, output + v * L::kWidth);
  }
}

// Split `channels` into register blocks: visit(std::integral_constant<int, N>, first channel).
template <typename Visit>
inline void for_channel_blocks(int64_t channels, Visit visit) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) visit(std::integral_constant<int, 32>(), c);
  for (; c + 16 <= channels; c += 16) visit(std::integral_constant<int, 16>(), c);
  for (; c + 8 <= channels; c += 8) visit(std::integral_constant<int, 8>(), c);
  for (; c + 4 <= channels; c += 4) visit(std::integral_constant<int, 4>(), c);
  for (; c < channels; ++c) visit(std::integral_constant<int, 1>(), c);
}

template <typename T>
void forward_rows(const Problem& problem, const T* input, const T* offset, const T* mask, T* output,
                  int64_t begin, int64_t end) {
  using S = typename Compute<T>::type;
  const int64_t num_points = problem.points(), per_pixel = problem.groups * num_points;
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t tile = tile_pixels(per_pixel);
  const Grid<S> grid(problem, problem.groups);
  Points<S> points(tile * per_pixel);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t out_y = row % problem.out_height;
    const T* image = input + row / problem.out_height * problem.height * problem.width * channels;
    for (int64_t x0 = 0; x0 < problem.out_width; x0 += tile) {
      const int64_t pixels = std::min(tile, problem.out_width - x0);
      const int64_t first = row * problem.out_width + x0;
      for (int64_t q = 0; q < pixels; ++q) {
        const int64_t at = q * per_pixel;
        read_points(problem, grid, out_y, x0 + q, offset + (first + q) * problem.offset_stride,
                    mask + (first + q) * problem.mask_stride, per_pixel, points.fraction_x + at,
                    points.fraction_y + at, points.mask + at);
      }
      if (problem.mask_is_logits) softmax(points.mask, pixels * problem.groups, num_points);
      locate(problem, pixels * per_pixel, points);
      for (int64_t task = 0; task < pixels * problem.groups; ++task) {
        const int64_t from = task % problem.groups * group_channels;
        T* to = output + first * channels + task * group_channels;
        for_channel_blocks(group_channels, [&](auto block, int64_t c) {
          sample<decltype(block)::value>(problem, points, task * num_points, num_points,
                                         image + from + c, to + c);
        });
      }
    }
  }
}

// -------------------------------------------------------------------------------------- backward

// N channels of one group at one output pixel: add to grad_input, and to dots[corner] the product
// of the output gradient with each corner's values.
template <int N, typename T, typename S>
inline void scatter(const Problem& problem, const Points<S>& points, int64_t first, int64_t count,
                    const T* __restrict__ grad_output, const T* __restrict__ image,
                    S* __restrict__ grad_image, S* const* dots) {
  using L = Lanes<S, N>;
  using Vector = typename L::Vector;
  const int64_t channels = problem.channels();
  const int64_t step[4] = {0, channels, problem.width * channels, (problem.width + 1) * channels};
  Vector grad[L::kCount];
  for (int v = 0; v < L::kCount; ++v) {
    grad[v] = load<Vector>(grad_output + v * L::kWidth, static_cast<S*>(nullptr));
  }
  const auto corner = [&](int64_t p, int c, int64_t at) {
    const S weight = points.weight[c][p];
    Vector dot = {};
    for (int v = 0; v < L::kCount; ++v) {
      const int64_t from = at + v * L::kWidth;
      dot += grad[v] * load<Vector>(image + from, static_cast<S*>(nullptr));
      Vector sum = load<Vector>(grad_image + from, static_cast<S*>(nullptr));
      sum += weight * grad[v];
      std::memcpy(grad_image + from, &sum, sizeof sum);
    }
    dots[c][p] += sum_lanes<S, L::kWidth>(dot);
  };
  for (int64_t p = first; p < first + count; ++p) {
    const int32_t pixel = points.pixel[p];
    if (pixel >= 0) {
      for (int c = 0; c < 4; ++c) corner(p, c, pixel * channels + step[c]);
    } else if (pixel == kBorder) {
      for (int c = 0; c < 4; ++c) {
        const int64_t at = border_corner(problem, points.left[p], points.top[p], c);
        if (at >= 0) corner(p, c, at * channels);
      }
    }
  }
}

template <typename T>
void backward_groups(const Problem& problem, const T* grad_output, const T* input, const T* offset,
                     const T* mask, typename Compute<T>::type* grad_input, T* grad_offset,
                     T* grad_mask, int64_t begin, int64_t end) {
  using S = typename Compute<T>::type;
  const int64_t num_points = problem.points();
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t image_size = problem.height * problem.width * channels;
  const int64_t tile = tile_pixels(num_points);
  const S scale = S(problem.offset_scale);
  const Grid<S> grid(problem, 1);
  Points<S> points(tile * num_points);
  std::vector<S> buffer(7 * tile * num_points);
  S* dots[4];
  for (int c = 0; c < 4; ++c) dots[c] = buffer.data() + c * tile * num_points;
  S* __restrict__ grad_x = buffer.data() + 4 * tile * num_points;
  S* __restrict__ grad_y = grad_x + tile * num_points;
  S* __restrict__ grad_m = grad_y + tile * num_points;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / problem.groups, group = task % problem.groups;
    const int64_t from = image * image_size + group * group_channels;
    for (int64_t out_y = 0; out_y < problem.out_height; ++out_y) {
      for (int64_t x0 = 0; x0 < problem.out_width; x0 += tile) {
        const int64_t pixels = std::min(tile, problem.out_width - x0);
        const int64_t count = pixels * num_points;
        const int64_t first = (image * problem.out_height + out_y) * problem.out_width + x0;
        for (int64_t q = 0; q < pixels; ++q) {
          const int64_t at = q * num_points;
          read_points(problem, grid, out_y, x0 + q,
                      offset + (first + q) * problem.offset_stride + group * num_points * 2,
                      mask + (first + q) * problem.mask_stride + group * num_points, num_points,
                      points.fraction_x + at, points.fraction_y + at, points.mask + at);
        }
        if (problem.mask_is_logits) softmax(points.mask, pixels, num_points);
        locate(problem, count, points);
        std::fill(buffer.begin(), buffer.begin() + 4 * tile * num_points, S(0));
        for (int64_t q = 0; q < pixels; ++q) {
          const T* grad = grad_output + (first + q) * channels + group * group_channels;
          for_channel_blocks(group_channels, [&](auto block, int64_t c) {
            scatter<decltype(block)::value>(problem, points, q * num_points, num_points, grad + c,
                                            input + from + c, grad_input + from + c, dots);
          });
        }
        for (int64_t p = 0; p < count; ++p) {
          const S fx = points.fraction_x[p], fy = points.fraction_y[p];
          const S gx = S(1) - fx, gy = S(1) - fy;
          const S d0 = dots[0][p], d1 = dots[1][p], d2 = dots[2][p], d3 = dots[3][p];
          const S factor = scale * points.mask[p];
          const bool counts = points.pixel[p] != kOutside;
          grad_m[p] = counts ? gy * (gx * d0 + fx * d1) + fy * (gx * d2 + fx * d3) : S(0);
          grad_x[p] = counts ? factor * (gy * (d1 - d0) + fy * (d3 - d2)) : S(0);
          grad_y[p] = counts ? factor * (gx * (d2 - d0) + fx * (d3 - d1)) : S(0);
        }
        for (int64_t q = 0; q < pixels; ++q) {
          const int64_t at = q * num_points;
          if (problem.mask_is_logits) {
            S mean = 0;
            for (int64_t p = at; p < at + num_points; ++p) mean += points.mask[p] * grad_m[p];
            for (int64_t p = at; p < at + num_points; ++p) {
              grad_m[p] = points.mask[p] * (grad_m[p] - mean);
            }
          }
          const int64_t to = ((first + q) * problem.groups + group) * num_points;
          for (int64_t p = 0; p < num_points; ++p) {
            store(grad_x[at + p], grad_offset + 2 * (to + p));
            store(grad_y[at + p], grad_offset + 2 * (to + p) + 1);
            store(grad_m[at + p], grad_mask + to + p);
          }
        }
      }
    }
  }
}

}  // namespace

template <typename T>
Kernels<T> kernels() {
  return {forward_rows<T>, backward_groups<T>};
}

template Kernels<float> kernels();
template Kernels<double> kernels();
template Kernels<BFloat16> kernels();
template Kernels<Float16> kernels();

}  // namespace DCNV3_NAMESPACE
}  // namespace dcnv3
