// Pooling over NHWC images; channels fill the vectors.
//
//   max_pool2d         ptrs  x, y          rows  N * OH * OW; cols  C
//   max_pool2d_select  ptrs  x, v, y       rows  N * OH * OW; cols  C   y = v at x's first maximum
//   max_pool2d_grad    ptrs  x, dy, dx     rows  N; cols  C             no epilogue
//   avg_pool2d         ptrs  x, y          rows  N * OH * OW; cols  C
//   avg_pool2d_grad    ptrs  dy, dx        rows  N * H * W; cols  C
//   dims  0 N  1 H  2 W  3 C  4 OH  5 OW  6 KH  7 KW  8 stride_h  9 stride_w  10 pad_top  11
//   pad_left
//         12 count_include_pad (average only)
//
// Padding never wins a maximum; a window of nothing but padding gives the lowest value, and selects
// 0. The first nan of a window wins, else the first of its largest.
#include "conv.h"

namespace NIR_NS {
namespace {

constexpr int kChunk = 64;  // channels at a time: best values and positions stay in registers or L1

struct Pool {
  int64_t N, H, W, C, OH, OW, KH, KW, stride_h, stride_w, pad_h, pad_w;
  bool include_pad;
  explicit Pool(const int64_t *d)
      : N(d[0]),
        H(d[1]),
        W(d[2]),
        C(d[3]),
        OH(d[4]),
        OW(d[5]),
        KH(d[6]),
        KW(d[7]),
        stride_h(d[8]),
        stride_w(d[9]),
        pad_h(d[10]),
        pad_w(d[11]),
        include_pad(d[12] != 0) {}
};

// The part of a window inside the image.
struct Window {
  int64_t y0, y1, x0, x1;
  Window(const Pool &p, int64_t oh, int64_t ow) {
    const int64_t y = oh * p.stride_h - p.pad_h, x = ow * p.stride_w - p.pad_w;
    y0 = max64(y, 0), y1 = min64(y + p.KH, p.H), x0 = max64(x, 0), x1 = min64(x + p.KW, p.W);
  }
};

template <class T>
struct Traits {
  using Index = int32_t;
};
template <>
struct Traits<double> {
  using Index = int64_t;
};
template <>
struct Traits<int64_t> {
  using Index = int64_t;
};

template <class T>
NIR_INLINE T lowest() {
  if constexpr (kFloat<T>) return -static_cast<T>(__builtin_inf());
  return static_cast<T>(static_cast<uint64_t>(1) << (sizeof(T) * 8 - 1));
}

// best, and the position y * W + x of the first maximum (or -1), for n <= kChunk channels.
template <class T, class Index>
NIR_INLINE void find_max(const Pool &p, const Window &w, const T *image, int n, T *best,
                         Index *position) {
  for (int i = 0; i < n; ++i) best[i] = lowest<T>(), position[i] = -1;
  for (int64_t y = w.y0; y < w.y1; ++y)
    for (int64_t x = w.x0; x < w.x1; ++x) {
      const T *s = image + (y * p.W + x) * p.C;
      const Index here = static_cast<Index>(y * p.W + x);
      for (int i = 0; i < n; ++i) {
        const T v = s[i];
        const bool wins = (v > best[i]) | ((v != v) & (best[i] == best[i])) | (position[i] < 0);
        best[i] = wins ? v : best[i];
        position[i] = wins ? here : position[i];
      }
    }
}

template <class T>
int32_t max_pool(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                 int64_t c0, int64_t c1) {
  const Pool p(dims);
  for (int64_t r = r0; r < r1; ++r) {
    const Window w(p, r / p.OW % p.OH, r % p.OW);
    const T *image = at<const T>(ptrs, 0) + r / p.OW / p.OH * p.H * p.W * p.C;
    T *out = at<T>(ptrs, 1) + r * p.C;
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int n = static_cast<int>(min64(kChunk, c1 - c));
      T best[kChunk];
      for (int i = 0; i < n; ++i) best[i] = lowest<T>();
      for (int64_t y = w.y0; y < w.y1; ++y)
        for (int64_t x = w.x0; x < w.x1; ++x) {
          const T *s = image + (y * p.W + x) * p.C + c;
          for (int i = 0; i < n; ++i) best[i] = (s[i] > best[i]) | (s[i] != s[i]) ? s[i] : best[i];
        }
      copy_run(out + c, best, n);
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T>
int32_t max_pool_select(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0,
                        int64_t r1, int64_t c0, int64_t c1) {
  const Pool p(dims);
  for (int64_t r = r0; r < r1; ++r) {
    const Window w(p, r / p.OW % p.OH, r % p.OW);
    const int64_t image = r / p.OW / p.OH * p.H * p.W * p.C;
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int n = static_cast<int>(min64(kChunk, c1 - c));
      T best[kChunk];
      typename Traits<T>::Index position[kChunk];
      find_max(p, w, at<const T>(ptrs, 0) + image + c, n, best, position);
      const T *v = at<const T>(ptrs, 1) + image + c;
      for (int i = 0; i < n; ++i)
        at<T>(ptrs, 2)[r * p.C + c + i] = position[i] < 0 ? T(0) : v[position[i] * p.C + i];
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

// Image by image, windows in order: each window adds its dy to its own maximum, so overlapping
// windows meet in one fixed order.
template <class T>
int32_t max_pool_grad(nir_ctx *, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                      int64_t c0, int64_t c1) {
  const Pool p(dims);
  for (int64_t image = r0; image < r1; ++image) {
    const T *x = at<const T>(ptrs, 0) + image * p.H * p.W * p.C;
    T *dx = at<T>(ptrs, 2) + image * p.H * p.W * p.C;
    for (int64_t i = 0; i < p.H * p.W; ++i) zero_run(dx + i * p.C + c0, c1 - c0);
    for (int64_t o = 0; o < p.OH * p.OW; ++o) {
      const Window w(p, o / p.OW, o % p.OW);
      for (int64_t c = c0; c < c1; c += kChunk) {
        const int n = static_cast<int>(min64(kChunk, c1 - c));
        T best[kChunk];
        typename Traits<T>::Index position[kChunk];
        find_max(p, w, x + c, n, best, position);
        const T *dy = at<const T>(ptrs, 1) + (image * p.OH * p.OW + o) * p.C + c;
        for (int i = 0; i < n; ++i)
          if (position[i] >= 0) dx[position[i] * p.C + c + i] += dy[i];
      }
    }
  }
  return NIR_OK;
}

NIR_INLINE int64_t window_count(const Pool &p, const Window &w) {
  return p.include_pad ? p.KH * p.KW : (w.y1 - w.y0) * (w.x1 - w.x0);
}

template <class T>
int32_t avg_pool(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                 int64_t c0, int64_t c1) {
  const Pool p(dims);
  for (int64_t r = r0; r < r1; ++r) {
    const Window w(p, r / p.OW % p.OH, r % p.OW);
    const T *image = at<const T>(ptrs, 0) + r / p.OW / p.OH * p.H * p.W * p.C;
    const T count = static_cast<T>(window_count(p, w));
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int n = static_cast<int>(min64(kChunk, c1 - c));
      T sum[kChunk];
      for (int i = 0; i < n; ++i) sum[i] = 0;
      for (int64_t y = w.y0; y < w.y1; ++y)
        for (int64_t x = w.x0; x < w.x1; ++x) {
          const T *s = image + (y * p.W + x) * p.C + c;
          for (int i = 0; i < n; ++i) sum[i] += s[i];
        }
      for (int i = 0; i < n; ++i) at<T>(ptrs, 1)[r * p.C + c + i] = sum[i] / count;
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T>
int32_t avg_pool_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                      int64_t c0, int64_t c1) {
  const Pool p(dims);
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t x = r % p.W + p.pad_w, y = r / p.W % p.H + p.pad_h, image = r / p.W / p.H;
    // The windows that hold this pixel: stride * o <= y < stride * o + K.
    const int64_t oh0 = y < p.KH ? 0 : (y - p.KH) / p.stride_h + 1,
                  oh1 = min64(p.OH, y / p.stride_h + 1);
    const int64_t ow0 = x < p.KW ? 0 : (x - p.KW) / p.stride_w + 1,
                  ow1 = min64(p.OW, x / p.stride_w + 1);
    for (int64_t c = c0; c < c1; c += kChunk) {
      const int n = static_cast<int>(min64(kChunk, c1 - c));
      T sum[kChunk];
      for (int i = 0; i < n; ++i) sum[i] = 0;
      for (int64_t oh = oh0; oh < oh1; ++oh)
        for (int64_t ow = ow0; ow < ow1; ++ow) {
          const T count = static_cast<T>(window_count(p, Window(p, oh, ow)));
          const T *dy = at<const T>(ptrs, 0) + ((image * p.OH + oh) * p.OW + ow) * p.C + c;
          for (int i = 0; i < n; ++i) sum[i] += dy[i] / count;
        }
      copy_run(at<T>(ptrs, 1) + r * p.C + c, sum, n);
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(op, fn, dtype, T) \
  NIR_KERNEL(op##_##dtype) { return NIR_NS::fn<T>(ctx, ptrs, dims, r0, r1, c0, c1); }
#define MAX(dtype, T)                                  \
  DEFINE(max_pool2d, max_pool, dtype, T)               \
  DEFINE(max_pool2d_select, max_pool_select, dtype, T) \
  DEFINE(max_pool2d_grad, max_pool_grad, dtype, T)
#define AVERAGE(dtype, T)                \
  DEFINE(avg_pool2d, avg_pool, dtype, T) \
  DEFINE(avg_pool2d_grad, avg_pool_grad, dtype, T)
MAX(f32, float)
MAX(f64, double)
MAX(i32, int32_t)
MAX(i64, int64_t)
AVERAGE(f32, float)
AVERAGE(f64, double)
