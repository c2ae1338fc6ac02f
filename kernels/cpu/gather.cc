// Reading and adding at indices along an axis. Arrays are seen as [outer, axis, inner], contiguous.
//
//   take               ptrs  x [outer, n, inner], indices [m], y [outer, m, inner]
//                      rows  outer * m; cols  inner
//   take_along         ptrs  x [outer, n, inner], indices [outer, m, inner], y [outer, m, inner]
//                      rows  outer * m; cols  inner
//   scatter_add        ptrs  x [outer, n, inner], indices [m], updates [outer, m, inner], y = x's
//   shape
//                      rows  outer * n; cols  inner
//   scatter_add_along  ptrs  x [outer, n, inner], indices [outer, m, inner], updates, y = x's shape
//                      rows  outer * n; cols  inner
//   put                as scatter_add, but updates take the places of what is there
//   dims  0 outer  1 n  2 m  3 inner
//
//   check_index        ptrs  indices, y (the same shape; may be the same memory); dims  0 n
//                      rows  their number. Outside [0, n) is NIR_INDEX_NOT_BELOW.
//
// Negative indices count from the end; others outside [0, n) are NIR_INDEX_OUT_OF_RANGE. In the
// scatters and in put y may be x itself; every part of the range reads all indices and takes those
// that fall into it, in order, so the result does not depend on the split.
#include "simd.h"

namespace NIR_NS {
namespace {

struct Sizes {
  int64_t outer, n, m, inner;
  explicit Sizes(const int64_t *d) : outer(d[0]), n(d[1]), m(d[2]), inner(d[3]) {}
};

NIR_INLINE bool resolve(nir_ctx *ctx, int64_t index, int64_t n, int64_t *out) {
  *out = index < 0 ? index + n : index;
  if (static_cast<uint64_t>(*out) < static_cast<uint64_t>(n)) return true;
  ctx->detail[0] = index;
  ctx->detail[1] = n;
  return false;
}

template <class T, class I>
int32_t take(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
             int64_t c0, int64_t c1) {
  const Sizes s(dims);
  const I *indices = at<const I>(ptrs, 1);
  for (int64_t r = r0; r < r1; ++r) {
    int64_t i;
    if (!resolve(ctx, indices[r % s.m], s.n, &i)) return NIR_INDEX_OUT_OF_RANGE;
    const T *src = at<const T>(ptrs, 0) + (r / s.m * s.n + i) * s.inner;
    T *dst = at<T>(ptrs, 2) + r * s.inner;
    if (c1 - c0 == 1) {
      dst[c0] = src[c0];
    } else {
      memcpy(dst + c0, src + c0, static_cast<size_t>(c1 - c0) * sizeof(T));
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T, class I>
int32_t take_along(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                   int64_t c0, int64_t c1) {
  const Sizes s(dims);
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t c = c0; c < c1; ++c) {
      int64_t i;
      if (!resolve(ctx, at<const I>(ptrs, 1)[r * s.inner + c], s.n, &i))
        return NIR_INDEX_OUT_OF_RANGE;
      at<T>(ptrs, 2)[r * s.inner + c] = at<const T>(ptrs, 0)[(r / s.m * s.n + i) * s.inner + c];
    }
  return finish(ctx, r0, r1, c0, c1);
}

enum Scatter { kAdd, kAddAlong, kPut };

template <class T, class I, Scatter kKind>
int32_t scatter(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                    int64_t c0, int64_t c1) {
  const Sizes s(dims);
  const T *x = at<const T>(ptrs, 0), *updates = at<const T>(ptrs, 2);
  const I *indices = at<const I>(ptrs, 1);
  T *y = at<T>(ptrs, 3);
  if (x != y)
    for (int64_t r = r0; r < r1; ++r)
      memcpy(y + r * s.inner + c0, x + r * s.inner + c0, static_cast<size_t>(c1 - c0) * sizeof(T));
  for (int64_t r = r0; r < r1;) {
    const int64_t outer = r / s.n, end = min64(r1, (outer + 1) * s.n);
    for (int64_t j = 0; j < s.m; ++j) {
      const T *update = updates + (outer * s.m + j) * s.inner;
      int64_t i;
      if constexpr (kKind == kAddAlong) {
        for (int64_t c = c0; c < c1; ++c) {
          if (!resolve(ctx, indices[(outer * s.m + j) * s.inner + c], s.n, &i))
            return NIR_INDEX_OUT_OF_RANGE;
          const int64_t row = outer * s.n + i;
          if (row >= r && row < end) y[row * s.inner + c] += update[c];
        }
      } else {
        if (!resolve(ctx, indices[j], s.n, &i)) return NIR_INDEX_OUT_OF_RANGE;
        const int64_t row = outer * s.n + i;
        if (row < r || row >= end) continue;
        T *to = y + row * s.inner;
        if constexpr (kKind == kPut) {
          memcpy(to + c0, update + c0, static_cast<size_t>(c1 - c0) * sizeof(T));
        } else {
          for (int64_t c = c0; c < c1; ++c) to[c] += update[c];
        }
      }
    }
    r = end;
  }
  // Without rows or columns to write, bad indices must still be found.
  if (s.n == 0 && s.m > 0 && s.outer > 0 && s.inner > 0) {
    ctx->detail[0] = indices[0];
    ctx->detail[1] = 0;
    return NIR_INDEX_OUT_OF_RANGE;
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class I>
int32_t check_index(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                    int64_t c0, int64_t c1) {
  const I *x = at<const I>(ptrs, 0);
  I *y = at<I>(ptrs, 1);
  for (int64_t r = r0; r < r1; ++r) {
    if (static_cast<uint64_t>(static_cast<int64_t>(x[r])) >= static_cast<uint64_t>(dims[0])) {
      ctx->detail[0] = x[r];
      ctx->detail[1] = dims[0];
      return NIR_INDEX_NOT_BELOW;
    }
    y[r] = x[r];
  }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(op, fn, suffix, ...) \
  NIR_KERNEL(op##_##suffix) { return NIR_NS::fn<__VA_ARGS__>(ctx, ptrs, dims, r0, r1, c0, c1); }
#define MOVE(bits, T)                                       \
  DEFINE(take, take, b##bits##_i32, T, int32_t)             \
  DEFINE(take, take, b##bits##_i64, T, int64_t)             \
  DEFINE(take_along, take_along, b##bits##_i32, T, int32_t) \
  DEFINE(take_along, take_along, b##bits##_i64, T, int64_t) \
  DEFINE(put, scatter, b##bits##_i32, T, int32_t, NIR_NS::kPut)     \
  DEFINE(put, scatter, b##bits##_i64, T, int64_t, NIR_NS::kPut)
MOVE(8, uint8_t)
MOVE(16, uint16_t)
MOVE(32, uint32_t)
MOVE(64, uint64_t)
#define ADD(dtype, T)                                                    \
  DEFINE(scatter_add, scatter, dtype##_i32, T, int32_t, NIR_NS::kAdd)            \
  DEFINE(scatter_add, scatter, dtype##_i64, T, int64_t, NIR_NS::kAdd)            \
  DEFINE(scatter_add_along, scatter, dtype##_i32, T, int32_t, NIR_NS::kAddAlong) \
  DEFINE(scatter_add_along, scatter, dtype##_i64, T, int64_t, NIR_NS::kAddAlong)
DEFINE(check_index, check_index, i32, int32_t)
DEFINE(check_index, check_index, i64, int64_t)
ADD(f32, float)
ADD(f64, double)
ADD(i32, int32_t)
ADD(i64, int64_t)
