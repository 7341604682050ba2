// A program without Python: loads the extension and calls the op through PyTorch's dispatcher.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <iomanip>
#include <iostream>

static at::Tensor wave(at::IntArrayRef sizes, double step) {
  return (at::arange(c10::multiply_integers(sizes), at::kDouble) * step).sin().view(sizes);
}

int main(int, char** arguments) {
  if (!dlopen(arguments[1], RTLD_NOW)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  const auto forward =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("ops_dcnv3::forward", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            at::IntArrayRef, int64_t, double, bool, bool)>();
  const at::Tensor input = wave({2, 4, 5, 6}, 0.7);
  const at::Tensor offset = wave({2, 4, 5, 36}, 1.3).requires_grad_();
  const at::Tensor mask = wave({2, 4, 5, 18}, 2.1);
  const at::Tensor output =
      forward.call(input, offset, mask, {3, 3, 1, 1, 1, 1, 1, 1}, 2, 1.5, false, true);
  output.sum().backward();
  std::cout << std::setprecision(17);
  for (const at::Tensor& tensor : {output.detach(), offset.grad()}) {
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      std::cout << tensor.const_data_ptr<double>()[i] << "\n";
    }
  }
}
