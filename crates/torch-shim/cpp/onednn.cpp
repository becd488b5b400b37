// Linear maps on oneDNN's own layout of their weights. libtorch's compiler uses these operators; its C++ headers do not
// declare them, so they are called by name.
#include <ATen/ATen.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>

#include <stdexcept>
#include <vector>

#include "guard.h"
#include "kernels.h"

using at::Tensor;
using flywheel::guard;

namespace {

// An operator by name; looked up once by each that calls it.
c10::OperatorHandle operation(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

Tensor call(const c10::OperatorHandle& op, std::vector<c10::IValue> stack) {
  op.callBoxed(stack);
  return std::move(stack.at(0)).toTensor();
}

}  // namespace

extern "C" {

// A weight [to, from] in the layout that is best for inputs of about `rows` rows.
int fw_onednn_pack(const Tensor* weight, int64_t rows, Tensor** out) {
  return guard([&] {
    static const auto op = operation("mkldnn::_reorder_linear_weight", "");
    *out = new Tensor(call(op, {weight->contiguous(), c10::IValue(rows)}));
  });
}

// activation(x · weightᵀ + bias), x [rows, from]; activation 0: none, 1: GELU, 2: GELU by tanh, 3: ReLU.
int fw_onednn_linear(const Tensor* x, const Tensor* packed, const Tensor* bias, int activation, Tensor** out) {
  return guard([&] {
    static const auto op = operation("mkldnn::_linear_pointwise", "");
    static const char* const names[] = {"none", "gelu", "gelu", "relu"};
    const c10::IValue algorithm = activation == 1 ? c10::IValue("none") : activation == 2 ? c10::IValue("tanh") : c10::IValue();
    const c10::List<std::optional<at::Scalar>> scalars;
    *out = new Tensor(call(op, {*x, *packed, *bias, c10::IValue(names[activation]), scalars, algorithm}));
  });
}

// x · weightᵀ + bias + addend, x [rows, from], addend [rows, to].
int fw_onednn_linear_add(const Tensor* x, const Tensor* addend, const Tensor* packed, const Tensor* bias, Tensor** out) {
  return guard([&] {
    static const auto op = operation("mkldnn::_linear_pointwise", "binary");
    *out = new Tensor(call(op, {*x, *addend, *packed, *bias, c10::IValue("add")}));
  });
}

// A weight [to, from] of whole numbers from -127 to 127, in the layout that is best for inputs of about `rows` rows.
int fw_onednn_pack_int8(const Tensor* weight, int64_t rows, Tensor** out) {
  return guard([&] {
    static const auto op = operation("onednn::qlinear_prepack", "");
    const std::vector<int64_t> inputs{rows, weight->size(1)};
    *out = new Tensor(call(op, {weight->contiguous(), c10::IValue(inputs)}));
  });
}

// step · (x - zero) · (steps · weight)ᵀ + bias, x [rows, from] of bytes, `steps` and `zeros` (all zero) [to]. In bfloat16 where the
// processor has 512-bit vectors: half the memory to write and to read again, in the same kernel; else in single precision.
int fw_onednn_linear_int8(const Tensor* x, double step, int64_t zero, const Tensor* packed, const Tensor* steps, const Tensor* zeros,
                          const Tensor* bias, Tensor** out) {
  return guard([&] {
    static const auto op = operation("onednn::qlinear_pointwise", "");
    const c10::List<std::optional<at::Scalar>> scalars;
    const auto kind = flywheel::wide_vectors() ? at::kBFloat16 : at::kFloat;
    *out = new Tensor(call(op, {*x, step, zero, *packed, *steps, *zeros, *bias, 1.0, int64_t(0), c10::IValue(int64_t(kind)), "none",
                                scalars, ""}));
  });
}
}
