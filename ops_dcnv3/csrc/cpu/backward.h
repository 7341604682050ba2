// The backward kernel. Included by kernels.h, inside its namespace.

// N channels of `groups` groups at one output pixel: add to grad_input, and to points.dot the
// product of the output gradient with what is read for each corner. kPoints and kInside as in
// sample(); a point outside reads zeros as there, and what it would add goes nowhere.
template <int N, int kPoints, bool kInside, typename T, typename S>
DCNV3_NOINLINE void scatter(const Problem& problem, const Points<S>& points, int64_t first,
                            int64_t groups, const T* __restrict__ grad_output,
                            const T* __restrict__ image, S* __restrict__ grad_image) {
  using L = Lanes<S, N>;
  using Vector = typename L::Vector;
  const int64_t count = kPoints ? kPoints : problem.points();
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t row = problem.width * channels;
  alignas(64) static const T zeros[N] = {};
  alignas(64) S nowhere[N] = {};
  for (int64_t g = 0; g < groups; ++g, first += count) {
    const int32_t* __restrict__ pixel = points.pixel + first;
    const S* __restrict__ weight = points.weight + 4 * first;
    S* __restrict__ dot = points.dot + 4 * first;
    Vector grad[L::kCount];
    for (int v = 0; v < L::kCount; ++v) {
      grad[v] = load_vector<Vector>(grad_output + v * L::kWidth);
    }
    const auto corner = [&](auto factor, const T* from, S* to) {
      Vector product = {};
      for (int v = 0; v < L::kCount; ++v, from += L::kWidth, to += L::kWidth) {
        product += grad[v] * load_vector<Vector>(from);
        Vector sum = load_vector<Vector>(to);
        sum += factor * grad[v];
        std::memcpy(to, &sum, sizeof sum);
      }
      return product;
    };
    for (int64_t p = 0; p < (kPoints ? kPoints : count); ++p) {
      const bool counts = kInside || pixel[p] >= 0;
      const T* from = counts ? image + pixel[p] * channels : zeros;
      S* to = counts ? grad_image + pixel[p] * channels : nowhere;
      int64_t right = channels, below = row;
      if (!kInside) {
        right &= -(points.columns[first + p] == kBoth);
        below &= -(points.rows[first + p] == kBoth);
      }
      const Splats<Vector, S> splats(weight + 4 * p);
      Vector products[4];
      products[0] = corner(splats.template get<0>(), from, to);
      products[1] = corner(splats.template get<1>(), from + right, to + right);
      products[2] = corner(splats.template get<2>(), from + below, to + below);
      products[3] = corner(splats.template get<3>(), from + below + right, to + below + right);
      add_sums<S, L::kWidth>(products, dot + 4 * p);
    }
    grad_output += group_channels;
    image += group_channels;
    grad_image += group_channels;
  }
}

// The gradients of `count` offsets and masks from the dots, for storage.
template <int kPoints, typename T, typename S>
inline void point_gradients(const Problem& problem, int64_t runs, int64_t num_points,
                            const Points<S>& points, S* mask_sums, T* pairs, T* masks) {
  using P = Pack<S>;
  using Real = typename P::Real;
  using Int = typename P::Int;
  using Mask = typename P::Mask;
  const Real zero = {};
  const S scale = S(problem.offset_scale);
  const int64_t count = runs * num_points;
  for (int64_t p = 0; p < count; p += P::kWidth) {
    const Real fx = load_pack(points.x + p), fy = load_pack(points.y + p);
    Int pixel, columns, rows;
    std::memcpy(&pixel, points.pixel + p, sizeof pixel);
    std::memcpy(&columns, points.columns + p, sizeof columns);
    std::memcpy(&rows, points.rows + p, sizeof rows);
    // What was read in place of corners outside the image is none of theirs.
    const Mask counts = pixel != kOutside;
    const Mask first_column = counts & (columns != kSecond), second_column = columns != kFirst;
    const Mask first_row = rows != kSecond, second_row = rows != kFirst;
    Real d0, d1, d2, d3;
    P::load_quads(points.dot + 4 * p, &d0, &d1, &d2, &d3);
    d0 = (first_column & first_row) ? d0 : zero;
    d1 = (second_column & first_row) ? d1 : zero;
    d2 = (first_column & second_row) ? d2 : zero;
    d3 = (second_column & second_row) ? d3 : zero;
    const Real top = d1 - d0, bottom = d3 - d2, left = d2 - d0, right = d3 - d1;
    const Real factor = counts ? scale * load_pack(points.mask + p) : zero;
    const Real upper = d0 + fx * top, lower = d2 + fx * bottom;
    store_pack(upper + fy * (lower - upper), mask_sums + p);
    P::store_pairs(factor * (top + fy * (bottom - top)), factor * (left + fx * (right - left)),
                   pairs + 2 * p);
  }
  if (problem.mask_is_logits) softmax_backward<kPoints>(points.mask, mask_sums, runs, num_points);
  for (int64_t p = 0; p < count; p += P::kWidth) {
    store_vector<Real, S>(load_pack(mask_sums + p), masks + p);
  }
}

