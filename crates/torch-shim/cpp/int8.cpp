// The loops of kernels.cpp over tensors, every shape and type checked before.
#include <ATen/ATen.h>

#include "guard.h"
#include "kernels.h"

using at::Tensor;
using flywheel::Attention;
using flywheel::guard;
using flywheel::Numbers;
using flywheel::Quantised;

namespace {

void check_matrix(const Tensor& x, int64_t columns) {
  TORCH_CHECK(x.device().is_cpu() && x.dim() == 2 && x.size(1) == columns && x.is_contiguous(), "wanted a whole matrix of ", columns,
              " columns on the processor, got ", x.sizes());
}

// The columns [from, ...] of a matrix of single precision or bfloat16.
Numbers numbers(const Tensor& x, int64_t from = 0) {
  const bool bfloat16 = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(bfloat16 || x.scalar_type() == at::kFloat, "wanted Float or BFloat16, got ", x.scalar_type());
  return {static_cast<const char*>(x.const_data_ptr()) + from * x.element_size(), bfloat16};
}

const float* floats(const Tensor& x, int64_t count) {
  TORCH_CHECK(x.device().is_cpu() && x.numel() == count && x.is_contiguous() && x.scalar_type() == at::kFloat, "wanted ", count,
              " numbers of single precision, got ", x.sizes(), " of ", x.scalar_type());
  return x.const_data_ptr<float>();
}

Tensor bytes(int64_t rows, int64_t columns) { return at::empty({rows, columns}, at::kByte); }

}  // namespace

extern "C" {

// activation(x) quantised, x [rows, columns], and after each row its columns `copied` once more; the numbers of activations are those of
// fw_onednn_linear.
int fw_activate_quantise(const Tensor* x, int activation, const Tensor* multipliers, int64_t zero, const int64_t* copied, size_t copies,
                         Tensor** out) {
  return guard([&] {
    TORCH_CHECK(x->dim() == 2, "wanted a matrix");
    const int64_t rows = x->size(0), columns = x->size(1);
    check_matrix(*x, columns);
    for (size_t i = 0; i < copies; ++i) TORCH_CHECK(copied[i] >= 0 && copied[i] < columns, "there is no column ", copied[i]);
    Tensor to = bytes(rows, columns + int64_t(copies));
    flywheel::activate_quantise(numbers(*x), rows, columns, activation,
                                {floats(*multipliers, columns), float(zero), to.mutable_data_ptr<uint8_t>()}, copied, copies);
    *out = new Tensor(std::move(to));
  });
}

// Layer norm of x + addend, in single precision and, where there are multipliers, quantised.
int fw_add_norm_quantise(const Tensor* x, const Tensor* addend, const Tensor* weight, const Tensor* bias, double eps,
                         const Tensor* multipliers, int64_t zero, Tensor** out, Tensor** quantised) {
  return guard([&] {
    TORCH_CHECK(x->dim() == 2, "wanted a matrix");
    const int64_t rows = x->size(0), columns = x->size(1);
    check_matrix(*x, columns);
    Tensor y = at::empty({rows, columns}, at::kFloat);
    Tensor q = multipliers ? bytes(rows, columns) : Tensor();
    const Quantised to = multipliers ? Quantised{floats(*multipliers, columns), float(zero), q.mutable_data_ptr<uint8_t>()} : Quantised{};
    flywheel::add_norm_quantise(numbers(*x), floats(*addend, rows * columns), rows, columns, floats(*weight, columns),
                                floats(*bias, columns), float(eps), y.mutable_data_ptr<float>(), to);
    *out = new Tensor(std::move(y));
    if (multipliers) *quantised = new Tensor(std::move(q));
  });
}

// Attention over groups of rows of one length, quantised, [asked, hidden]. `projected` [tokens, 3 · hidden] holds query, key and value
// side by side, or where `queries` [rows, hidden] of the rows' first tokens are given, key and value alone. Of each group four numbers:
// place of its first token, of its first row, rows, length. What no group covers becomes what a zero does.
int fw_attend_quantise(const Tensor* projected, const Tensor* queries, const int64_t* groups, size_t count, int64_t heads, int64_t hidden,
                       const Tensor* multipliers, int64_t zero, Tensor** out) {
  return guard([&] {
    TORCH_CHECK(heads > 0 && hidden % heads == 0, "hidden is no multiple of heads");
    check_matrix(*projected, (queries ? 2 : 3) * hidden);
    if (queries) {
      check_matrix(*queries, hidden);
      TORCH_CHECK(queries->scalar_type() == projected->scalar_type(), "queries of another type");
    }
    const Tensor& asking = queries ? *queries : *projected;
    const int64_t step = projected->size(1), query_step = asking.size(1), key = queries ? 0 : hidden;
    Tensor to = bytes(asking.size(0), hidden);
    uint8_t* const all = to.mutable_data_ptr<uint8_t>();
    const float* const factors = floats(*multipliers, hidden);
    int64_t done = 0;
    for (size_t i = 0; i < count; ++i) {
      const int64_t token = groups[4 * i], row = groups[4 * i + 1], rows = groups[4 * i + 2], length = groups[4 * i + 3];
      const int64_t first = queries ? row : token, asked = queries ? rows : rows * length;
      TORCH_CHECK(rows > 0 && length > 0 && token >= 0 && first == done && first + asked <= asking.size(0) &&
                      token + rows * length <= projected->size(0),
                  "groups that are not one after another");
      const Attention attention{numbers(asking, first * query_step),
                                numbers(*projected, token * step + key),
                                numbers(*projected, token * step + key + hidden),
                                size_t(query_step),
                                size_t(step),
                                size_t(rows),
                                size_t(length),
                                size_t(queries ? 1 : length),
                                size_t(heads),
                                size_t(hidden / heads)};
      flywheel::attend_quantise(attention, {factors, float(zero), all + first * hidden});
      done = first + asked;
    }
    std::fill(all + done * hidden, all + to.numel(), uint8_t(zero));
    *out = new Tensor(std::move(to));
  });
}
}
