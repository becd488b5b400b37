// Plain loops, which the compiler turns into vectors: once for each kind of processor, chosen at run time. Sums may be added up in any
// order here (build.rs), so nothing of libtorch belongs into this file.
#include "kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace flywheel {
namespace {

#define INLINE inline __attribute__((always_inline))

// Sixteen numbers at once, on every processor: the compiler splits them where vectors are shorter.
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
constexpr size_t LANES = 16;
// Queries that are looked up together: their sums stay in registers.
constexpr size_t TOGETHER = 4;
// Far below all that is looked up, and finite.
constexpr float LOWEST = -1e30f;

INLINE float number(float x) { return x; }
INLINE float number(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE uint8_t quantised(float x, float multiplier, float zero) {
  float scaled = x * multiplier + zero;
  scaled = scaled < 0.f ? 0.f : scaled;
  scaled = scaled > 255.f ? 255.f : scaled;
  return uint8_t(int(scaled + 0.5f));
}

// e to the x, within a few units of the last place; for x of -87 to 0, below which it is that of -87.
INLINE float exponential(float x) {
  x = x < -87.f ? -87.f : x;
  const float twos = x * 1.44269504f;
  const int whole = int(twos - 0.5f);
  const float rest = (twos - float(whole)) * 0.693147181f;
  float sum = 1.f / 720;
  sum = sum * rest + 1.f / 120;
  sum = sum * rest + 1.f / 24;
  sum = sum * rest + 1.f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.f;
  sum = sum * rest + 1.f;
  const int32_t bits = (whole + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}

// x · (1/2 + the odd polynomial that is nearest to the distribution less a half within ±3.8): exact to 2e-5, far below what a step of
// eight bits tells apart, at a third of the cost of an exponential and a division.
INLINE float gelu_by(const float (&odd)[8], float x) {
  float z = x < -3.8f ? -3.8f : x;
  z = z > 3.8f ? 3.8f : z;
  const float square = z * z;
  float sum = odd[7];
  for (int i = 6; i >= 0; --i) sum = sum * square + odd[i];
  return x * (0.5f + z * sum);
}
// Least squares, weighted until the largest error is least, of erf(x / √2) / 2 and of tanh(√(2 / π) (x + 0.044715 x³)) / 2.
constexpr float ERF[8] = {0.398783185f,    -0.0660994666f,   0.00964108536f,  -0.00104721124f,
                          8.13249511e-05f, -4.21747241e-06f, 1.29179388e-07f, -1.74996922e-09f};
constexpr float TANH[8] = {0.398748425f,    -0.0663520823f,  0.00981723894f,  -0.00109229241f,
                           8.72177779e-05f, -4.6418283e-06f, 1.45259174e-07f, -2.00104546e-09f};

template <int ACTIVATION>
INLINE float activated(float x) {
  return ACTIVATION == 1 ? gelu_by(ERF, x) : ACTIVATION == 2 ? gelu_by(TANH, x) : ACTIVATION == 3 ? (x < 0.f ? 0.f : x) : x;
}

template <class T, int ACTIVATION>
INLINE void activate_of(const T* x, size_t rows, size_t columns, const Quantised& to, const int64_t* copied, size_t copies) {
  const float zero = to.zero;
  const float* const multipliers = to.multipliers;
  for (size_t row = 0; row < rows; ++row) {
    const T* from = x + row * columns;
    uint8_t* __restrict out = to.out + row * (columns + copies);
    for (size_t c = 0; c < columns; ++c) out[c] = quantised(activated<ACTIVATION>(number(from[c])), multipliers[c], zero);
    for (size_t c = 0; c < copies; ++c) out[columns + c] = out[copied[c]];
  }
}

struct Activate {
  size_t rows, columns;
  int activation;
  Quantised to;
  const int64_t* copied;
  size_t copies;

  template <class T>
  INLINE void operator()(const T* x) const {
    switch (activation) {
      case 1: return activate_of<T, 1>(x, rows, columns, to, copied, copies);
      case 2: return activate_of<T, 2>(x, rows, columns, to, copied, copies);
      case 3: return activate_of<T, 3>(x, rows, columns, to, copied, copies);
      default: return activate_of<T, 0>(x, rows, columns, to, copied, copies);
    }
  }
};

struct AddNorm {
  const float* addend;
  size_t rows, columns;
  const float *weight, *bias;
  float eps;
  float* out;
  Quantised to;

  template <class T>
  INLINE void operator()(const T* x) const {
    // Of its own: a byte that is stored might be a part of what a reference leads to.
    const AddNorm own = *this;
    own.all(x);
  }

  template <class T>
  INLINE void all(const T* x) const {
    for (size_t row = 0; row < rows; ++row) {
      const T* from = x + row * columns;
      const float* plus = addend + row * columns;
      float* __restrict y = out + row * columns;
      float sum = 0;
      for (size_t c = 0; c < columns; ++c) {
        const float v = number(from[c]) + plus[c];
        y[c] = v;
        sum += v;
      }
      const float mean = sum / float(columns);
      float squares = 0;
      for (size_t c = 0; c < columns; ++c) squares += (y[c] - mean) * (y[c] - mean);
      const float factor = 1.f / std::sqrt(squares / float(columns) + eps);
      for (size_t c = 0; c < columns; ++c) y[c] = (y[c] - mean) * factor * weight[c] + bias[c];
      if (to.out) {
        uint8_t* __restrict q = to.out + row * columns;
        for (size_t c = 0; c < columns; ++c) q[c] = quantised(y[c], to.multipliers[c], to.zero);
      }
    }
  }
};

INLINE size_t padded(size_t n) { return (n + LANES - 1) / LANES * LANES; }

// out[r] [WIDTH · LANES] = sum over n of left[r][n] · right[n]: four rows, a few columns. A row of `right` has `step` numbers.
template <size_t WIDTH>
INLINE void product(const float* left, size_t left_step, const float* right, size_t step, size_t n, float* out, size_t out_step) {
  Vector sums[TOGETHER][WIDTH] = {};
  for (size_t k = 0; k < n; ++k) {
    for (size_t w = 0; w < WIDTH; ++w) {
      const Vector column = *reinterpret_cast<const Vector*>(right + k * step + w * LANES);
      for (size_t r = 0; r < TOGETHER; ++r) sums[r][w] += left[r * left_step + k] * column;
    }
  }
  for (size_t r = 0; r < TOGETHER; ++r)
    for (size_t w = 0; w < WIDTH; ++w) *reinterpret_cast<Vector*>(out + r * out_step + w * LANES) = sums[r][w];
}

// The same over `columns`, a multiple of LANES.
INLINE void products(const float* left, size_t left_step, const float* right, size_t columns, size_t n, float* out, size_t out_step) {
  size_t c = 0;
  for (; c + 2 * LANES <= columns; c += 2 * LANES) product<2>(left, left_step, right + c, columns, n, out + c, out_step);
  if (c < columns) product<1>(left, left_step, right + c, columns, n, out + c, out_step);
}

// Replaces `count` numbers by the exponentials of their distances from the highest, in a place of `room`, a multiple of LANES, and adds
// them up.
INLINE float exponentials(float* x, size_t count, size_t room) {
  for (size_t i = count; i < room; ++i) x[i] = LOWEST;
  float most[LANES], sums[LANES] = {};
  for (size_t lane = 0; lane < LANES; ++lane) most[lane] = LOWEST;
  for (size_t i = 0; i < room; i += LANES)
    for (size_t lane = 0; lane < LANES; ++lane) most[lane] = x[i + lane] > most[lane] ? x[i + lane] : most[lane];
  float highest = LOWEST, sum = 0;
  for (size_t lane = 0; lane < LANES; ++lane) highest = most[lane] > highest ? most[lane] : highest;
  for (size_t i = 0; i < room; i += LANES) {
    for (size_t lane = 0; lane < LANES; ++lane) {
      x[i + lane] = exponential(x[i + lane] - highest);
      sums[lane] += x[i + lane];
    }
  }
  for (size_t lane = 0; lane < LANES; ++lane) sum += sums[lane];
  return sum;
}

// One head of one row at a time: everything of it stays in the nearest cache for rows of usual lengths.
struct Attend {
  const Attention& a;
  Quantised to;

  template <class T>
  INLINE void operator()(const T* query) const {
    const T* key = static_cast<const T*>(a.key.data);
    const T* value = static_cast<const T*>(a.value.data);
    const size_t size = a.size, length = a.length, keys = padded(length), width = padded(size), hidden = a.heads * size;
    const float scale = 1.f / std::sqrt(float(size));
    static thread_local std::vector<float> room;
    // Keys, column after column; values; four queries, their weights and what they find.
    room.assign(size * keys + length * width + TOGETHER * (size + keys + width), 0.f);
    float* const k = room.data();
    float* const v = k + size * keys;
    float* const q = v + length * width;
    float* const weights = q + TOGETHER * size;
    float* const found = weights + TOGETHER * keys;
    for (size_t row = 0; row < a.rows; ++row) {
      for (size_t head = 0; head < a.heads; ++head) {
        for (size_t t = 0; t < length; ++t) {
          const size_t at = (row * length + t) * a.step + head * size;
          for (size_t d = 0; d < size; ++d) k[d * keys + t] = number(key[at + d]);
          for (size_t d = 0; d < size; ++d) v[t * width + d] = number(value[at + d]);
        }
        for (size_t first = 0; first < a.asking; first += TOGETHER) {
          const size_t count = a.asking - first < TOGETHER ? a.asking - first : TOGETHER;
          for (size_t r = 0; r < count; ++r) {
            const T* from = query + (row * a.asking + first + r) * a.query_step + head * size;
            for (size_t d = 0; d < size; ++d) q[r * size + d] = number(from[d]) * scale;
          }
          products(q, size, k, keys, size, weights, keys);
          float factors[TOGETHER];
          for (size_t r = 0; r < count; ++r) {
            factors[r] = 1.f / exponentials(weights + r * keys, length, keys);
          }
          products(weights, keys, v, width, length, found, width);
          for (size_t r = 0; r < count; ++r) {
            uint8_t* __restrict out = to.out + (row * a.asking + first + r) * hidden + head * size;
            const float* const multipliers = to.multipliers + head * size;
            const float factor = factors[r], zero = to.zero;
            for (size_t d = 0; d < size; ++d) out[d] = quantised(found[r * width + d] * factor, multipliers[d], zero);
          }
        }
      }
    }
  }
};

template <class Step>
INLINE void over(const Step& step, Numbers x) {
  if (x.bfloat16) {
    step(static_cast<const uint16_t*>(x.data));
  } else {
    step(static_cast<const float*>(x.data));
  }
}

#if defined(__x86_64__)
template <class Step>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"))) void over_512(const Step& step, Numbers x) {
  over(step, x);
}
template <class Step>
__attribute__((target("avx2,fma"))) void over_256(const Step& step, Numbers x) {
  over(step, x);
}
bool has_256() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
#endif

template <class Step>
void run(const Step& step, Numbers x) {
#if defined(__x86_64__)
  if (wide_vectors()) return over_512(step, x);
  if (has_256()) return over_256(step, x);
#endif
  over(step, x);
}

}  // namespace

bool wide_vectors() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  return has;
#else
  return false;
#endif
}

void activate_quantise(Numbers x, size_t rows, size_t columns, int activation, Quantised to, const int64_t* copied, size_t copies) {
  run(Activate{rows, columns, activation, to, copied, copies}, x);
}

void add_norm_quantise(Numbers x, const float* addend, size_t rows, size_t columns, const float* weight, const float* bias, float eps,
                       float* out, Quantised to) {
  run(AddNorm{addend, rows, columns, weight, bias, eps, out, to}, x);
}

void attend_quantise(const Attention& a, Quantised to) { run(Attend{a, to}, a.query); }

}  // namespace flywheel
