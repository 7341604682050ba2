// The backward on several threads: which bands run at the same time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dcnv3_cpu.h"

namespace dcnv3 {

// Groups from which on those of an image that is one band are taken in two turns, see backward().
constexpr int64_t kGroupsInTurns = 8;

// Into how many bands an image is cut: one, or a multiple of four, so that 2 and 4 threads have
// equal shares of those that run together.
inline int64_t number_of_bands(const Problem& problem) {
  // A point may reach half a band beyond its own; those that reach further take twice the time. So
  // half a band is what the kernel and offsets of 11 pixels need, in lower images offsets of 3.
  const double kernel =
      std::abs(problem.offset_scale) * (problem.dilation_h * (problem.kernel_h - 1)) / 2;
  const auto four_bands = [&](int offset) {
    return 4 * std::max(1.0, std::floor(2 * (kernel + offset) / problem.stride_h));
  };
  const double height = problem.out_height;
  if (height >= four_bands(11)) return int64_t(height / four_bands(11)) * 4;
  // Else the threads divide the groups. Where those of one are less than several cache lines of
  // grad_offset and grad_mask, they wait for the lines of others.
  return problem.groups < kGroupsInTurns && height >= four_bands(3) ? 4 : 1;
}

// The gradients of a problem, by parallel_for(n, f), which must call f(begin, end) so that [0, n)
// is covered, on any threads.
//
// An image is cut into bands of output rows, one or an even number of them. Every second one is
// done first, all at the same time; each may add to the input rows of its own output rows and of
// half a band on either side, so that no two touch the same row. Then come the others. Points that
// reach further are left for the end, one group after the other: groups own their channels. So no
// sum needs an atomic, and its order depends on the problem alone: bands do not depend on the
// number of threads, and dividing the groups of a band, where bands are too few, changes no sum.
// Where an image is one band, the second half of its groups begins with the middle row: threads
// that write at the same time to different groups of one pixel wait for one another, because
// processors fetch pairs and runs of cache lines. The rows of those that come first are all rows,
// so these set them to zero, shortly before they are needed.
template <typename T, typename ParallelFor>
void backward(const Problem& problem, const Kernels<T>& kernels, const BackwardTensors<T>& tensors,
              int64_t threads, ParallelFor parallel_for, int64_t bands) {
  const auto edge = [&](int64_t b) { return b * problem.out_height / bands; };
  const int64_t together = (bands + 1) / 2;
  const int64_t turns = bands == 1 && problem.groups >= kGroupsInTurns ? 2 : 1;
  int64_t parts = turns;  // of the groups
  while (parts + turns <= problem.groups && problem.batch * together * parts % threads) {
    parts += turns;
  }

  // The input row under the centre of the middle output row of a band.
  const auto middle = [&](int64_t b) {
    const int64_t out_y = (edge(b) + edge(b + 1)) / 2;
    const int64_t center = problem.dilation_h * (problem.kernel_h - 1) / 2;
    const int64_t row = out_y * problem.stride_h - problem.pad_h + center;
    return std::min(std::max<int64_t>(row, -1), problem.height + 1);
  };
  std::vector<std::vector<int64_t>> far(problem.batch * bands * parts);
  for (int64_t parity = 0; parity < std::min<int64_t>(bands, 2); ++parity) {
    parallel_for(problem.batch * together * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % parts, b = i / parts % together * 2 + parity;
        Band band;
        band.image = i / parts / together;
        band.first_row = edge(b);
        band.last_row = edge(b + 1);
        band.lowest = b < 2 ? -1 : middle(b - 1);
        band.highest = b + 2 >= bands ? problem.height + 1 : middle(b + 1);
        band.first_group = part * problem.groups / parts;
        band.last_group = (part + 1) * problem.groups / parts;
        const int64_t rows = band.last_row - band.first_row, turn = part * turns / parts;
        band.start_row = band.first_row + turn * rows / turns;
        band.starts = parity == 0;
        kernels.backward_band(problem, tensors, band,
                              &far[(band.image * bands + b) * parts + part]);
      }
    });
  }
  std::vector<int64_t> all_far;
  for (const auto& list : far) all_far.insert(all_far.end(), list.begin(), list.end());
  if (all_far.empty()) return;
  parallel_for(problem.groups, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      kernels.backward_far(problem, tensors, group, all_far);
    }
  });
}

}  // namespace dcnv3
