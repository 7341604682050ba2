// Runs the blocks of a kernel one after the other, with a fiber for each thread.
#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "dcnv3_cuda.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kSharedBytes = 48 * 1024;
constexpr unsigned char kUnwritten = 0xff;  // a NaN in every type

// A fiber starts by swapcontext, which makes system calls. Later switches jump, which is quicker,
// except under AddressSanitizer, which cannot follow jumps from stack to stack.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kJump = false;
#else
constexpr bool kJump = true;
#endif

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started;
  std::unique_ptr<char[]> stack;
  const char* operation;  // what it waits in, or null
  bool finished;
};

struct Warp {
  uint64_t given[32], seen[32];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
jmp_buf scheduler_place;
int current;
void (*body)(void*);
void* arguments;
int order_seed = 0;

void to_scheduler(Fiber& fiber) {
  if (!kJump) {
    swapcontext(&fiber.context, &scheduler);
  } else if (_setjmp(fiber.place) == 0) {
    _longjmp(scheduler_place, 1);
  }
}

void start() {
  body(arguments);
  fibers[current].finished = true;
  to_scheduler(fibers[current]);
}

void run_fiber(int index) {
  current = index;
  threadIdx.x = unsigned(index);
  Fiber& fiber = fibers[index];
  if (kJump && _setjmp(scheduler_place) != 0) return;
  if (kJump && fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  swapcontext(&scheduler, &fiber.context);
}

void run_block(int threads) {
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.finished = false;
    fiber.operation = nullptr;
    fiber.started = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  std::vector<int> order(threads);
  for (int t = 0; t < threads; ++t) order[t] = order_seed == 1 ? threads - 1 - t : t;
  std::mt19937 generator(order_seed);
  for (;;) {
    if (order_seed > 1) std::shuffle(order.begin(), order.end(), generator);
    bool any = false;
    for (int t : order) {
      if (fibers[t].finished) continue;
      run_fiber(t);
      any = true;
    }
    if (!any) return;
    for (int first = 0; first < threads; first += 32) {
      const char* operation = fibers[first].operation;
      for (int t = first; t < first + 32; ++t) {
        if (fibers[t].finished != fibers[first].finished) {
          emulator::fail("some lanes of a warp have ended, others wait");
        }
        if (!fibers[t].finished && std::strcmp(fibers[t].operation, operation) != 0) {
          emulator::fail("the lanes of a warp wait in different functions");
        }
      }
      std::memcpy(warps[first / 32].seen, warps[first / 32].given, sizeof(Warp::seen));
    }
  }
}

}  // namespace

namespace dcnv3 {
namespace gpu {
uint4 shared_memory[kSharedBytes / sizeof(uint4)];
}
}  // namespace dcnv3

namespace emulator {

void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u %u %u, thread %u)\n", what, blockIdx.x,
               blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

const uint64_t* exchange(const char* operation, unsigned lanes, uint64_t value) {
  if (lanes != ~0u) fail("only full warps are emulated");
  const int index = current;
  warps[index / 32].given[index % 32] = value;
  fibers[index].operation = operation;
  to_scheduler(fibers[index]);
  return warps[index / 32].seen;
}

cudaError_t launch(void (*kernel)(void*), void* kernel_arguments, dim3 grid, dim3 block,
                   size_t shared) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || block.x == 0 || block.x > 1024 || block.x % 32 != 0 || block.y != 1 ||
      block.z != 1 || shared > kSharedBytes) {
    return cudaErrorInvalidConfiguration;
  }
  body = kernel;
  arguments = kernel_arguments;
  gridDim = grid;
  blockDim = block;
  fibers.resize(std::max<size_t>(fibers.size(), block.x));
  warps.resize(fibers.size() / 32);
  auto* memory = reinterpret_cast<unsigned char*>(dcnv3::gpu::shared_memory);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        std::memset(memory, kUnwritten, kSharedBytes);
        run_block(int(block.x));
        for (size_t i = shared; i < kSharedBytes; ++i) {
          if (memory[i] != kUnwritten) fail("a write beyond the shared memory asked for");
        }
      }
    }
  }
  return cudaSuccess;
}

}  // namespace emulator

// ------------------------------------------------------------------- for ctypes
// (test_cuda_emulated)

namespace {

// batch, height, width, out_height, out_width, groups, group_channels, kernel, stride, padding and
// dilation as h and w, offset_stride, mask_stride, remove_center, mask_is_logits
dcnv3::Problem problem_of(const int64_t* n, double offset_scale) {
  dcnv3::Problem problem;
  std::memcpy(&problem, n, 17 * sizeof(int64_t));
  problem.offset_scale = offset_scale;
  problem.remove_center = n[17] != 0;
  problem.mask_is_logits = n[18] != 0;
  return problem;
}

}  // namespace

extern "C" {

// 0: first to last; 1: last to first; others: seeds of random orders.
void emulated_order(int seed) { order_seed = seed; }

int emulated_forward(const int64_t* sizes, double scale, int dtype, const void* input,
                     const void* offset, const void* mask, void* output) {
  return dcnv3::gpu::forward(problem_of(sizes, scale), dcnv3::gpu::DType(dtype), input, offset,
                             mask, output, nullptr);
}

int emulated_backward(const int64_t* sizes, double scale, int dtype, const void* grad_output,
                      const void* input, const void* offset, const void* mask, void* grad_input,
                      void* grad_offset, void* grad_mask) {
  return dcnv3::gpu::backward(problem_of(sizes, scale), dcnv3::gpu::DType(dtype), grad_output,
                              input, offset, mask, grad_input, grad_offset, grad_mask, nullptr);
}

int emulated_backward_input_ordered(const int64_t* sizes, double scale, int dtype,
                                    const void* grad_output, const void* offset, const void* mask,
                                    void* grad_input, void* workspace) {
  return dcnv3::gpu::backward_input_ordered(problem_of(sizes, scale), dcnv3::gpu::DType(dtype),
                                            grad_output, offset, mask, grad_input, workspace,
                                            nullptr);
}

int64_t emulated_workspace_bytes(const int64_t* sizes, int dtype) {
  return dcnv3::gpu::ordered_workspace_bytes(problem_of(sizes, 1.0), dcnv3::gpu::DType(dtype));
}
}
