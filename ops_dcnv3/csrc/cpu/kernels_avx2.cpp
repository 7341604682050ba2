// AVX2. The headers come before the pragma, or inline functions of theirs would be
// compiled for AVX2 and could replace, at link time, the ones that other files use.
#include "dcnv3_cpu.h"

#ifdef DCNV3_X86_DISPATCH
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define DCNV3_NAMESPACE avx2
#define DCNV3_VECTOR_BYTES 32
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
