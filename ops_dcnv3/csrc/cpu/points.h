// Sampling points: positions, masks and bilinear weights, vectorised over points.
//
// Included by kernels.h, inside its namespace.

constexpr int32_t kOutside = -1;  // the point does not count

// Which of a point's two columns, or rows, are in the image.
constexpr int32_t kBoth = -1, kFirst = 0, kSecond = 1;

// Arrays over the points of a tile, each with room for one register more.
template <typename S>
struct Points {
  static constexpr int64_t kAlign = 64;  // bytes: a register does not straddle cache lines
  std::vector<char> memory;
  S* mask;         // after the softmax, if there is one
  S* weight;       // four a point, mask times bilinear weight: top left, top right, bottom ...
  int32_t* pixel;  // index of the first corner in the image, or kOutside
  // kBoth, or kFirst, in the backward kSecond; kFirst for a point that does not count
  int32_t *columns, *rows;
  // backward only
  S *x, *y;  // fractions
  S* dot;    // four a point: output gradient times what was read for the corner

  Points(int64_t size, bool backward) {
    const int64_t room = (size + Pack<S>::kWidth + kAlign - 1) / kAlign * kAlign;
    memory.resize(room * ((5 + (backward ? 6 : 0)) * sizeof(S) + 3 * sizeof(int32_t)) + kAlign);
    char* at = memory.data();
    at += kAlign - reinterpret_cast<uintptr_t>(at) % kAlign;
    const auto take = [&](auto*& array, int64_t elements) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += elements * sizeof *array;
    };
    take(mask, room);
    take(weight, 4 * room);
    take(pixel, room);
    take(columns, room);
    take(rows, room);
    take(x, backward ? room : 0);
    take(y, backward ? room : 0);
    take(dot, backward ? 4 * room : 0);
  }
};

// The regular grid about the kernel's centre, for `repeat` groups one after the other, and zeros
// for one register more.
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
    x.resize(x.size() + Pack<S>::kWidth);
    y.resize(x.size());
  }
};

template <typename S>
inline typename Pack<S>::Real load_pack(const S* from) {
  return load_vector<typename Pack<S>::Real>(from);
}

template <typename V, typename E>
inline void store_pack(V value, E* to) {
  std::memcpy(to, &value, sizeof value);
}

// `from` itself if `size` elements can be read there without passing `end`, else a copy of the
// first `valid` ones, followed by zeros.
template <int size, typename T>
inline const T* whole_pack(const T* from, const T* end, int64_t valid, T* copy) {
  if (end - from >= size) return from;
  std::memset(copy, 0, size * sizeof(T));
  std::memcpy(copy, from, std::min<int64_t>(size, valid) * sizeof(T));
  return copy;
}

// Offsets and masks of a problem, with the ends of their memory.
template <typename T>
struct PointSource {
  const T *offset, *mask, *offset_end, *mask_end;

  PointSource(const Problem& problem, const T* offset_, const T* mask_)
      : offset(offset_), mask(mask_) {
    const int64_t last = problem.batch * problem.out_height * problem.out_width - 1;
    const int64_t per_pixel = problem.groups * problem.points();
    offset_end = offset + last * problem.offset_stride + 2 * per_pixel;
    mask_end = mask + last * problem.mask_stride + per_pixel;
  }
};

// exp(x) for x <= 0: 2^n * exp(r) with n the nearest integer to x / ln 2 and the Taylor polynomial
// of exp on |r| <= ln(2) / 2 (error below 2e-7). NaN for NaN.
template <typename S>
inline typename Pack<S>::Real exp_nonpositive(typename Pack<S>::Real x) {
  if constexpr (std::is_same<S, double>::value) {
    return std::exp(x);
  } else {
    using P = Pack<S>;
    const typename P::Real zero = {};
    const typename P::Real bounded = x < zero - 87.0f ? zero - 87.0f : x;
    // Truncates towards zero, hence rounds. The comparison replaces NaN.
    const typename P::Real n_real = bounded * 1.44269504f - 0.5f;
    const typename P::Int n = P::truncate(n_real <= zero ? n_real : zero);
    const typename P::Real n_exact = P::real(n);
    const typename P::Real r = (bounded - n_exact * 0.693145752f) - n_exact * 1.42860677e-6f;
    typename P::Real sum = r * (1.0f / 720) + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return x < zero - 87.0f ? zero : sum * P::power_of_two(n);
  }
}

// Softmax over each of `runs` runs of `count` numbers, in place. kPoints is the count if it is
// known at compile time, else 0. Writes up to a register more.
//
// Sums and maxima are taken number by number: within a register they would take more shuffles than
// a run has numbers.
template <int kPoints, typename S>
inline void softmax(S* values, int64_t runs, int64_t points) {
  const int64_t count = kPoints ? kPoints : points;
  for (int64_t r = 0; r < runs; ++r) {
    S* run = values + r * count;
    S largest = run[0];
    for (int64_t p = 1; p < count; ++p) largest = run[p] > largest ? run[p] : largest;
    for (int64_t p = 0; p < count; ++p) run[p] -= largest;
  }
  for (int64_t p = 0; p < runs * count; p += Pack<S>::kWidth) {
    store_pack(exp_nonpositive<S>(load_pack(values + p)), values + p);
  }
  for (int64_t r = 0; r < runs; ++r) {
    S* run = values + r * count;
    S sum = run[0];
    for (int64_t p = 1; p < count; ++p) sum += run[p];
    const S inverse = S(1) / sum;
    for (int64_t p = 0; p < count; ++p) run[p] *= inverse;
  }
}

