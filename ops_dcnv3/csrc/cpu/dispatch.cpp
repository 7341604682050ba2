#include "dcnv3_cpu.h"

namespace dcnv3 {

template <typename T>
Kernels<T> kernels() {
#ifdef DCNV3_X86_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return avx512::kernels<T>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels<T>();
#endif
  return baseline::kernels<T>();
}

template Kernels<float> kernels();
template Kernels<double> kernels();
template Kernels<BFloat16> kernels();
template Kernels<Float16> kernels();

}  // namespace dcnv3
