// Runs a model that `tools/export.py --to pt2 --preprocess` has written on one picture, without
// Python. Prints classes or detections, or writes a label map.
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

// What a package says about itself: text by name. Lists have a line for each item.
using Metadata = std::unordered_map<std::string, std::string>;

std::vector<std::string> lines(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

std::vector<double> numbers(const std::string& text) {
  std::istringstream stream(text);
  std::vector<double> result;
  for (double number; stream >> number;) result.push_back(number);
  return result;
}

// A binary PPM picture as (3, H, W), float32, BGR, as OpenCV orders it.
at::Tensor read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  file >> kind;
  int64_t header[3] = {};  // width, height, largest value
  for (int64_t& number : header) {
    while ((file >> std::ws).peek() == '#') {
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    file >> number;
  }
  file.get();
  TORCH_CHECK(file && kind == "P6" && header[2] == 255, path, " is no binary PPM picture (P6)");
  at::Tensor pixels = at::empty({header[1], header[0], 3}, at::kByte);
  file.read(reinterpret_cast<char*>(pixels.mutable_data_ptr<uint8_t>()), pixels.numel());
  TORCH_CHECK(file, path, " ends too early");
  return pixels.flip(2).permute({2, 0, 1}).to(at::kFloat);
}

// A picture as the model takes it, (1, 3, H, W), padded on two sides with the mean colour.
at::Tensor pad(const at::Tensor& picture, const Metadata& metadata) {
  const int64_t height = picture.size(1), width = picture.size(2);
  std::vector<double> size;
  if (metadata.count("shape")) {
    size = numbers(metadata.at("shape"));
  } else {  // any multiples of the divisor
    const int64_t divisor = std::stoi(metadata.at("divisor"));
    for (const int64_t n : {height, width}) {
      size.push_back(std::max<int64_t>((n + divisor - 1) / divisor * divisor, 64));
    }
  }
  TORCH_CHECK(height <= size[0] && width <= size[1], "the model takes pictures of at most ",
              size[0], "x", size[1], ", got ", height, "x", width, ": resize it");
  std::vector<double> mean = numbers(metadata.at("mean"));
  if (metadata.at("rgb") == "True") std::reverse(mean.begin(), mean.end());
  const at::Tensor color = at::tensor(mean, at::kFloat).view({1, 3, 1, 1});
  at::Tensor image =
      color.repeat({1, 1, static_cast<int64_t>(size[0]), static_cast<int64_t>(size[1])});
  image.slice(2, 0, height).slice(3, 0, width).copy_(picture);
  return image;
}

void print_classes(const at::Tensor& scores, const std::vector<std::string>& classes) {
  const auto [best, labels] = scores.topk(std::min<int64_t>(5, scores.size(0)));
  for (int64_t i = 0; i < best.size(0); ++i) {
    std::cout << classes.at(labels[i].item<int64_t>()) << " " << best[i].item<float>() << "\n";
  }
}

// A line for each: class, score, x1, y1, x2, y2. Free places of the lists have a score of 0.
void print_detections(const std::vector<at::Tensor>& outputs,
                      const std::vector<std::string>& classes) {
  const at::Tensor boxes = outputs[0][0], scores = outputs[1][0], labels = outputs[2][0];
  for (int64_t i = 0; i < scores.size(0) && scores[i].item<float>() > 0; ++i) {
    std::cout << classes.at(labels[i].item<int64_t>()) << " " << scores[i].item<float>();
    for (int64_t j = 0; j < 4; ++j) std::cout << " " << boxes[i][j].item<float>();
    std::cout << "\n";
  }
}

// A binary PGM picture of labels (H, W).
void write_labels(const at::Tensor& labels, const std::string& path) {
  const at::Tensor pixels = labels.to(at::kByte).contiguous();
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << pixels.size(1) << " " << pixels.size(0) << "\n255\n";
  file.write(reinterpret_cast<const char*>(pixels.const_data_ptr<uint8_t>()), pixels.numel());
  TORCH_CHECK(file.flush(), path, " cannot be written");
}

void predict(const std::vector<std::string>& arguments) {
  // The package calls operators, which must be known when it is opened.
  TORCH_CHECK(dlopen(arguments[0].c_str(), RTLD_NOW), dlerror());
  const c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const Metadata metadata = model.get_metadata();
  TORCH_CHECK(metadata.count("preprocess") && metadata.at("preprocess") == "True", arguments[1],
              " was not written by tools/export.py with --preprocess");
  const at::Tensor picture = read_picture(arguments[2]);
  const int64_t height = picture.size(1), width = picture.size(2);
  std::vector<at::Tensor> inputs = {pad(picture, metadata)};
  const std::string& family = metadata.at("family");
  if (family == "detector") inputs.push_back(at::tensor({height, width}, at::kLong).view({1, 2}));
  const std::vector<at::Tensor> outputs = model.run(inputs);
  const std::vector<std::string> classes = lines(metadata.at("classes"));
  std::cout << std::setprecision(9);
  if (family == "classifier") {
    print_classes(outputs[0][0], classes);
  } else if (family == "detector") {
    print_detections(outputs, classes);
  } else {
    TORCH_CHECK(arguments.size() > 3, "a segmentor needs a file to write: LABELS.pgm");
    write_labels(outputs[0][0].slice(0, 0, height).slice(1, 0, width), arguments[3]);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: " << arguments[0] << " OPERATORS.so MODEL.pt2 PICTURE.ppm [LABELS.pgm]\n";
    return 2;
  }
  try {
    predict({arguments + 1, arguments + count});
  } catch (const c10::Error& error) {
    std::cerr << "error: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
