// The backward kernel. Included by kernels.h, inside its namespace.

// N channels of `groups` groups at one output pixel: add to grad_input, and to points.dot the
// product of the output gradient with each corner's values. kPoints and kInside as in sample.
template <int N, int kPoints, bool kInside, typename T, typename S>
DCNV3_NOINLINE void scatter(const Problem& problem, const Points<S>& points, int64_t first,
                            int64_t groups, const T* __restrict__ grad_output,
                            const T* __restrict__ image, S* __restrict__ grad_image) {
  using L = Lanes<S, N>;
  using Vector = typename L::Vector;
  const int64_t count = kPoints ? kPoints : problem.points();
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t step[4] = {0, channels, problem.width * channels, (problem.width + 1) * channels};
  for (int64_t g = 0; g < groups; ++g, first += count) {
    const int32_t* __restrict__ pixel = points.pixel + first;
    const S* __restrict__ weight = points.weight + 4 * first;
    S* __restrict__ dot = points.dot + 4 * first;
    Vector grad[L::kCount];
    for (int v = 0; v < L::kCount; ++v) {
      grad[v] = load_vector<Vector>(grad_output + v * L::kWidth, static_cast<S*>(nullptr));
    }
    const auto corner = [&](auto factor, int64_t at) {
      Vector product = {};
      for (int v = 0; v < L::kCount; ++v) {
        const int64_t from = at + v * L::kWidth;
        product += grad[v] * load_vector<Vector>(image + from, static_cast<S*>(nullptr));
        Vector sum = load_vector<Vector>(grad_image + from, static_cast<S*>(nullptr));
        sum += factor * grad[v];
        std::memcpy(grad_image + from, &sum, sizeof sum);
      }
      return product;
    };
    for (int64_t p = 0; p < (kPoints ? kPoints : count); ++p) {
      Vector products[4] = {};
      if (kInside || pixel[p] >= 0) {
        const int64_t at = pixel[p] * channels;
        const Splats<Vector, S> splats(weight + 4 * p);
        products[0] = corner(splats.template get<0>(), at);
        products[1] = corner(splats.template get<1>(), at + step[1]);
        products[2] = corner(splats.template get<2>(), at + step[2]);
        products[3] = corner(splats.template get<3>(), at + step[3]);
      } else if (pixel[p] == kBorder) {
        for (int c = 0; c < 4; ++c) {
          const int64_t at =
              border_corner(problem, points.left[first + p], points.top[first + p], c);
          if (at >= 0) products[c] = corner(weight[4 * p + c], at * channels);
        }
      }
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
  const S scale = S(problem.offset_scale);
  const int64_t count = runs * num_points;
  for (int64_t p = 0; p < count; p += P::kWidth) {
    const Real fx = load_pack(points.x + p), fy = load_pack(points.y + p);
    Real d0, d1, d2, d3;
    P::load_quads(points.dot + 4 * p, &d0, &d1, &d2, &d3);
    const Real top = d1 - d0, bottom = d3 - d2, left = d2 - d0, right = d3 - d1;
    // A point that does not count has no dots, but its mask may be NaN.
    typename P::Int pixel;
    std::memcpy(&pixel, points.pixel + p, sizeof pixel);
    const Real factor = pixel != kOutside ? scale * load_pack(points.mask + p) : Real{};
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

// Groups [first_group, last_group) of one image.
template <int kPoints, typename T>
void backward_image(const Problem& problem, const T* grad_output, const T* input,
                    const PointSource<T>& source, typename Compute<T>::type* grad_input,
                    T* grad_offset, T* grad_mask, int64_t image, int64_t first_group,
                    int64_t last_group) {
  using S = typename Compute<T>::type;
  const int64_t num_points = kPoints ? kPoints : problem.points();
  const int64_t groups = last_group - first_group, per_pixel = groups * num_points;
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t image_start = image * problem.height * problem.width * channels;
  const int64_t tile = tile_pixels(per_pixel);
  const int64_t room = tile * per_pixel + Pack<S>::kWidth;
  const Grid<S> grid(problem, groups);
  const Points<S> points(tile * per_pixel, true);
  std::vector<char> inside(tile);
  std::vector<S> mask_sums(room);
  std::vector<T> pairs(2 * room), masks(room);
  for (int64_t out_y = 0; out_y < problem.out_height; ++out_y) {
    for (int64_t x0 = 0; x0 < problem.out_width; x0 += tile) {
      const int64_t pixels = std::min(tile, problem.out_width - x0);
      const int64_t first = (image * problem.out_height + out_y) * problem.out_width + x0;
      prefetch_points(problem, source, first + kTilesAhead * tile, pixels, first_group * num_points,
                      per_pixel);
      const int64_t ahead = (out_y + kRowsAhead) * problem.stride_h;
      for (int64_t x = x0 * problem.stride_w; x < (x0 + pixels) * problem.stride_w; ++x) {
        if (ahead >= problem.height) break;
        const int64_t at =
            image_start + (ahead * problem.width + x) * channels + first_group * group_channels;
        prefetch(input + at, groups * group_channels);
        prefetch(grad_input + at, groups * group_channels);
      }
      read_masks(problem, source, first, pixels, first_group * num_points, per_pixel, points.mask);
      if (problem.mask_is_logits) softmax<kPoints>(points.mask, pixels * groups, num_points);
      for (int64_t q = 0; q < pixels; ++q) {
        inside[q] = locate<true>(problem, grid, source, first + q, out_y, x0 + q,
                                 first_group * num_points, per_pixel, points, q * per_pixel);
      }
      std::fill(points.dot, points.dot + 4 * pixels * per_pixel, S(0));
      for (int64_t q = 0; q < pixels; ++q) {
        const T* grad = grad_output + (first + q) * channels + first_group * group_channels;
        const int64_t from = image_start + first_group * group_channels;
        for_channel_blocks(group_channels, [&](auto block, int64_t c) {
          constexpr int N = decltype(block)::value;
          if (inside[q]) {
            scatter<N, kPoints, true>(problem, points, q * per_pixel, groups, grad + c,
                                      input + from + c, grad_input + from + c);
          } else {
            scatter<N, kPoints, false>(problem, points, q * per_pixel, groups, grad + c,
                                       input + from + c, grad_input + from + c);
          }
        });
      }
      point_gradients<kPoints>(problem, pixels * groups, num_points, points, mask_sums.data(),
                               pairs.data(), masks.data());
      int64_t run = 0;
      for (int64_t q = 0; q < pixels; ++q) {
        const int64_t to = ((first + q) * problem.groups + first_group) * num_points;
        for (int64_t g = 0; g < groups; ++g, run += num_points) {
          std::memcpy(grad_offset + 2 * (to + g * num_points), pairs.data() + 2 * run,
                      2 * num_points * sizeof(T));
          std::memcpy(grad_mask + to + g * num_points, masks.data() + run, num_points * sizeof(T));
        }
      }
    }
  }
}

template <int kPoints, typename T>
void backward_groups_of(const Problem& problem, const T* grad_output, const T* input,
                        const T* offset, const T* mask, typename Compute<T>::type* grad_input,
                        T* grad_offset, T* grad_mask, int64_t begin, int64_t end) {
  const PointSource<T> source(problem, offset, mask);
  // The groups of an image together, since they lie side by side in memory.
  while (begin < end) {
    const int64_t image = begin / problem.groups, first_group = begin % problem.groups;
    const int64_t last_group = std::min(problem.groups, first_group + end - begin);
    backward_image<kPoints>(problem, grad_output, input, source, grad_input, grad_offset, grad_mask,
                            image, first_group, last_group);
    begin += last_group - first_group;
  }
}

template <typename T>
void backward_groups(const Problem& problem, const T* grad_output, const T* input, const T* offset,
                     const T* mask, typename Compute<T>::type* grad_input, T* grad_offset,
                     T* grad_mask, int64_t begin, int64_t end) {
  const auto kernel = problem.points() == 9 ? backward_groups_of<9, T> : backward_groups_of<0, T>;
  kernel(problem, grad_output, input, offset, mask, grad_input, grad_offset, grad_mask, begin, end);
}
