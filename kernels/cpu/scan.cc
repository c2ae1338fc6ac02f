// Along an axis of [outer, n, inner]: running sums, and positions of extremes.
//
//   cumsum         ptrs  x, y (same shape and dtype)
//   argmax argmin  ptrs  x, y [outer, inner] i64; n >= 1. The first nan wins, else the first
//   extreme. dims  0 outer  1 n  2 inner rows  outer; cols  inner
//
// A running sum is one ascending chain.
#include "simd.h"

namespace NIR_NS {
namespace {

constexpr int kChunk = 64;

template <class T>
int32_t cumsum(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1,
               int64_t c0, int64_t c1) {
  const int64_t n = d[1], inner = d[2];
  const T *x = at<const T>(ptrs, 0);
  T *y = at<T>(ptrs, 1);
  if (inner == 1 && c0 < c1) {
    // The chains of eight rows hide each other's latency.
    constexpr int64_t kRows = 8;
    for (int64_t r = r0; r < r1; r += kRows) {
      const int64_t rows = min64(kRows, r1 - r);
      T sum[kRows] = {};
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < rows; ++i) y[(r + i) * n + k] = sum[i] += x[(r + i) * n + k];
    }
    return finish(ctx, r0, r1, c0, c1);
  }
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int m = static_cast<int>(min64(kChunk, c1 - c));
      T sum[kChunk] = {};
      for (int64_t k = 0; k < n; ++k) {
        const int64_t row = (r * n + k) * inner + c;
        for (int i = 0; i < m; ++i) y[row + i] = sum[i] += x[row + i];
      }
    }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T, bool kMax>
NIR_INLINE bool beats(T v, T best) {
  return (kMax ? v > best : v < best) | ((v != v) & (best == best));
}

// One row, n >= 1. The extreme first, in lanes and without positions, then where it first occurs:
// both loops are plain vector code, and the second stops early.
template <class T, bool kMax>
int64_t arg_row(const T *x, int64_t n) {
  constexpr int L = 64;
  T value[L], best = x[0];
  int64_t k = 0;
  if (n >= L) {
    for (int i = 0; i < L; ++i) value[i] = x[i];
    for (k = L; k + L <= n; k += L)
      for (int i = 0; i < L; ++i)
        value[i] = beats<T, kMax>(x[k + i], value[i]) ? x[k + i] : value[i];
    for (int i = 0; i < L; ++i) best = beats<T, kMax>(value[i], best) ? value[i] : best;
  }
  for (; k < n; ++k) best = beats<T, kMax>(x[k], best) ? x[k] : best;
  const auto equals = [best](T v) { return (v == best) | ((v != v) & (best != best)); };
  for (k = 0; k + L <= n; k += L) {
    int found = 0;
    for (int i = 0; i < L; ++i) found |= equals(x[k + i]);
    if (found) break;
  }
  while (!equals(x[k])) ++k;
  return k;
}

template <class T, bool kMax>
int32_t arg(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
            int64_t c1) {
  const int64_t n = d[1], inner = d[2];
  int64_t *out = at<int64_t>(ptrs, 1);
  if (n < 1) return NIR_UNSUPPORTED;
  for (int64_t r = r0; r < r1; ++r) {
    const T *x = at<const T>(ptrs, 0) + r * n * inner;
    if (inner == 1) {
      if (c0 < c1) out[r] = arg_row<T, kMax>(x, n);
      continue;
    }
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int m = static_cast<int>(min64(kChunk, c1 - c));
      T value[kChunk];
      int64_t position[kChunk] = {};
      for (int i = 0; i < m; ++i) value[i] = x[c + i];
      for (int64_t k = 1; k < n; ++k)
        for (int i = 0; i < m; ++i) {
          const T v = x[k * inner + c + i];
          const bool wins = beats<T, kMax>(v, value[i]);
          value[i] = wins ? v : value[i];
          position[i] = wins ? k : position[i];
        }
      for (int i = 0; i < m; ++i) out[r * inner + c + i] = position[i];
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                                       \
  NIR_KERNEL(argmax_##dtype) { return NIR_NS::arg<T, true>(ctx, ptrs, dims, r0, r1, c0, c1); } \
  NIR_KERNEL(argmin_##dtype) { return NIR_NS::arg<T, false>(ctx, ptrs, dims, r0, r1, c0, c1); }
#define DEFINE_BOTH(dtype, T) \
  DEFINE(dtype, T)            \
  NIR_KERNEL(cumsum_##dtype) { return NIR_NS::cumsum<T>(ctx, ptrs, dims, r0, r1, c0, c1); }
DEFINE_BOTH(f32, float)
DEFINE_BOTH(f64, double)
DEFINE_BOTH(i32, int32_t)
DEFINE_BOTH(i64, int64_t)
DEFINE(u8, uint8_t)
