// The operators: their types and their derivative, on any device. The derivative is in C++ because
// PyTorch's way to give one in Python takes longer than small kernels run.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/version.h>

#include <tuple>

// registration.py reads it from the file, before it loads what may not fit the torch that is there.
extern "C" C10_EXPORT const char ops_dcnv3_torch[] = "ops_dcnv3 for torch " TORCH_VERSION;

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using ForwardSchema = Tensor(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef, int64_t,
                             double, bool, bool);
using BackwardSchema = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 at::IntArrayRef, int64_t, double, bool, bool);

template <typename Schema>
c10::TypedOperatorHandle<Schema> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

// The arguments of the operators after the tensors.
struct Options {
  at::IntArrayRef window;
  int64_t groups;
  double offset_scale;
  bool remove_center, mask_is_logits;
};

Tensor call_forward(const Tensor& input, const Tensor& offset, const Tensor& mask,
                    const Options& o) {
  static const auto op = find<ForwardSchema>("ops_dcnv3::forward");
  return op.call(input, offset, mask, o.window, o.groups, o.offset_scale, o.remove_center,
                 o.mask_is_logits);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                        const Tensor& mask, const Options& o) {
  static const auto op = find<BackwardSchema>("ops_dcnv3::backward");
  return op.call(grad_output, input, offset, mask, o.window, o.groups, o.offset_scale,
                 o.remove_center, o.mask_is_logits);
}

// The operators have no jvp, and PyTorch would drop tangents silently.
template <typename... Tensors>
void refuse_tangents(const Tensors&... tensors) {
  TORCH_CHECK(!(tensors._fw_grad(/*level=*/0).defined() || ...),
              "dcnv3 has no forward-mode derivative (torch.func.jvp, forward_ad): "
              "use backend='reference' where one is needed.");
}

template <typename... Tensors>
bool needs_graph(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

class Dcnv3 : public Function<Dcnv3> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& offset,
                        const Tensor& mask, const Options& options) {
    context->save_for_backward({input, offset, mask});
    auto& saved = context->saved_data;
    saved["window"] = options.window;
    saved["groups"] = options.groups;
    saved["offset_scale"] = options.offset_scale;
    saved["remove_center"] = options.remove_center;
    saved["mask_is_logits"] = options.mask_is_logits;
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_forward(input, offset, mask, options);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list tensors = context->get_saved_variables();
    auto& saved = context->saved_data;
    const auto window = saved["window"].toIntVector();
    const Options options{window, saved["groups"].toInt(), saved["offset_scale"].toDouble(),
                          saved["remove_center"].toBool(), saved["mask_is_logits"].toBool()};
    const auto [grad_input, grad_offset, grad_mask] =
        call_backward(grads[0], tensors[0], tensors[1], tensors[2], options);
    const auto where_needed = [&](size_t index, const Tensor& gradient) {
      return context->needs_input_grad(index) ? gradient : Tensor();
    };
    return {where_needed(0, grad_input), where_needed(1, grad_offset), where_needed(2, grad_mask),
            Tensor()};
  }
};

class Dcnv3Backward : public Function<Dcnv3Backward> {
 public:
  static variable_list forward(AutogradContext*, const Tensor& grad_output, const Tensor& input,
                               const Tensor& offset, const Tensor& mask, const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [grad_input, grad_offset, grad_mask] =
        call_backward(grad_output, input, offset, mask, options);
    return {grad_input, grad_offset, grad_mask};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "dcnv3 has no second derivative: its backward cannot be differentiated "
                "(create_graph=True). Use backend='reference' where a double backward is needed.");
  }
};

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& mask,
               at::IntArrayRef window, int64_t groups, double offset_scale, bool remove_center,
               bool mask_is_logits) {
  refuse_tangents(input, offset, mask);
  const Options options{window, groups, offset_scale, remove_center, mask_is_logits};
  if (needs_graph(input, offset, mask)) return Dcnv3::apply(input, offset, mask, options);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_forward(input, offset, mask, options);
}

Gradients backward(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                   const Tensor& mask, at::IntArrayRef window, int64_t groups, double offset_scale,
                   bool remove_center, bool mask_is_logits) {
  refuse_tangents(grad_output, input, offset, mask);
  const Options options{window, groups, offset_scale, remove_center, mask_is_logits};
  if (needs_graph(grad_output, input, offset, mask)) {
    const auto grads = Dcnv3Backward::apply(grad_output, input, offset, mask, options);
    return {grads[0], grads[1], grads[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad_output, input, offset, mask, options);
}

}  // namespace

// registration.py declares the same where this extension is missing; a test compares both.
TORCH_LIBRARY(ops_dcnv3, library) {
  library.def(
      "forward(Tensor input, Tensor offset, Tensor mask, int[8] window, int groups, "
      "float offset_scale, bool remove_center, bool mask_is_logits) -> Tensor");
  library.def(
      "backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, int[8] window, "
      "int groups, float offset_scale, bool remove_center, bool mask_is_logits) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ops_dcnv3, Autograd, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
