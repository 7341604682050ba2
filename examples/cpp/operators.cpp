// The two operators that packages of two-stage detectors call beside DCNv3, on the CPU. In Python
// mmcv computes them; internimage_mm/deploy/det.py says what they are.
#include <ATen/Parallel.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using at::Tensor;

// Intersection over union of two boxes x1, y1, x2, y2.
float overlap(const float* a, const float* b) {
  const float width = std::max(std::min(a[2], b[2]) - std::max(a[0], b[0]), 0.0F);
  const float height = std::max(std::min(a[3], b[3]) - std::max(a[1], b[1]), 0.0F);
  const float both = width * height;
  const float area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
  return both / (area_a + area_b - both);
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double threshold, int64_t max_boxes) {
  const Tensor rows = boxes.contiguous(), values = scores.contiguous();
  const float *box = rows.const_data_ptr<float>(), *score = values.const_data_ptr<float>();
  const Tensor order = at::argsort(scores, /*stable=*/true, /*dim=*/0, /*descending=*/true);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < order.size(0) && static_cast<int64_t>(kept.size()) < max_boxes; ++i) {
    const int64_t index = order.const_data_ptr<int64_t>()[i];
    if (score[index] <= 0) break;
    const bool dropped = std::any_of(kept.begin(), kept.end(), [&](int64_t better) {
      return overlap(box + 4 * better, box + 4 * index) > static_cast<float>(threshold);
    });
    if (!dropped) kept.push_back(index);
  }
  kept.resize(max_boxes, -1);
  return at::tensor(kept, at::kLong);
}

// Where a sample lies between two cells of a row or column of a map. Outside, it counts nothing.
struct Sample {
  int64_t low, high;
  float low_weight, high_weight;
};

Sample sample_at(float position, int64_t size) {
  if (position < -1 || position > static_cast<float>(size)) return {0, 0, 0, 0};
  position = std::clamp(position, 0.0F, static_cast<float>(size - 1));
  const auto low = static_cast<int64_t>(position);
  const float fraction = position - static_cast<float>(low);
  return {low, std::min(low + 1, size - 1), 1 - fraction, fraction};
}

// The samples of all cells of a side of a box, cell after cell.
std::vector<Sample> samples_of(float start, float stop, int64_t cells, int64_t samples,
                               int64_t size) {
  const float step = (stop - start) / static_cast<float>(cells);
  if (samples == 0) samples = static_cast<int64_t>(std::ceil(step));
  std::vector<Sample> result;
  for (int64_t cell = 0; cell < cells; ++cell) {
    for (int64_t i = 0; i < samples; ++i) {
      const float part = (static_cast<float>(i) + 0.5F) / static_cast<float>(samples);
      result.push_back(sample_at(start + (static_cast<float>(cell) + part) * step, size));
    }
  }
  return result;
}

// One channel of one box: the mean of the samples of each cell.
void align(const float* map, int64_t width, const std::vector<Sample>& rows,
           const std::vector<Sample>& columns, int64_t cells, float* output) {
  const auto down = static_cast<int64_t>(rows.size()) / cells;
  const auto across = static_cast<int64_t>(columns.size()) / cells;
  for (int64_t cell = 0; cell < cells * cells; ++cell) {
    float sum = 0;
    for (int64_t i = 0; i < down; ++i) {
      const Sample& y = rows[cell / cells * down + i];
      const float *low = map + y.low * width, *high = map + y.high * width;
      for (int64_t j = 0; j < across; ++j) {
        const Sample& x = columns[cell % cells * across + j];
        sum += y.low_weight * (x.low_weight * low[x.low] + x.high_weight * low[x.high]) +
               y.high_weight * (x.low_weight * high[x.low] + x.high_weight * high[x.high]);
      }
    }
    output[cell] = sum / static_cast<float>(std::max<int64_t>(down * across, 1));
  }
}

Tensor roi_align(at::TensorList maps, const Tensor& boxes, const Tensor& levels,
                 at::ArrayRef<double> scales, int64_t size, int64_t samples) {
  std::vector<Tensor> features;
  for (const Tensor& map : maps) features.push_back(map.contiguous());
  const int64_t channels = maps[0].size(1), count = boxes.size(0);
  Tensor output = at::empty({count, channels, size, size}, maps[0].options());
  const Tensor corners = boxes.contiguous(), level_of = levels.contiguous();
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t level = level_of.const_data_ptr<int64_t>()[i];
      const Tensor& map = features[level];
      const int64_t height = map.size(2), width = map.size(3);
      const auto scale = static_cast<float>(scales[level]);
      float side[4];  // half a pixel, since centres of pixels lie between integers
      for (int64_t j = 0; j < 4; ++j) {
        side[j] = corners.const_data_ptr<float>()[4 * i + j] * scale - 0.5F;
      }
      const auto columns = samples_of(side[0], side[2], size, samples, width);
      const auto rows = samples_of(side[1], side[3], size, samples, height);
      for (int64_t c = 0; c < channels; ++c) {
        align(map.const_data_ptr<float>() + c * height * width, width, rows, columns, size,
              output.mutable_data_ptr<float>() + (i * channels + c) * size * size);
      }
    }
  });
  return output;
}

}  // namespace

// The types are those that PyTorch infers from the annotations in det.py.
TORCH_LIBRARY(internimage_mm, library) {
  library.def("nms(Tensor boxes, Tensor scores, float threshold, SymInt max_boxes) -> Tensor");
  library.def(
      "roi_align(Tensor[] maps, Tensor boxes, Tensor levels, float[] scales, SymInt size, "
      "SymInt samples) -> Tensor");
}

TORCH_LIBRARY_IMPL(internimage_mm, CPU, library) {
  library.impl("nms", &nms);
  library.impl("roi_align", &roi_align);
}
