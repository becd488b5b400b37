// Linear maps on oneDNN's own layout of their weights. libtorch's compiler uses these operators; its C++ headers do not
// declare them, so they are called by name.
#include <ATen/ATen.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>

#include <stdexcept>
#include <vector>

#include "guard.h"

using at::Tensor;
using flywheel::guard;

namespace {

Tensor call(const char* name, const char* overload, std::vector<c10::IValue> stack) {
  // The same few names for ever.
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
  op.callBoxed(stack);
  return std::move(stack.at(0)).toTensor();
}

}  // namespace

extern "C" {

// A weight [to, from] in the layout that is best for inputs of about `rows` rows.
int fw_onednn_pack(const Tensor* weight, int64_t rows, Tensor** out) {
  return guard([&] {
    *out = new Tensor(call("mkldnn::_reorder_linear_weight", "", {weight->contiguous(), c10::IValue(rows)}));
  });
}

// activation(x · weightᵀ + bias), x [rows, from]; activation 0: none, 1: GELU, 2: GELU by tanh, 3: ReLU.
int fw_onednn_linear(const Tensor* x, const Tensor* packed, const Tensor* bias, int activation, Tensor** out) {
  return guard([&] {
    static const char* const names[] = {"none", "gelu", "gelu", "relu"};
    const c10::IValue algorithm = activation == 1 ? c10::IValue("none") : activation == 2 ? c10::IValue("tanh") : c10::IValue();
    const c10::List<std::optional<at::Scalar>> scalars;
    *out = new Tensor(call("mkldnn::_linear_pointwise", "",
                           {*x, *packed, *bias, c10::IValue(names[activation]), scalars, algorithm}));
  });
}

// x · weightᵀ + bias + addend, x [rows, from], addend [rows, to].
int fw_onednn_linear_add(const Tensor* x, const Tensor* addend, const Tensor* packed, const Tensor* bias, Tensor** out) {
  return guard([&] {
    *out = new Tensor(
        call("mkldnn::_linear_pointwise", "binary", {*x, *addend, *packed, *bias, c10::IValue("add")}));
  });
}
}