// Some groups of one image, tile by tile.
template <int kPoints, typename T>
class BackwardTiles {
 public:
  using S = typename Compute<T>::type;

  BackwardTiles(const Problem& problem, const BackwardTensors<T>& tensors, int64_t first_group,
                int64_t groups)
      : problem_(problem),
        tensors_(tensors),
        source_(problem, tensors.offset, tensors.mask),
        num_points_(kPoints ? kPoints : problem.points()),
        first_group_(first_group),
        groups_(groups),
        per_pixel_(groups * num_points_),
        size_(tile_pixels(per_pixel_)),
        grid_(problem, groups),
        points_(size_ * per_pixel_, true),
        inside_(size_),
        mask_sums_(size_ * per_pixel_ + Pack<S>::kWidth),
        pairs_(2 * mask_sums_.size()),
        masks_(mask_sums_.size()),
        prefetching_(prefetches<T>(problem)) {}

  int64_t size() const { return size_; }

  // `pixels` output pixels from (out_y, x0) on. Groups that reach rows outside [lowest, highest)
  // are appended to `far`, and their gradients are not computed.
  void run(int64_t image, int64_t out_y, int64_t x0, int64_t pixels, int64_t lowest,
           int64_t highest, std::vector<int64_t>* far) {
    const int64_t channels = problem_.channels(), group_channels = problem_.group_channels;
    const int64_t first = (image * problem_.out_height + out_y) * problem_.out_width + x0;
    const int64_t first_channel = first_group_ * group_channels;
    const int64_t image_start = image * problem_.height * problem_.width * channels + first_channel;
    if (prefetching_) {
      prefetch_points(problem_, source_, first + kTilesAhead * size_, pixels,
                      first_group_ * num_points_, per_pixel_);
      const int64_t ahead = (out_y + kRowsAhead) * problem_.stride_h;
      const int64_t right = std::min((x0 + pixels) * problem_.stride_w, problem_.width);
      for (int64_t x = x0 * problem_.stride_w; ahead < problem_.height && x < right; ++x) {
        const int64_t at = image_start + (ahead * problem_.width + x) * channels;
        prefetch(tensors_.input + at, groups_ * group_channels);
        prefetch(tensors_.grad_input + at, groups_ * group_channels);
      }
    }
    read_masks(problem_, source_, first, pixels, first_group_ * num_points_, per_pixel_,
               points_.mask);
    if (problem_.mask_is_logits) softmax<kPoints>(points_.mask, pixels * groups_, num_points_);
    for (int64_t q = 0; q < pixels; ++q) {
      inside_[q] = locate<true>(problem_, grid_, source_, first + q, out_y, x0 + q,
                                first_group_ * num_points_, per_pixel_, points_, q * per_pixel_);
    }
    // One look at all of them suffices, as a rule. Points that do not count have negative indices.
    int32_t least = points_.pixel[0], most = least;
    for (int64_t p = 0; p < pixels * per_pixel_; ++p) {
      least = std::min(least, points_.pixel[p]);
      most = std::max(most, points_.pixel[p]);
    }
    const bool all_within = least >= std::max<int64_t>(0, lowest * problem_.width) &&
                            most < (highest - 1) * problem_.width;
    std::fill(points_.dot, points_.dot + 4 * pixels * per_pixel_, S(0));
    for (int64_t q = 0; q < pixels; ++q) {
      const int64_t run = q * per_pixel_;
      if (all_within || stays_within(problem_, points_, run, per_pixel_, lowest, highest)) {
        scatter_groups(image_start, first + q, inside_[q], run, 0, groups_);
        continue;
      }
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t at = run + g * num_points_;
        if (stays_within(problem_, points_, at, num_points_, lowest, highest)) {
          scatter_groups(image_start, first + q, inside_[q], at, g, 1);
        } else {
          far->push_back((first + q) * problem_.groups + first_group_ + g);
        }
      }
    }
    point_gradients<kPoints>(problem_, pixels * groups_, num_points_, points_, mask_sums_.data(),
                             pairs_.data(), masks_.data());
    for (int64_t q = 0; q < pixels; ++q) {
      const int64_t from = q * per_pixel_;
      const int64_t to = ((first + q) * problem_.groups + first_group_) * num_points_;
      std::memcpy(tensors_.grad_offset + 2 * to, pairs_.data() + 2 * from,
                  2 * per_pixel_ * sizeof(T));
      std::memcpy(tensors_.grad_mask + to, masks_.data() + from, per_pixel_ * sizeof(T));
    }
  }

 private:
  // `groups` groups of one output pixel, from the group `first` of the tile on.
  void scatter_groups(int64_t image_start, int64_t pixel, bool inside, int64_t run, int64_t first,
                      int64_t groups) {
    const int64_t group_channels = problem_.group_channels;
    const int64_t from = image_start + first * group_channels;
    const T* grad = tensors_.grad_output + pixel * problem_.channels() +
                    (first_group_ + first) * group_channels;
    for_channel_blocks(group_channels, [&](auto block, int64_t c) {
      constexpr int N = decltype(block)::value;
      const auto kernel =
          inside ? scatter<N, kPoints, true, T, S> : scatter<N, kPoints, false, T, S>;
      kernel(problem_, points_, run, groups, grad + c, tensors_.input + from + c,
             tensors_.grad_input + from + c);
    });
  }

  const Problem& problem_;
  const BackwardTensors<T>& tensors_;
  const PointSource<T> source_;
  const int64_t num_points_, first_group_, groups_, per_pixel_, size_;
  const Grid<S> grid_;
  const Points<S> points_;
  std::vector<char> inside_;
  std::vector<S> mask_sums_;
  std::vector<T> pairs_, masks_;
  const bool prefetching_;
};

