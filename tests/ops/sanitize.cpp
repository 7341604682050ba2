// Runs the CPU kernels of every instruction set over random problems, on buffers of exactly the
// size that the contract of dcnv3_cpu.h gives, and compares them with the float64 kernels of the
// baseline. Built by test_sanitizers.py with AddressSanitizer and UndefinedBehaviorSanitizer. With
// DCNV3_EMULATED_CUDA it runs the CUDA kernels as well, in the emulator of cuda_emulator.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "dcnv3_cpu.h"
#ifdef DCNV3_EMULATED_CUDA
#include "dcnv3_cuda.h"
#endif

namespace {

using namespace dcnv3;

std::mt19937 generator(20211);

int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

float normal() { return std::normal_distribution<float>()(generator); }

float wild() {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float values[] = {
      inf, -inf, std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f, 3e9f, -1.0f, 0.0f, 1.0f};
  return values[between(0, 8)];
}

Problem random_problem() {
  for (;;) {
    Problem p;
    p.batch = between(0, 2);
    p.height = between(0, 7);
    p.width = between(0, 30);
    p.groups = between(1, 3);
    p.group_channels = between(1, 70);
    p.kernel_h = between(1, 4);
    p.kernel_w = between(1, 4);
    p.stride_h = between(1, 3);
    p.stride_w = between(1, 3);
    p.pad_h = between(0, 3);
    p.pad_w = between(0, 3);
    p.dilation_h = between(1, 2);
    p.dilation_w = between(1, 2);
    p.offset_scale = normal();
    p.remove_center = p.kernel_h == 3 && p.kernel_w == 3 && between(0, 1);
    p.mask_is_logits = between(0, 1);
    const int64_t span_h = p.height + 2 * p.pad_h - (p.dilation_h * (p.kernel_h - 1) + 1);
    const int64_t span_w = p.width + 2 * p.pad_w - (p.dilation_w * (p.kernel_w - 1) + 1);
    if (span_h < 0 || span_w < 0) continue;
    p.out_height = span_h / p.stride_h + 1;
    p.out_width = span_w / p.stride_w + 1;
    const int64_t gap = between(0, 1) * between(1, 9);  // strided views
    p.offset_stride = 2 * p.groups * p.points() + gap;
    p.mask_stride = p.groups * p.points() + gap;
    return p;
  }
}

float decode(float value) { return value; }
float decode(double value) { return float(value); }
float decode(BFloat16 value) {
  union {
    uint32_t bits;
    float real;
  } u = {uint32_t(value.bits) << 16};
  return u.real;
}
float decode(Float16 value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(fraction + 1024), exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}

// Truncation: any value of the type will do as an input.
void encode(float value, float* to) { *to = value; }
void encode(float value, double* to) { *to = value; }
void encode(float value, BFloat16* to) {
  union {
    float real;
    uint32_t bits;
  } u = {value};
  to->bits = uint16_t(u.bits >> 16 | (value != value));
}
void encode(float value, Float16* to) {
  int exponent;
  if (value != value) {
    to->bits = 0x7e00;
  } else if (std::fabs(value) >= 65504) {
    to->bits = 0x7c00;
  } else {
    const float fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
    to->bits = exponent < -13 ? uint16_t(std::ldexp(std::fabs(value), 24))
                              : uint16_t(((exponent + 14) << 10) + int(fraction * 2048) - 1024);
  }
  if (std::signbit(value)) to->bits |= 0x8000;
}

// A heap block of exactly `size` elements, so that a read or write beside it is seen.
template <typename T>
struct Buffer {
  std::unique_ptr<T[]> data;
  int64_t size;
  explicit Buffer(int64_t n) : data(new T[n]()), size(n) {}
  T* get() { return data.get(); }
};

template <typename T>
struct Inputs {
  Buffer<T> input, offset, mask, grad_output;
};

int64_t strided(const Problem& p, int64_t stride, int64_t last) {
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  return pixels == 0 ? 0 : (pixels - 1) * stride + last;
}

template <typename T>
Inputs<T> random_inputs(const Problem& p, bool with_wild) {
  const int64_t points = p.groups * p.points();
  const int64_t outputs = p.batch * p.out_height * p.out_width * p.channels();
  Inputs<T> in{Buffer<T>(p.batch * p.height * p.width * p.channels()),
               Buffer<T>(strided(p, p.offset_stride, 2 * points)),
               Buffer<T>(strided(p, p.mask_stride, points)), Buffer<T>(outputs)};
  for (Buffer<T>* b : {&in.input, &in.offset, &in.mask, &in.grad_output}) {
    for (int64_t i = 0; i < b->size; ++i) {
      const bool is_wild = with_wild && b == &in.offset && between(0, 3) == 0;
      encode(is_wild ? wild() : normal() * (b == &in.offset ? 3.0f : 1.0f), b->get() + i);
    }
  }
  return in;
}

template <typename T>
std::vector<double> run(const Problem& p, const Kernels<T>& kernels, Inputs<T>& in) {
  using S = typename Compute<T>::type;
  const int64_t points = p.batch * p.out_height * p.out_width * p.groups * p.points();
  Buffer<T> output(in.grad_output.size), grad_offset(2 * points), grad_mask(points);
  Buffer<S> grad_input(in.input.size);
  kernels.forward(p, in.input.get(), in.offset.get(), in.mask.get(), output.get(), 0,
                  p.batch * p.out_height);
  kernels.backward(p, in.grad_output.get(), in.input.get(), in.offset.get(), in.mask.get(),
                   grad_input.get(), grad_offset.get(), grad_mask.get(), 0, p.batch * p.groups);
  std::vector<double> all;
  for (Buffer<T>* b : {&output, &grad_offset, &grad_mask}) {
    for (int64_t i = 0; i < b->size; ++i) all.push_back(decode(b->get()[i]));
  }
  for (int64_t i = 0; i < grad_input.size; ++i) all.push_back(double(grad_input.get()[i]));
  return all;
}

#ifdef DCNV3_EMULATED_CUDA
// The whole problem in one call, whatever the range; kOrdered: without atomics.
template <typename T, bool kOrdered>
Kernels<T> emulated_cuda() {
  constexpr auto type = std::is_same<T, float>::value      ? gpu::DType::kFloat32
                        : std::is_same<T, double>::value   ? gpu::DType::kFloat64
                        : std::is_same<T, BFloat16>::value ? gpu::DType::kBFloat16
                                                           : gpu::DType::kFloat16;
  static const auto fail_on = [](cudaError_t error) {
    if (error != cudaSuccess) std::abort();
  };
  return {
      [](const Problem& p, const T* input, const T* offset, const T* mask, T* output, int64_t,
         int64_t) { fail_on(gpu::forward(p, type, input, offset, mask, output, nullptr)); },
      [](const Problem& p, const T* grad_output, const T* input, const T* offset, const T* mask,
         typename Compute<T>::type* grad_input, T* grad_offset, T* grad_mask, int64_t, int64_t) {
        fail_on(gpu::backward(p, type, grad_output, input, offset, mask,
                              kOrdered ? nullptr : grad_input, grad_offset, grad_mask, nullptr));
        if (!kOrdered) return;
        Buffer<char> workspace(gpu::ordered_workspace_bytes(p, type));
        fail_on(gpu::backward_input_ordered(p, type, grad_output, offset, mask, grad_input,
                                            workspace.get(), nullptr));
      }};
}
#endif

int failures = 0, compared = 0;

template <typename T>
void check(const Problem& p, double tolerance, bool with_wild) {
  Inputs<T> in = random_inputs<T>(p, with_wild);
  // The same numbers in float64.
  Inputs<double> wide{Buffer<double>(in.input.size), Buffer<double>(in.offset.size),
                      Buffer<double>(in.mask.size), Buffer<double>(in.grad_output.size)};
  const auto widen = [](Buffer<T>& from, Buffer<double>& to) {
    for (int64_t i = 0; i < from.size; ++i) to.get()[i] = double(decode(from.get()[i]));
  };
  widen(in.input, wide.input);
  widen(in.offset, wide.offset);
  widen(in.mask, wide.mask);
  widen(in.grad_output, wide.grad_output);
  const auto truth = run(p, baseline::kernels<double>(), wide);
  double scale = 1;
  for (double v : truth) scale = std::max(scale, std::fabs(v));

  const auto compare = [&](const char* name, const Kernels<T>& kernels) {
    const auto result = run(p, kernels, in);
    for (size_t i = 0; i < truth.size(); ++i) {
      // Wild offsets put points on the very edge, where rounding decides what counts.
      const bool ok = with_wild ? std::isfinite(result[i])
                                : std::fabs(result[i] - truth[i]) <= tolerance * scale;
      ++compared;
      if (!ok && ++failures <= 10) {
        std::printf("%s, %d-byte type: element %zu of %zu is %g, expected %g\n", name,
                    int(sizeof(T)), i, truth.size(), result[i], truth[i]);
      }
    }
  };
  compare("baseline", baseline::kernels<T>());
#ifdef DCNV3_EMULATED_CUDA
  compare("cuda, atomics", emulated_cuda<T, false>());
  compare("cuda, ordered", emulated_cuda<T, true>());
#endif
#ifdef DCNV3_X86_DISPATCH
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    compare("avx2", avx2::kernels<T>());
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    compare("avx512", avx512::kernels<T>());
  }
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 50;
  for (int i = 0; i < rounds; ++i) {
    const Problem p = random_problem();
    for (bool with_wild : {false, true}) {
      check<double>(p, 1e-12, with_wild);
      check<float>(p, 5e-4, with_wild);
      check<BFloat16>(p, 2e-2, with_wild);
      check<Float16>(p, 5e-3, with_wild);
    }
  }
  std::printf("%d values compared, %d wrong\n", compared, failures);
  return failures != 0;
}
