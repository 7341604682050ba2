// What the kernels of ops_dcnv3/csrc/cuda use of CUDA, for a C++ compiler: their very text then
// runs on the CPU. Each CUDA thread is a fiber; see emulator.cpp. The four headers beside this one
// carry CUDA's names and include it.
//
// Stricter than a GPU: shared memory starts as NaN, a write beyond what was asked for is found, a
// warp function that not all 32 lanes reach is an error, and between two such points the lanes run
// one after the other in an order that the caller chooses, so a missing __syncwarp shows.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// As for sm_90, with what the kernels do only there.
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __device__
#define __global__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotSupported = 801
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

[[noreturn]] void fail(const char* what);

// Wait until all lanes of the warp have come here with the same `operation`; 8 bytes of each lane.
const uint64_t* exchange(const char* operation, unsigned lanes, uint64_t value);

cudaError_t launch(void (*body)(void*), void* arguments, dim3 grid, dim3 block, size_t shared);

template <typename T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

inline void __syncwarp() { emulator::exchange("__syncwarp", ~0u, 0); }

template <typename T>
T __shfl_sync(unsigned lanes, T value, int from) {
  return emulator::from_bits<T>(
      emulator::exchange("__shfl_sync", lanes, emulator::to_bits(value))[from & 31]);
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int step) {
  const int lane = int(threadIdx.x) & 31;
  return emulator::from_bits<T>(
      emulator::exchange("__shfl_xor_sync", lanes, emulator::to_bits(value))[lane ^ step]);
}

inline unsigned __ballot_sync(unsigned lanes, int predicate) {
  const uint64_t* values = emulator::exchange("__ballot_sync", lanes, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= unsigned(values[lane]) << lane;
  return bits;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline void atomicAdd(float* to, float value) { *to += value; }
inline void atomicAdd(double* to, double value) { *to += value; }
inline void atomicAdd(float4* to, float4 value) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulator::fail("float4 atomicAdd is not aligned");
  to->x += value.x, to->y += value.y, to->z += value.z, to->w += value.w;
}

template <typename Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments), dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
  struct Call {
    void (*kernel)(Arguments);
    Arguments* arguments;
  } call = {kernel, static_cast<Arguments*>(arguments[0])};
  return emulator::launch(
      [](void* data) {
        Call* c = static_cast<Call*>(data);
        c->kernel(*c->arguments);
      },
      &call, grid, block, shared);
}

// ------------------------------------------------------------------------------- 16-bit floats

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  return emulator::from_bits<float>(uint64_t(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = uint32_t(emulator::to_bits(value));
  if (value != value) return {0x7fff};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(fraction + 1024), exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (value != value) return {0x7fff};
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) return {uint16_t(sign | int(std::nearbyint(magnitude * 0x1p24f)))};
  const int exponent = std::ilogb(magnitude);
  const int fraction = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // 1024 ... 2048
  return {uint16_t(sign | (((exponent + 14) << 10) + fraction))};
}