template <int kPoints, typename T>
void backward_band_of(const Problem& problem, const BackwardTensors<T>& tensors, const Band& band,
                      std::vector<int64_t>* far) {
  const int64_t groups = band.last_group - band.first_group;
  if (band.starts) {
    const int64_t image = band.image * problem.height;
    const int64_t lowest = std::max<int64_t>(band.lowest, 0);
    const int64_t highest = std::min(band.highest, problem.height);
    for (int64_t p = (image + lowest) * problem.width; p < (image + highest) * problem.width; ++p) {
      auto* const pixel = tensors.grad_input + p * problem.channels();
      std::fill_n(pixel + band.first_group * problem.group_channels,
                  groups * problem.group_channels, 0);
    }
  }
  BackwardTiles<kPoints, T> tiles(problem, tensors, band.first_group, groups);
  for (int64_t row = 0; row < band.last_row - band.first_row; ++row) {
    int64_t y = band.start_row + row;
    if (y >= band.last_row) y -= band.last_row - band.first_row;
    for (int64_t x = 0; x < problem.out_width; x += tiles.size()) {
      tiles.run(band.image, y, x, std::min(tiles.size(), problem.out_width - x), band.lowest,
                band.highest, far);
    }
  }
}

template <typename T>
void backward_band(const Problem& problem, const BackwardTensors<T>& tensors, const Band& band,
                   std::vector<int64_t>* far) {
  const auto kernel = problem.points() == 9 ? backward_band_of<9, T> : backward_band_of<0, T>;
  kernel(problem, tensors, band, far);
}

template <typename T>
void backward_far(const Problem& problem, const BackwardTensors<T>& tensors, int64_t group,
                  const std::vector<int64_t>& far) {
  BackwardTiles<0, T> tiles(problem, tensors, group, 1);
  std::vector<int64_t> none;
  for (const int64_t task : far) {
    if (task % problem.groups != group) continue;
    const int64_t pixel = task / problem.groups, row = pixel / problem.out_width;
    tiles.run(row / problem.out_height, row % problem.out_height, pixel % problem.out_width, 1, -1,
              problem.height + 1, &none);
  }
}
