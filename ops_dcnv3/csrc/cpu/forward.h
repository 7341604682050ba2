// The forward kernel. Included by kernels.h, inside its namespace.

// N channels of each group at one output pixel, from points that are next to one another. kPoints
// is the number of points of a group if it is known at compile time, else 0; kInside whether no
// point is at the border or outside. A function of its own so that the compiler keeps addresses in
// registers.
//
// What a point at the border reads follows no pattern that a processor could predict, so it reads
// as much as others (AxisWeights), and zeros if it is outside.
template <int N, int kPoints, bool kInside, typename T, typename S>
DCNV3_NOINLINE void sample(const Problem& problem, const Points<S>& points, int64_t first,
                           const T* __restrict__ image, T* __restrict__ output) {
  using C = Channels<T, N>;
  using Vector = typename C::Vector;
  // Several sums, because a multiply-add has to wait for the one before it on the same register.
  constexpr int kSums = C::kCount >= 4 ? 1 : (C::kCount == 2 ? 2 : 4);
  const int64_t count = kPoints ? kPoints : problem.points();
  const int64_t channels = problem.channels();
  const int64_t row = problem.width * channels;
  alignas(64) static const T zeros[N] = {};
  for (int64_t g = 0; g < problem.groups; ++g, first += count) {
    const int32_t* __restrict__ pixel = points.pixel + first;
    const S* __restrict__ weight = points.weight + 4 * first;
    Vector sum[kSums][C::kCount] = {};
    const auto add = [&](int c, auto factor, const T* from) {
      Vector value[C::kCount];
      C::load(from, value);
      for (int v = 0; v < C::kCount; ++v) sum[c % kSums][v] += factor * value[v];
    };
    for (int64_t p = 0; p < (kPoints ? kPoints : count); ++p) {
      const Splats<Vector, S> splats(weight + 4 * p);
      const T* from = kInside || pixel[p] >= 0 ? image + pixel[p] * channels : zeros;
      int64_t right = channels, below = row;
      if (!kInside) {
        right &= points.columns[first + p];
        below &= points.rows[first + p];
      }
      add(0, splats.template get<0>(), from);
      add(1, splats.template get<1>(), from + right);
      add(2, splats.template get<2>(), from + below);
      add(3, splats.template get<3>(), from + below + right);
    }
    for (int s = 1; s < kSums; ++s) {
      for (int v = 0; v < C::kCount; ++v) sum[0][v] += sum[s][v];
    }
    C::store(sum[0], output);
    image += problem.group_channels;
    output += problem.group_channels;
  }
}

template <int kPoints, typename T>
void forward_rows_of(const Problem& problem, const T* input, const T* offset, const T* mask,
                     T* output, int64_t begin, int64_t end) {
  using S = typename Compute<T>::type;
  const int64_t num_points = kPoints ? kPoints : problem.points();
  const int64_t per_pixel = problem.groups * num_points;
  const int64_t channels = problem.channels();
  const int64_t tile = tile_pixels(per_pixel);
  const Grid<S> grid(problem, problem.groups);
  const PointSource<T> source(problem, offset, mask);
  const Points<S> points(tile * per_pixel, false);
  std::vector<char> inside(tile);
  const bool prefetching = prefetches<T>(problem);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t out_y = row % problem.out_height;
    const T* image = input + row / problem.out_height * problem.height * problem.width * channels;
    for (int64_t x0 = 0; x0 < problem.out_width; x0 += tile) {
      const int64_t pixels = std::min(tile, problem.out_width - x0);
      const int64_t first = row * problem.out_width + x0;
      if (prefetching) {
        prefetch_points(problem, source, first + kTilesAhead * tile, pixels, 0, per_pixel);
        const int64_t ahead = (out_y + kRowsAhead) * problem.stride_h;
        const int64_t left = x0 * problem.stride_w;
        const int64_t right = std::min(left + pixels * problem.stride_w, problem.width);
        if (ahead < problem.height && left < right) {
          prefetch(image + (ahead * problem.width + left) * channels, (right - left) * channels);
        }
      }
      read_masks(problem, source, first, pixels, 0, per_pixel, points.mask);
      if (problem.mask_is_logits) {
        softmax<kPoints>(points.mask, pixels * problem.groups, num_points);
      }
      for (int64_t q = 0; q < pixels; ++q) {
        inside[q] = locate<false>(problem, grid, source, first + q, out_y, x0 + q, 0, per_pixel,
                                  points, q * per_pixel);
      }
      for (int64_t q = 0; q < pixels; ++q) {
        T* to = output + (first + q) * channels;
        for_channel_blocks(problem.group_channels, [&](auto block, int64_t c) {
          constexpr int N = decltype(block)::value;
          if (inside[q]) {
            sample<N, kPoints, true>(problem, points, q * per_pixel, image + c, to + c);
          } else {
            sample<N, kPoints, false>(problem, points, q * per_pixel, image + c, to + c);
          }
        });
      }
    }
  }
}

template <typename T>
void forward_rows(const Problem& problem, const T* input, const T* offset, const T* mask, T* output,
                  int64_t begin, int64_t end) {
  const auto kernel = problem.points() == 9 ? forward_rows_of<9, T> : forward_rows_of<0, T>;
  kernel(problem, input, offset, mask, output, begin, end);
}
