// Turning runs along rows into runs along columns, a square of vectors at a time in registers.
#ifndef NIR_TRANSPOSE_H
#define NIR_TRANSPOSE_H

#include <stddef.h>

#include <utility>

#include "simd.h"

namespace NIR_NS {

// The lower or upper halves of a and b, element by element in turn.
template <bool kUpper, class T, size_t... I>
NIR_INLINE Vec<T> riffle(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  constexpr int W = kLanes<T>, from = kUpper ? W / 2 : 0;
  return __builtin_shufflevector(a, b, (from + static_cast<int>(I / 2) + (I % 2 ? W : 0))...);
}

// v[i][j] becomes v[j][i]. Riffling vector i with vector i + W/2 moves the top bit of the row's
// number to the bottom of the column's; after log2(W) rounds the two have changed places.
template <class T>
NIR_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int W = kLanes<T>;
  using Lanes = std::make_index_sequence<W>;
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    Vec<T> out[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      out[2 * i] = riffle<false, T>(v[i], v[i + W / 2], Lanes{});
      out[2 * i + 1] = riffle<true, T>(v[i], v[i + W / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = out[i];
  }
}

// dst[k * step + i] = src[i * stride + k] for i < rows <= lanes, k < steps; zero for other i of the
// vector. `step` is at least the number of lanes. The rows behind these are fetched: runs are too
// short for the hardware to see them coming.
template <class T>
NIR_INLINE void transpose_run(T *dst, int64_t step, const T *src, int64_t stride, int rows,
                              int64_t steps) {
  constexpr int W = kLanes<T>;
  const int64_t behind = W * stride;
  for (int64_t k = 0; k < steps; k += W, dst += W * step) {
    const int n = static_cast<int>(min64(W, steps - k));
    Vec<T> v[W];
    if (rows == W && n == W) {
      const T *row = src + k;
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i, row += stride) {
        // One address that moves on: the compiler would keep 32 of them, most in memory.
        asm("" : "+r"(row));
        v[i] = load(row);
        __builtin_prefetch(row + behind, 0, 2);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = i < rows ? load_first(src + i * stride + k, n) : Vec<T>{};
    }
    transpose<T>(v);
    if (n == W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(dst + i * step, v[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < n) store(dst + i * step, v[i]);
    }
  }
}

}  // namespace NIR_NS

#endif  // NIR_TRANSPOSE_H
