// What every processor of the target architecture can run (SSE2 on x86-64, NEON on arm64).
#define DCNV3_NAMESPACE baseline
#if defined(__GNUC__)
#define DCNV3_VECTOR_BYTES 16
#else
#define DCNV3_VECTOR_BYTES 0
#endif
#include "kernels.h"
