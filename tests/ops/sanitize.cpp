// Runs the CPU kernels of every instruction set over random problems, on buffers of exactly the
// size that the contract of dcnv3_cpu.h gives, and compares them with the float64 kernels of the
// baseline. Built by test_sanitizers.py with AddressSanitizer and UndefinedBehaviorSanitizer. With
// DCNV3_EMULATED_CUDA it runs the CUDA kernels as well, in the emulator of cuda_emulator.
//
// Arguments: the number of rounds, and the first one (0). A round is the same problem each time.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "backward_bands.h"
#include "dcnv3_cpu.h"
#ifdef DCNV3_EMULATED_CUDA
#include "dcnv3_cuda.h"
#endif

namespace {

using namespace dcnv3;

std::mt19937 generator;

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

// What the kernels distinguish goes by the number of the round, so that 180 rounds hold every
// combination of channels, softmax, 3x3 or another kernel, and centre; the rest is random.
Problem random_problem(int round) {
  constexpr int64_t kChannels[] = {16, 3, 32, 1, 48, 4, 20};
  const int channels = round % 9;
  const bool three = round % 4 < 2, remove_center = round % 5 == 3;
  for (;;) {
    Problem p;
    p.batch = round % 7 == 6 ? 0 : between(1, 2);
    p.height = between(0, 7);
    p.width = between(0, 3) ? between(0, 30) : between(31, 90);
    p.groups = between(0, 7) ? between(1, 3) : between(kGroupsInTurns, kGroupsInTurns + 1);
    p.group_channels = channels < 7 ? kChannels[channels] : between(1, 70);
    p.kernel_h = three ? 3 : between(1, 5);
    p.kernel_w = three ? 3 : between(1, 5);
    p.stride_h = between(1, 3);
    p.stride_w = between(1, 3);
    p.pad_h = between(0, 3);
    p.pad_w = between(0, 3);
    p.dilation_h = between(1, 2);
    p.dilation_w = between(1, 2);
    p.offset_scale = normal();
    if (std::fabs(p.offset_scale) < 0.1) continue;  // see near_integer
    p.remove_center = remove_center;
    p.mask_is_logits = round % 2;
    if (remove_center && (p.kernel_h % 2 == 0 || p.kernel_w % 2 == 0 || p.points() == 0)) continue;
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
double decode(double value) { return value; }
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

// Whether element i of offset puts its point so near to whole pixels that float32 may round it to
// the other side, where the gradient of the offset is another one.
bool near_integer(const Problem& p, int64_t i, double value) {
  const int64_t pixel = i / p.offset_stride, within = i % p.offset_stride;
  const int64_t centre = p.kernel_w / 2 * p.kernel_h + p.kernel_h / 2;
  int64_t cell = within / 2 % p.points();
  cell += p.remove_center && cell >= centre;
  const int64_t half_h = p.dilation_h * (p.kernel_h - 1) / 2;
  const int64_t half_w = p.dilation_w * (p.kernel_w - 1) / 2;
  const int64_t out_x = pixel % p.out_width, out_y = pixel / p.out_width % p.out_height;
  const bool is_y = within % 2;
  const int64_t start =
      is_y ? out_y * p.stride_h - p.pad_h + half_h : out_x * p.stride_w - p.pad_w + half_w;
  const int64_t grid =
      is_y ? cell % p.kernel_h * p.dilation_h - half_h : cell / p.kernel_h * p.dilation_w - half_w;
  const double position = start + p.offset_scale * (grid + value);
  return std::fabs(position - std::nearbyint(position)) < 1e-4;
}

// Which inputs hold infinities, NaN and huge numbers.
enum class Wild { kNone, kOffset, kAll };

template <typename T>
Inputs<T> random_inputs(const Problem& p, Wild where) {
  const int64_t points = p.groups * p.points();
  const int64_t outputs = p.batch * p.out_height * p.out_width * p.channels();
  Inputs<T> in{Buffer<T>(p.batch * p.height * p.width * p.channels()),
               Buffer<T>(strided(p, p.offset_stride, 2 * points)),
               Buffer<T>(strided(p, p.mask_stride, points)), Buffer<T>(outputs)};
  for (Buffer<T>* b : {&in.input, &in.offset, &in.mask, &in.grad_output}) {
    for (int64_t i = 0; i < b->size; ++i) {
      const bool may_be_wild = where == Wild::kAll || (where == Wild::kOffset && b == &in.offset);
      const bool is_wild = may_be_wild && between(0, 3) == 0;
      do {
        encode(is_wild ? wild() : normal() * (b == &in.offset ? 3.0f : 1.0f), b->get() + i);
      } while (where == Wild::kNone && b == &in.offset && near_integer(p, i, decode(b->get()[i])));
    }
  }
  return in;
}

// Calls `kernel` for [0, total): at once, or in ranges as several threads would.
template <typename F>
void in_ranges(int64_t total, bool several, const F& kernel) {
  int64_t begin = 0;
  do {
    const int64_t end = several && begin < total ? between(begin + 1, total) : total;
    kernel(begin, end);
    begin = end;
  } while (begin < total);
}

// One implementation.
template <typename T>
struct Calls {
  std::function<void(const Problem&, Inputs<T>&, T* output)> forward;
  std::function<void(const Problem&, const BackwardTensors<T>&)> backward;
};

template <typename T>
Calls<T> cpu_calls(const Kernels<T>& kernels, bool several) {
  return {
      [=](const Problem& p, Inputs<T>& in, T* output) {
        in_ranges(p.batch * p.out_height, several, [&](int64_t begin, int64_t end) {
          kernels.forward(p, in.input.get(), in.offset.get(), in.mask.get(), output, begin, end);
        });
      },
      [=](const Problem& p, const BackwardTensors<T>& tensors) {
        std::fill_n(tensors.grad_input, p.batch * p.height * p.width * p.channels(), NAN);
        const auto parallel_for = [=](int64_t size, const auto& work) {
          in_ranges(size, several, work);
        };
        if (several) {  // bands of so few rows that many points reach beyond
          const int64_t bands = p.out_height / (4 * between(1, 2)) * 4;
          backward(p, kernels, tensors, between(1, 4), parallel_for, std::max<int64_t>(1, bands));
        } else {
          backward(p, kernels, tensors, 1, parallel_for, number_of_bands(p));
        }
      }};
}

template <typename T>
std::vector<double> run(const Problem& p, const Calls<T>& calls, Inputs<T>& in) {
  using S = typename Compute<T>::type;
  const int64_t points = p.batch * p.out_height * p.out_width * p.groups * p.points();
  Buffer<T> output(in.grad_output.size), grad_offset(2 * points), grad_mask(points);
  Buffer<S> grad_input(in.input.size);
  calls.forward(p, in, output.get());
  calls.backward(p, {in.grad_output.get(), in.input.get(), in.offset.get(), in.mask.get(),
                     grad_input.get(), grad_offset.get(), grad_mask.get()});
  std::vector<double> all;
  for (Buffer<T>* b : {&output, &grad_offset, &grad_mask}) {
    for (int64_t i = 0; i < b->size; ++i) all.push_back(decode(b->get()[i]));
  }
  for (int64_t i = 0; i < grad_input.size; ++i) all.push_back(double(grad_input.get()[i]));
  return all;
}

#ifdef DCNV3_EMULATED_CUDA
// kOrdered: without atomics.
template <typename T, bool kOrdered>
Calls<T> emulated_cuda() {
  constexpr auto type = std::is_same<T, float>::value      ? gpu::DType::kFloat32
                        : std::is_same<T, double>::value   ? gpu::DType::kFloat64
                        : std::is_same<T, BFloat16>::value ? gpu::DType::kBFloat16
                                                           : gpu::DType::kFloat16;
  static const auto fail_on = [](cudaError_t error) {
    if (error != cudaSuccess) std::abort();
  };
  return {[](const Problem& p, Inputs<T>& in, T* output) {
            fail_on(gpu::forward(p, type, in.input.get(), in.offset.get(), in.mask.get(), output,
                                 nullptr));
          },
          [](const Problem& p, const BackwardTensors<T>& t) {
            fail_on(gpu::backward(p, type, t.grad_output, t.input, t.offset, t.mask,
                                  kOrdered ? nullptr : t.grad_input, t.grad_offset, t.grad_mask,
                                  nullptr));
            if (!kOrdered) return;
            Buffer<char> workspace(gpu::ordered_workspace_bytes(p, type));
            fail_on(gpu::backward_input_ordered(p, type, t.grad_output, t.offset, t.mask,
                                                t.grad_input, workspace.get(), nullptr));
          }};
}
#endif

int64_t failures = 0, compared = 0;
std::set<std::string> kernels_run;

template <typename T>
void check(const Problem& p, double tolerance, Wild where) {
  Inputs<T> in = random_inputs<T>(p, where);
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
  const auto truth = run(p, cpu_calls(baseline::kernels<double>(), false), wide);
  double scale = 1;
  for (double v : truth) scale = std::max(scale, std::fabs(v));

  const auto compare = [&](const char* name, const Calls<T>& calls) {
    const auto result = run(p, calls, in);
    kernels_run.insert(name);
    if (where == Wild::kAll) return;  // what comes out is NaN
    for (size_t i = 0; i < truth.size(); ++i) {
      // Wild offsets put points on the very edge, where rounding decides what counts.
      const bool ok = where == Wild::kOffset ? std::isfinite(result[i])
                                             : std::fabs(result[i] - truth[i]) <= tolerance * scale;
      ++compared;
      if (!ok && ++failures <= 10) {
        std::printf("%s, %d-byte type: element %zu of %zu is %g, expected %g\n", name,
                    int(sizeof(T)), i, truth.size(), result[i], truth[i]);
      }
    }
  };
  compare("baseline", cpu_calls(baseline::kernels<T>(), true));
#ifdef DCNV3_EMULATED_CUDA
  compare("cuda with atomics", emulated_cuda<T, false>());
  compare("cuda without atomics", emulated_cuda<T, true>());
#elif defined(DCNV3_X86_DISPATCH)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    compare("avx2", cpu_calls(avx2::kernels<T>(), true));
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    compare("avx512", cpu_calls(avx512::kernels<T>(), true));
  }
#endif
}

void print(int round, const Problem& p) {
  std::printf("round %d: input %dx%dx%d, %d groups of %d channels, kernel %dx%d%s%s\n", round,
              int(p.batch), int(p.height), int(p.width), int(p.groups), int(p.group_channels),
              int(p.kernel_h), int(p.kernel_w), p.remove_center ? " without centre" : "",
              p.mask_is_logits ? ", softmax" : "");
  std::fflush(stdout);  // a sanitizer ends the program at once
}

}  // namespace

// Half a band is as high as the kernel and offsets need; see number_of_bands.
void check_bands() {
  struct Case {
    int64_t out_height, groups, kernel, dilation, stride;
    double offset_scale;
    int64_t bands;
  };
  for (const Case& c :
       {Case{95, 8, 3, 1, 1, 1, 1}, Case{96, 8, 3, 1, 1, 1, 4}, Case{200, 4, 3, 1, 1, 1, 8},
        Case{31, 4, 3, 1, 1, 1, 1}, Case{32, 4, 3, 1, 1, 1, 4}, Case{32, 8, 3, 1, 1, 1, 1},
        Case{16, 4, 3, 1, 2, 1, 4}, Case{63, 4, 3, 5, 1, 1, 1}, Case{64, 4, 3, 5, 1, 1, 4},
        Case{64, 4, 3, 1, 1, -6, 1}, Case{99, 8, 4, 1, 1, 1, 1}, Case{100, 8, 4, 1, 1, 1, 4},
        Case{1, 1, 1, 1, 1, 0, 1}, Case{200, 4, 3, 1, 1, 1e300, 1}}) {
    Problem p = {};
    p.out_height = c.out_height;
    p.groups = c.groups;
    p.kernel_h = c.kernel;
    p.dilation_h = c.dilation;
    p.stride_h = c.stride;
    p.offset_scale = c.offset_scale;
    if (number_of_bands(p) != c.bands) {
      std::printf("%d bands for %d rows\n", int(number_of_bands(p)), int(c.out_height));
      ++failures;
    }
  }
}

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  const int first = argc > 2 ? std::atoi(argv[2]) : 0;
  check_bands();
  for (int round = first; round < first + rounds && failures == 0; ++round) {
    generator.seed(round);
    const Problem p = random_problem(round);
    print(round, p);
    // About three times the largest errors of 4000 rounds: 7.6e-15, 8.3e-6, 3.9e-3 and 4.8e-4.
    // Those of 16 bits are half a unit in the last place, as in op_cases.py. The one of float32 is
    // larger than there: images are up to 90 columns wide, where float32 rounds positions the most,
    // and scales are random. float64 need not allow for the precision of recorded data.
    for (Wild where : {Wild::kNone, Wild::kOffset, Wild::kAll}) {
      check<double>(p, 2.5e-14, where);
      check<float>(p, 2.5e-5, where);
      check<BFloat16>(p, 1.1e-2, where);
      check<Float16>(p, 1.3e-3, where);
    }
  }
  std::printf("Kernels:");
  for (const std::string& name : kernels_run) std::printf(" %s;", name.c_str());
  std::printf(" float64, float32, bfloat16, float16, forward and backward\n");
  std::printf("%lld values compared, %lld wrong\n", (long long)compared, (long long)failures);
  return failures != 0;
}
