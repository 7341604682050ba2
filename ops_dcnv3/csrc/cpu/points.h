// Sampling points: positions, masks and bilinear weights, vectorised over points.
//
// Included by kernels.h, inside its namespace.

constexpr int32_t kBorder = -1;   // some corners are outside the image
constexpr int32_t kOutside = -2;  // the point does not count

// Arrays over the points of a tile, each with room for one register more.
template <typename S>
struct Points {
  static constexpr int64_t kAlign = 64;  // bytes: a register does not straddle cache lines
  std::vector<char> memory;
  S *x, *y;   // positions, and once they are located the fractions
  S* mask;    // after the softmax, if there is one
  S* weight;  // four a point, mask times bilinear weight: top left, top right, bottom ...
  int32_t *left, *top;
  int32_t* pixel;  // index of the top left corner, or kBorder, or kOutside
  S* dot;          // four a point, backward only: output gradient times the corner's values

  Points(int64_t size, bool backward) {
    const int64_t room = (size + Pack<S>::kWidth + kAlign - 1) / kAlign * kAlign;
    memory.resize(room * ((7 + (backward ? 4 : 0)) * sizeof(S) + 3 * sizeof(int32_t)) + kAlign);
    char* at = memory.data();
    at += kAlign - reinterpret_cast<uintptr_t>(at) % kAlign;
    const auto take = [&](auto*& array, int64_t elements) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += elements * sizeof *array;
    };
    take(x, room);
    take(y, room);
    take(mask, room);
    take(weight, 4 * room);
    take(left, room);
    take(top, room);
    take(pixel, room);
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
  typename Pack<S>::Real value;
  std::memcpy(&value, from, sizeof value);
  return value;
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

// Positions of `count` points of one output pixel, from its point `first` on. Writes up to a
// register more.
template <typename T, typename S>
inline void read_points(const Problem& problem, const Grid<S>& grid, const PointSource<T>& source,
                        int64_t pixel, int64_t out_y, int64_t out_x, int64_t first, int64_t count,
                        S* x, S* y) {
  using P = Pack<S>;
  constexpr int kWidth = P::kWidth;
  const S scale = S(problem.offset_scale);
  const S center_x =
      S(out_x * problem.stride_w - problem.pad_w + problem.dilation_w * (problem.kernel_w - 1) / 2);
  const S center_y =
      S(out_y * problem.stride_h - problem.pad_h + problem.dilation_h * (problem.kernel_h - 1) / 2);
  const T* offset = source.offset + pixel * problem.offset_stride + 2 * first;
  T copy[2 * kWidth];
  for (int64_t p = 0; p < count; p += kWidth) {
    typename P::Real offset_x, offset_y;
    P::load_pairs(whole_pack<2 * kWidth>(offset + 2 * p, source.offset_end, 2 * (count - p), copy),
                  &offset_x, &offset_y);
    store_pack(center_x + scale * (load_pack(grid.x.data() + p) + offset_x), x + p);
    store_pack(center_y + scale * (load_pack(grid.y.data() + p) + offset_y), y + p);
  }
}

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

// Softmax over `count` numbers, in `packs` registers. Writes up to a register more.
template <int packs, typename T, typename S>
inline void softmax_in_registers(const T* logits, const T* end, int64_t count, S* result) {
  using P = Pack<S>;
  using Real = typename P::Real;
  const Real infinity = Real{} + std::numeric_limits<S>::infinity();
  T copy[packs * P::kWidth];
  logits = whole_pack<packs * P::kWidth>(logits, end, count, copy);
  Real value[packs];
  Real largest = -infinity;
  for (int i = 0; i < packs; ++i) {
    value[i] = load<Real>(logits + i * P::kWidth, static_cast<S*>(nullptr));
    value[i] = P::lanes() + i * P::kWidth < int32_t(count) ? value[i] : -infinity;
    largest = value[i] > largest ? value[i] : largest;
  }
  const Real shift = Real{} + P::largest(largest);
  Real sum = {};
  for (int i = 0; i < packs; ++i) {
    value[i] = exp_nonpositive<S>(value[i] - shift);
    sum += value[i];
  }
  const Real inverse = Real{} + S(1) / P::sum(sum);
  for (int i = 0; i < packs; ++i) store_pack(value[i] * inverse, result + i * P::kWidth);
}

// The same for any number of points.
template <typename T, typename S>
inline void softmax_any(const T* logits, int64_t count, S* result) {
  S largest = to_compute(logits[0]);
  for (int64_t p = 0; p < count; ++p) {
    result[p] = to_compute(logits[p]);
    largest = result[p] > largest ? result[p] : largest;
  }
  S sum = 0;
  for (int64_t p = 0; p < count; ++p) {
    result[p] = std::exp(result[p] - largest);
    sum += result[p];
  }
  const S inverse = S(1) / sum;
  for (int64_t p = 0; p < count; ++p) result[p] *= inverse;
}

// Masks of `runs` groups with `count` points each of one output pixel, from its point `first` on,
// after a softmax over each group if the problem has one. Writes up to a register more.
template <typename T, typename S>
inline void read_masks(const Problem& problem, const PointSource<T>& source, int64_t pixel,
                       int64_t first, int64_t runs, int64_t count, S* m) {
  using P = Pack<S>;
  constexpr int kWidth = P::kWidth;
  const T* mask = source.mask + pixel * problem.mask_stride + first;
  if (!problem.mask_is_logits) {
    T copy[kWidth];
    for (int64_t p = 0; p < runs * count; p += kWidth) {
      const T* pack = whole_pack<kWidth>(mask + p, source.mask_end, runs * count - p, copy);
      store_pack(load<typename P::Real>(pack, static_cast<S*>(nullptr)), m + p);
    }
    return;
  }
  // Whether the softmax is worth its shuffles: not for single numbers and long runs.
  const int64_t packs = kWidth == 1 ? 0 : (count + kWidth - 1) / kWidth;
  for (int64_t r = 0; r < runs; ++r, mask += count, m += count) {
    if (packs == 1) {
      softmax_in_registers<1>(mask, source.mask_end, count, m);
    } else if (packs == 2) {
      softmax_in_registers<2>(mask, source.mask_end, count, m);
    } else if (packs == 3) {
      softmax_in_registers<3>(mask, source.mask_end, count, m);
    } else {
      softmax_any(mask, count, m);
    }
  }
}

// From the gradient of softmax(logits) to that of the logits, in place: run by run of `count`
// points mask * (gradient - sum of mask * gradient).
template <typename S>
inline void softmax_backward(const S* mask, S* gradient, int64_t runs, int64_t count) {
  for (const S* end = mask + runs * count; mask < end; mask += count, gradient += count) {
    S mean = 0;
    for (int64_t p = 0; p < count; ++p) mean += mask[p] * gradient[p];
    for (int64_t p = 0; p < count; ++p) gradient[p] = mask[p] * (gradient[p] - mean);
  }
}

// Turn positions into fractions, weights and corner indices.
template <typename S>
inline void locate(const Problem& problem, int64_t count, const Points<S>& points) {
  using P = Pack<S>;
  using Real = typename P::Real;
  using Int = typename P::Int;
  using Mask = typename P::Mask;
  const Real zero = {};
  const Int no = {};
  const S width = S(problem.width), height = S(problem.height);
  const int32_t row = int32_t(problem.width);
  const int32_t last_column = row - 1, last_row = int32_t(problem.height) - 1;
  for (int64_t p = 0; p < count; p += P::kWidth) {
    Real x = load_pack(points.x + p), y = load_pack(points.y + p);
    // False for NaN, which so becomes a point outside.
    const Mask counts = (x > S(-1)) & (x < width) & (y > S(-1)) & (y < height);
    x = counts ? x : zero;
    y = counts ? y : zero;
    Int x0 = P::truncate(x), y0 = P::truncate(y);
    x0 -= P::one_where(x < P::real(x0));  // floor
    y0 -= P::one_where(y < P::real(y0));
    // In integers: sides beyond 2^24 have no exact float.
    const Mask inside = counts & P::below(x0, last_column) & P::below(y0, last_row);
    const Real fx = x - P::real(x0), fy = y - P::real(y0);
    const Real mask = load_pack(points.mask + p);
    const Real gx = S(1) - fx, top = mask * (S(1) - fy), bottom = mask * fy;
    P::store_quads(top * gx, top * fx, bottom * gx, bottom * fx, points.weight + 4 * p);
    store_pack(fx, points.x + p);
    store_pack(fy, points.y + p);
    store_pack(x0, points.left + p);
    store_pack(y0, points.top + p);
    const Int otherwise = counts ? no + kBorder : no + kOutside;
    store_pack(inside ? y0 * row + x0 : otherwise, points.pixel + p);
  }
}

// Index of corner c of a border point, or -1 if it is outside the image.
inline int64_t border_corner(const Problem& problem, int32_t left, int32_t top, int c) {
  const int64_t x = int64_t(left) + (c & 1), y = int64_t(top) + (c >> 1);
  const bool inside = x >= 0 && x < problem.width && y >= 0 && y < problem.height;
  return inside ? y * problem.width + x : -1;
}

// Output pixels next to one another that make a tile, so that its points stay in the first-level
// cache.
inline int64_t tile_pixels(int64_t points_per_pixel) {
  return std::max<int64_t>(1, 256 / points_per_pixel);
}