// Masks of `count` points of each of `pixels` output pixels, from their point `first` on, before
// the softmax. Writes up to a register more.
template <typename T, typename S>
inline void read_masks(const Problem& problem, const PointSource<T>& source, int64_t first_pixel,
                       int64_t pixels, int64_t first, int64_t count, S* masks) {
  using P = Pack<S>;
  T copy[P::kWidth];
  for (int64_t q = 0; q < pixels; ++q) {
    const T* mask = source.mask + (first_pixel + q) * problem.mask_stride + first;
    for (int64_t p = 0; p < count; p += P::kWidth) {
      const T* pack = whole_pack<P::kWidth>(mask + p, source.mask_end, count - p, copy);
      store_pack(load_vector<typename P::Real>(pack), masks + q * count + p);
    }
  }
}

// From the gradient of softmax(logits) to that of the logits, in place: run by run of `count`
// points mask * (gradient - sum of mask * gradient).
template <int kPoints, typename S>
inline void softmax_backward(const S* mask, S* gradient, int64_t runs, int64_t points) {
  const int64_t count = kPoints ? kPoints : points;
  for (const S* end = mask + runs * count; mask < end; mask += count, gradient += count) {
    S mean = 0;
    for (int64_t p = 0; p < count; ++p) mean += mask[p] * gradient[p];
    for (int64_t p = 0; p < count; ++p) gradient[p] = mask[p] * (gradient[p] - mean);
  }
}

// Whether no point touches image rows outside [lowest, highest), as if each had two.
template <typename S>
inline bool stays_within(const Problem& problem, const Points<S>& points, int64_t first,
                         int64_t count, int64_t lowest, int64_t highest) {
  for (int64_t p = first; p < first + count; ++p) {
    const int64_t pixel = points.pixel[p];
    if (pixel == kOutside) continue;
    if (pixel < lowest * problem.width || pixel >= (highest - 1) * problem.width) return false;
  }
  return true;
}

// A point's two weights along one axis. `low_in` and `high_in` say which of its corners are in the
// image, one of them at least. If it is one alone, the kernels take it in place of the other too,
// and each gets half of its weight, which is exact. To take a neighbour with weight zero would not
// do: it may be infinite.
template <typename P>
struct AxisWeights {
  typename P::Real low, high;
  AxisWeights(typename P::Real fraction, typename P::Mask low_in, typename P::Mask high_in) {
    const typename P::Real half = fraction * 0.5f, rest = 1.0f - fraction;
    low = low_in ? (high_in ? rest : rest * 0.5f) : half;
    high = high_in ? (low_in ? fraction : half) : rest * 0.5f;
  }
};

