// The forward kernel. Included by kernels.h, inside its namespace.

// N channels of one group at one output pixel, from points that are next to one another. kPoints is
// their number if it is known at compile time, else 0.
template <int N, int kPoints, typename T, typename S>
inline void sample(const Problem& problem, const Points<S>& points, int64_t first, int64_t count,
                   const T* __restrict__ image, T* __restrict__ output) {
  using L = Lanes<S, N>;
  using Vector = typename L::Vector;
  // Several sums, because a multiply-add has to wait for the one before it on the same register.
  constexpr int kSums = L::kCount >= 4 ? 1 : (L::kCount == 2 ? 2 : 4);
  const int64_t channels = problem.channels();
  const int64_t step[4] = {0, channels, problem.width * channels, (problem.width + 1) * channels};
  const int32_t* __restrict__ pixel = points.pixel + first;
  const S* __restrict__ weight = points.weight + 4 * first;
  Vector sum[kSums][L::kCount] = {};
  for (int64_t p = 0; p < (kPoints ? kPoints : count); ++p) {
    if (pixel[p] >= 0) {
      const T* from = image + pixel[p] * channels;
      const Splats<Vector, S> splats(weight + 4 * p);
      for (int v = 0; v < L::kCount; ++v) {
        const auto at = [&](int c) {
          return load<Vector>(from + step[c] + v * L::kWidth, static_cast<S*>(nullptr));
        };
        sum[0][v] += splats.template get<0>() * at(0);
        sum[1 % kSums][v] += splats.template get<1>() * at(1);
        sum[2 % kSums][v] += splats.template get<2>() * at(2);
        sum[3 % kSums][v] += splats.template get<3>() * at(3);
      }
    } else if (pixel[p] == kBorder) {
      for (int c = 0; c < 4; ++c) {
        const int64_t corner =
            border_corner(problem, points.left[first + p], points.top[first + p], c);
        if (corner < 0) continue;
        for (int v = 0; v < L::kCount; ++v) {
          sum[0][v] += weight[4 * p + c] * load<Vector>(image + corner * channels + v * L::kWidth,
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

constexpr int64_t kRowsAhead = 4, kLine = 64;  // of the prefetch; the second in bytes

template <int kPoints, typename T>
void forward_rows_of(const Problem& problem, const T* input, const T* offset, const T* mask,
                     T* output, int64_t begin, int64_t end) {
  using S = typename Compute<T>::type;
  const int64_t num_points = kPoints ? kPoints : problem.points();
  const int64_t per_pixel = problem.groups * num_points;
  const int64_t channels = problem.channels(), group_channels = problem.group_channels;
  const int64_t tile = tile_pixels(per_pixel);
  const Grid<S> grid(problem, problem.groups);
  const PointSource<T> source(problem, offset, mask);
  const Points<S> points(tile * per_pixel, false);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t out_y = row % problem.out_height;
    const T* image = input + row / problem.out_height * problem.height * problem.width * channels;
    for (int64_t x0 = 0; x0 < problem.out_width; x0 += tile) {
      const int64_t pixels = std::min(tile, problem.out_width - x0);
      const int64_t first = row * problem.out_width + x0;
#if defined(__GNUC__)
      // The input that the points of the next output rows are the first to touch: which it is, is
      // known too late to hide the latency of memory, and follows no pattern for hardware to see.
      // Not in a function of its own, which GCC takes for one without effect.
      const int64_t ahead = (out_y + kRowsAhead) * problem.stride_h;
      const T* line = image + (ahead * problem.width + x0 * problem.stride_w) * channels;
      const T* last = line + pixels * problem.stride_w * channels;
      for (; ahead < problem.height && line < last; line += kLine / sizeof(T)) {
        __builtin_prefetch(line, 0, 2);
      }
#endif
      for (int64_t q = 0; q < pixels; ++q) {
        const int64_t at = q * per_pixel;
        read_points(problem, grid, source, first + q, out_y, x0 + q, 0, per_pixel, points.x + at,
                    points.y + at);
        read_masks(problem, source, first + q, 0, problem.groups, num_points, points.mask + at);
      }
      locate(problem, pixels * per_pixel, points);
      int64_t run = 0;
      for (int64_t q = 0; q < pixels; ++q) {
        T* to = output + (first + q) * channels;
        for (int64_t g = 0; g < problem.groups; ++g, run += num_points) {
          const int64_t from = g * group_channels;
          for_channel_blocks(group_channels, [&](auto block, int64_t c) {
            sample<decltype(block)::value, kPoints>(problem, points, run, num_points,
                                                    image + from + c, to + from + c);
          });
        }
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
