// The load bound: what no forward kernel of this instruction set goes below. Included by kernels.h,
// inside its namespace.

// For N channels of `count` pixels and groups, the 9 x 4 loads and multiply-adds of a 3x3 kernel,
// on data that stays in the first-level cache and with four weights that stay in registers: no
// position is computed, no weight loaded, no sum rounded to T.
template <int N, typename T>
void load_bound_of(const T* __restrict__ data, const typename Compute<T>::type* weight,
                   typename Compute<T>::type* __restrict__ output, int64_t count) {
  using C = Channels<T, N>;
  using Vector = typename C::Vector;
  constexpr int kSums = C::kCount >= 4 ? 1 : (C::kCount == 2 ? 2 : 4);  // as in sample()
  const Vector weights[4] = {Vector{} + weight[0], Vector{} + weight[1], Vector{} + weight[2],
                             Vector{} + weight[3]};
  for (int64_t i = 0; i < count; ++i) {
    // Other addresses each time, or the compiler could keep what it has loaded and leave out all
    // stores but the last, with what leads to them.
    const int64_t shift = i % kBoundShifts * N;
    const T* from = data + shift;
    Vector sum[kSums][C::kCount] = {};
    for (int p = 0; p < 9; ++p) {
      for (int c = 0; c < 4; ++c) {
        Vector value[C::kCount];
        C::load(from + (4 * p + c) * N, value);
        for (int v = 0; v < C::kCount; ++v) sum[c % kSums][v] += weights[c] * value[v];
      }
    }
    for (int v = 0; v < C::kCount; ++v) {
      Vector total = sum[0][v];
      for (int s = 1; s < kSums; ++s) total += sum[s][v];
      std::memcpy(output + shift + v * C::kWidth, &total, sizeof total);
    }
  }
}

template <typename T>
void load_bound(const T* data, const typename Compute<T>::type* weight,
                typename Compute<T>::type* output, int64_t count, int64_t group_channels) {
  for_channel_blocks(group_channels, [&](auto block, int64_t) {
    load_bound_of<decltype(block)::value>(data, weight, output, count);
  });
}