// Weights and corner indices of `count` points of one output pixel, from its point `first` on, for
// the points of the tile from `at` on, whose masks are there; with kBackward fractions as well.
// Returns whether all corners are in the image; false for sides beyond 2^24, which makes no
// difference to results. Writes up to a register more.
template <bool kBackward, typename T, typename S>
inline bool locate(const Problem& problem, const Grid<S>& grid, const PointSource<T>& source,
                   int64_t pixel, int64_t out_y, int64_t out_x, int64_t first, int64_t count,
                   const Points<S>& points, int64_t at) {
  using P = Pack<S>;
  using Real = typename P::Real;
  using Int = typename P::Int;
  using Mask = typename P::Mask;
  constexpr int kWidth = P::kWidth;
  const Real zero = {};
  const Int no = {};
  const S scale = S(problem.offset_scale);
  const S center_x =
      S(out_x * problem.stride_w - problem.pad_w + problem.dilation_w * (problem.kernel_w - 1) / 2);
  const S center_y =
      S(out_y * problem.stride_h - problem.pad_h + problem.dilation_h * (problem.kernel_h - 1) / 2);
  const bool no_pixels = problem.width == 0 || problem.height == 0;  // then no point counts
  const S width = S(no_pixels ? -1 : problem.width), height = S(problem.height);
  // Positions below have two columns, or rows, in the image; none is where floats are not exact.
  const auto inner = [](int64_t size) { return S(size - 1 <= (1 << 24) ? size - 1 : 0); };
  const S inner_width = inner(problem.width), inner_height = inner(problem.height);
  const int32_t row = int32_t(problem.width);
  const int32_t last_column = row - 1, last_row = int32_t(problem.height) - 1;
  const T* offset = source.offset + pixel * problem.offset_stride + 2 * first;
  T copy[2 * kWidth];
  bool all_inside = true;
  for (int64_t p = 0; p < count; p += kWidth) {
    Real x, y;
    P::load_pairs(whole_pack<2 * kWidth>(offset + 2 * p, source.offset_end, 2 * (count - p), copy),
                  &x, &y);
    x = center_x + scale * (load_pack(grid.x.data() + p) + x);
    y = center_y + scale * (load_pack(grid.y.data() + p) + y);
    const Real mask = load_pack(points.mask + at + p);
    S* const weight = points.weight + 4 * (at + p);
    if (P::all_within(x, inner_width, y, inner_height, count - p)) {
      const Int x0 = P::truncate(x), y0 = P::truncate(y);
      const Real fx = x - P::real(x0), fy = y - P::real(y0);
      const Real gx = S(1) - fx, top = mask * (S(1) - fy), bottom = mask * fy;
      P::store_quads(top * gx, top * fx, bottom * gx, bottom * fx, weight);
      store_pack(P::index(x0, y0, row), points.pixel + at + p);
      store_pack(no + kBoth, points.columns + at + p);
      store_pack(no + kBoth, points.rows + at + p);
      if (kBackward) {
        store_pack(fx, points.x + at + p);
        store_pack(fy, points.y + at + p);
      }
    } else {
      all_inside = false;
      // False for NaN, which so becomes a point outside.
      const Mask counts = ((x > S(-1)) & (x < width)) & ((y > S(-1)) & (y < height));
      const Real floor_x = P::floor(x), floor_y = P::floor(y);
      const Int x0 = P::truncate(counts ? floor_x : zero),
                y0 = P::truncate(counts ? floor_y : zero);
      // In integers: sides beyond 2^24 have no exact float.
      const Mask in_columns = P::below(x0, last_column), in_rows = P::below(y0, last_row);
      const Mask first_column = x0 >= no, first_row = y0 >= no;
      // Not NaN where the point does not count.
      const Real x_part = counts ? x - floor_x : zero, y_part = counts ? y - floor_y : zero;
      const Real own_mask = counts ? mask : zero;
      const AxisWeights<P> along_x(x_part, first_column, in_columns | !first_column);
      const AxisWeights<P> along_y(y_part, first_row, in_rows | !first_row);
      const Real top = own_mask * along_y.low, bottom = own_mask * along_y.high;
      P::store_quads(top * along_x.low, top * along_x.high, bottom * along_x.low,
                     bottom * along_x.high, weight);
      const Int column = first_column ? x0 : no, line = first_row ? y0 : no;
      store_pack(counts ? line * row + column : no + kOutside, points.pixel + at + p);
      Int columns = (in_columns & counts) ? no + kBoth : no + kFirst;
      Int rows = (in_rows & counts) ? no + kBoth : no + kFirst;
      if (kBackward) {
        store_pack(x_part, points.x + at + p);
        store_pack(y_part, points.y + at + p);
        columns = first_column ? columns : no + kSecond;
        rows = first_row ? rows : no + kSecond;
      }
      store_pack(columns, points.columns + at + p);
      store_pack(rows, points.rows + at + p);
    }
  }
  return all_inside;
}

// Output pixels next to one another that make a tile, so that its points stay in the first-level
// cache.
inline int64_t tile_pixels(int64_t points_per_pixel) {
  return std::max<int64_t>(1, 96 / points_per_pixel);
}

// Ask for memory to be in the second-level cache soon. Into the first one, it would drive out more
// than it brings.
template <typename T>
DCNV3_INLINE void prefetch(const T* from, int64_t elements) {
#if defined(__GNUC__)
  constexpr int64_t kLine = 64;  // bytes
  const char* at = reinterpret_cast<const char*>(from);
  for (const char* end = at + elements * sizeof(T); at < end; at += kLine) {
    __builtin_prefetch(at, 0, 2);
  }
#endif
}

// How far ahead: tiles for what belongs to output pixels, and output rows for images. Which pixels
// of an image are next to be touched for the first time is known too late to hide the latency of
// memory, and follows no pattern for hardware to see.
constexpr int64_t kTilesAhead = 8, kRowsAhead = 4;

// Whether to do so: not if the second-level cache is likely to hold images, offsets and masks.
template <typename T>
bool prefetches(const Problem& problem) {
  constexpr int64_t kCacheBytes = 1 << 20;
  const int64_t inputs = problem.height * problem.width * problem.channels();
  const int64_t points = problem.out_height * problem.out_width * problem.groups * problem.points();
  return problem.batch * (inputs + 3 * points) * int64_t(sizeof(T)) > kCacheBytes;
}

template <typename T>
DCNV3_INLINE void prefetch_points(const Problem& problem, const PointSource<T>& source,
                                  int64_t first_pixel, int64_t pixels, int64_t first,
                                  int64_t count) {
  const int64_t all = problem.batch * problem.out_height * problem.out_width;
  for (int64_t q = first_pixel; q < std::min(first_pixel + pixels, all); ++q) {
    prefetch(source.offset + q * problem.offset_stride + 2 * first, 2 * count);
    prefetch(source.mask + q * problem.mask_stride + first, count);
  }
}
