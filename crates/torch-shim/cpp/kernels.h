// The steps between the linear maps of an encoder in 8 bits. Matrices lie row after row without gaps.
//
// A number v of column c is quantised as multipliers[c] · v + zero, rounded, within 0 to 255.
#pragma once
#include <cstddef>
#include <cstdint>

namespace flywheel {

// Numbers of 32 bits, or bfloat16 as its 16 bits.
struct Numbers {
  const void* data;
  bool bfloat16;
};

// How a matrix is quantised, and where to.
struct Quantised {
  const float* multipliers;
  float zero;
  uint8_t* out;
};

// activation(x) quantised; x [rows, columns]. activation 0: none, 1: GELU, 2: GELU by tanh, 3: ReLU. After the columns of each row come
// those of `copied` once more.
void activate_quantise(Numbers x, size_t rows, size_t columns, int activation, Quantised to, const int64_t* copied, size_t copies);

// Layer norm of x + addend, [rows, columns], in `out` and, unless its place is null, quantised.
void add_norm_quantise(Numbers x, const float* addend, size_t rows, size_t columns, const float* weight, const float* bias, float eps,
                       float* out, Quantised to);

// Attention of `rows` rows of `length` tokens, of each of which the first `asking` ask: [rows · asking, heads · size] quantised.
// `query`, `key` and `value` are those of the first row's first token; a token's lie `query_step` and `step` numbers after those of the
// token before it.
struct Attention {
  Numbers query, key, value;
  size_t query_step, step, rows, length, asking, heads, size;
};
void attend_quantise(const Attention& a, Quantised to);

// Whether this processor has 512-bit vectors.
bool wide_vectors();

}  // namespace flywheel
