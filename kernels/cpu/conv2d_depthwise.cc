// Depthwise convolution (groups = C = O): each channel has its own taps, so channels fill the
// vectors.
//
//   conv2d_depthwise              ptrs  x, w, y    rows  N * OH * OW; cols  C
//   conv2d_depthwise_input_grad   ptrs  dy, w, dx                 rows  N * H * W;   cols  C
//   conv2d_depthwise_weight_grad  ptrs  x, dy, dw                 rows  KH * KW;     cols  C
//   dims  conv.h, then  16 weight's kernel position stride  17 weight's channel stride
//   scratch  conv2d and conv2d_weight_grad in nir/targets/cpu_contractions.py
//
// w and dw are logically [KH, KW, 1, C]; the strides let them lie as HWIO or as OIHW. A sum over
// taps is one ascending chain; the sum over pixels goes in blocks of 256.
#include "conv.h"

namespace NIR_NS {
namespace {

constexpr int kPixels = 8;  // chains side by side, so that the latency of none is waited for
constexpr int kWide = 2;    // vectors of channels side by side in the weight gradient
constexpr int64_t kFinished = 4096;  // elements after which an epilogue finds them in L1

// The taps of one axis that one residue class of destinations reads: which, and from where.
struct Taps {
  GatherAxis axis;
  int64_t count = 0, lo, hi;  // positions [lo, hi) of the class read inside through every tap
  int64_t *tap, *base;

  Taps(const GatherAxis &a, int64_t taps, Scratch &s) : axis(a), lo(0), hi(a.count) {
    tap = s.take<int64_t>(taps), base = s.take<int64_t>(taps);
    for (int64_t k = 0; k < taps; ++k)
      if (int64_t b; a.base(k, &b)) {
        lo = max64(lo, b >= 0 ? 0 : ceil_div(-b, a.source_step));
        hi = min64(hi, b < a.source ? (a.source - 1 - b) / a.source_step + 1 : 0);
        tap[count] = k, base[count++] = b;
      }
  }
  bool inside(int64_t u, int64_t i) const {
    const int64_t s = u * axis.source_step + base[i];
    return s >= 0 && s < axis.source;
  }
};

// Kernel rows that one line of destinations reads.
template <class T>
struct Rows {
  int64_t count = 0;
  const T **source, **weights;
};

// Positions [u, u + n) of a class, channels c to c + m: for each the chain over all its taps. Where
// `checked`, taps outside the source are left out.
template <class T, int n, bool checked>
NIR_INLINE void positions(const Rows<T> &rows, const Taps &w, int64_t C, int64_t tap_stride,
                          int64_t u, int64_t c, int m, T *dst, int64_t dst_step) {
  Vec<T> acc[n];
#pragma GCC unroll 8
  for (int p = 0; p < n; ++p) acc[p] = Vec<T>{};
  const int64_t step = w.axis.source_step * C;
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t j = 0; j < w.count; ++j) {
      if (checked && !w.inside(u, j)) continue;
      const Vec<T> k = load_some(rows.weights[i] + w.tap[j] * tap_stride + c, m);
      const T *s = rows.source[i] + u * step + w.base[j] * C + c;
#pragma GCC unroll 8
      for (int p = 0; p < n; ++p) acc[p] = fma<T>(load_some(s + p * step, m), k, acc[p]);
    }
#pragma GCC unroll 8
  for (int p = 0; p < n; ++p) store_some(dst + p * dst_step, acc[p], m);
}

// `n` positions from u on through three neighbouring taps, a vector of channels from c on. What
// several positions read is loaded once, so that the products decide and not the loads; the first
// position's first tap is outside the source if kLeft, the last one's last tap if kRight.
template <class T, int kStep, int n, bool kLeft, bool kRight>
void three_taps(const Rows<T> &rows, const Taps &w, int64_t C, int64_t tap_stride, int64_t u,
                int64_t c, T *dst, int64_t dst_step) {
  Vec<T> acc[n];
#pragma GCC unroll 8
  for (int p = 0; p < n; ++p) acc[p] = Vec<T>{};
  for (int64_t i = 0; i < rows.count; ++i) {
    const T *k = rows.weights[i] + w.tap[0] * tap_stride + c;
    const Vec<T> k0 = load(k), k1 = load(k + tap_stride), k2 = load(k + 2 * tap_stride);
    const T *s = rows.source[i] + (u * kStep + w.base[0]) * C + c;
    Vec<T> next = kLeft ? Vec<T>{} : load(s);
#pragma GCC unroll 8
    for (int p = 0; p < n; ++p) {
      const bool left = kLeft && p == 0, right = kRight && p == n - 1;
      const Vec<T> x1 = load(s + (p * kStep + 1) * C);
      if (!left) acc[p] = fma<T>(kStep == 1 && p > 0 ? load(s + p * C) : next, k0, acc[p]);
      acc[p] = fma<T>(x1, k1, acc[p]);
      if (!right) {
        const Vec<T> x2 = load(s + (p * kStep + 2) * C);
        acc[p] = fma<T>(x2, k2, acc[p]);
        next = x2;
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < n; ++p) store(dst + p * dst_step, acc[p]);
}

template <class T>
struct ThreeTaps {
  using Fn = void (*)(const Rows<T> &, const Taps &, int64_t, int64_t, int64_t, int64_t, T *,
                      int64_t);
  Fn fn[2][kPixels + 1][2][2];  // by step, positions, kLeft, kRight
  constexpr ThreeTaps() : fn{} { fill<kPixels>(); }
  template <int n>
  constexpr void fill() {
    fn[0][n][0][0] = three_taps<T, 1, n, false, false>;
    fn[0][n][0][1] = three_taps<T, 1, n, false, true>;
    fn[0][n][1][0] = three_taps<T, 1, n, true, false>;
    fn[0][n][1][1] = three_taps<T, 1, n, true, true>;
    fn[1][n][0][0] = three_taps<T, 2, n, false, false>;
    fn[1][n][0][1] = three_taps<T, 2, n, false, true>;
    fn[1][n][1][0] = three_taps<T, 2, n, true, false>;
    fn[1][n][1][1] = three_taps<T, 2, n, true, true>;
    if constexpr (n > 1) fill<n - 1>();
  }
};

// Whether a line is `three_taps` from end to end: at most one position on each side has a tap
// outside, and that is its outermost.
inline bool has_three_taps(const Taps &w) {
  const int64_t step = w.axis.source_step, last = w.axis.count - 1;
  if (w.count != 3 || w.axis.step != 1 || step > 2 || last < 0) return false;
  const bool neighbours = w.tap[2] == w.tap[0] + 2 && w.base[1] == w.base[0] + 1 &&
                          w.base[2] == w.base[0] + 2;
  const bool first = w.inside(0, 1) && (last == 0 || w.inside(0, 2)),
             second = w.inside(last, 1) && (last == 0 || w.inside(last, 0));
  return neighbours && first && second && w.lo <= 1 && w.hi >= last;
}

// Positions [u0, u1) of a class in one line.
template <class T>
void line_class(const Rows<T> &rows, const Taps &w, int64_t C, int64_t tap_stride, int64_t u0,
                int64_t u1, int64_t n, T *line) {
  constexpr int W = kLanes<T>;
  const int64_t step = w.axis.step * C;
  line += w.axis.first * C;
  const int64_t lo = min64(max64(u0, w.lo), u1), hi = max64(lo, min64(u1, w.hi));
  static constexpr ThreeTaps<T> table{};
  const bool three = has_three_taps(w);
  const int64_t parts = ceil_div(u1 - u0, kPixels);
  for (int64_t c = 0; c < n; c += W) {
    const int m = static_cast<int>(min64(W, n - c));
    if (three && m == W) {
      for (int64_t i = 0; i < parts; ++i) {
        int64_t first;
        int count;
        tile_rows(u1 - u0, parts, i, &first, &count);
        const int64_t u = u0 + first;
        table.fn[w.axis.source_step - 1][count][u < w.lo][u + count > w.hi](
            rows, w, C, tap_stride, u, c, line + u * step + c, step);
      }
      continue;
    }
    int64_t u = u0;
    for (; u < lo; ++u)
      positions<T, 1, true>(rows, w, C, tap_stride, u, c, m, line + u * step + c, step);
    if (m == W)
      for (; u + kPixels <= hi; u += kPixels)
        positions<T, kPixels, false>(rows, w, C, tap_stride, u, c, W, line + u * step + c, step);
    for (; u + 2 <= hi; u += 2)
      positions<T, 2, false>(rows, w, C, tap_stride, u, c, m, line + u * step + c, step);
    for (; u < u1; ++u)
      positions<T, 1, true>(rows, w, C, tap_stride, u, c, m, line + u * step + c, step);
  }
}

template <class T, bool kForward>
int32_t depthwise(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                  int64_t c0, int64_t c1) {
  const ConvDims d(dims);
  Scratch scratch{static_cast<char *>(ctx->scratch)};
  Rows<T> rows{0, scratch.take<const T *>(d.KH), scratch.take<const T *>(d.KH)};
  const int64_t dest_h = kForward ? d.OH : d.H, dest_w = kForward ? d.OW : d.W;
  const int64_t source_h = kForward ? d.H : d.OH, source_w = kForward ? d.W : d.OW;
  int64_t tap_stride = dims[16];
  const T *weights = at<const T>(ptrs, 1) + c0 * dims[17];
  if (dims[17] != 1) {
    // Channels side by side, once, rather than a gather for each pixel.
    T *turned = scratch.take<T>(d.KH * d.KW * (c1 - c0));
    for (int64_t tap = 0; tap < d.KH * d.KW; ++tap)
      for (int64_t c = 0; c < c1 - c0; ++c)
        turned[tap * (c1 - c0) + c] = weights[tap * tap_stride + c * dims[17]];
    weights = turned;
    tap_stride = c1 - c0;
  }
  const int64_t classes_h = kForward ? 1 : d.stride_h, classes_w = kForward ? 1 : d.stride_w;
  // Class by class, so that what a class reads is found once; a stretch of rows at a time, so that
  // the classes of a line find it in cache.
  const bool whole = classes_h * classes_w == 1;  // all of a line at once
  const int64_t stretch = whole ? r1 - r0 : 8 * classes_h * dest_w;
  for (int64_t begin = r0; begin < r1; begin += stretch) {
    const int64_t end = min64(r1, begin + stretch);
    int64_t done = begin;
    for (int64_t a = 0; a < classes_h; ++a) {
      Scratch of_class = scratch;
      const Taps h(kForward ? forward_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h)
                            : input_grad_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h, a),
                   d.KH, of_class);
      for (int64_t b = 0; b < classes_w; ++b) {
        Scratch of_column = of_class;
        const Taps w(kForward ? forward_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w)
                              : input_grad_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w, b),
                     d.KW, of_column);
        for (int64_t r = begin, next; r < end; r = next) {
          const int64_t line = r / dest_w, x0 = r - line * dest_w;
          next = min64(end, (line + 1) * dest_w);
          const int64_t image = line / dest_h, y = line - image * dest_h;
          if (y % classes_h != a) continue;
          const int64_t u_h = y / classes_h;
          rows.count = 0;
          for (int64_t i = 0; i < h.count; ++i)
            if (h.inside(u_h, i)) {
              const int64_t s = u_h * h.axis.source_step + h.base[i];
              rows.source[rows.count] =
                  at<const T>(ptrs, 0) + (image * source_h + s) * source_w * d.C + c0;
              rows.weights[rows.count++] = weights + h.tap[i] * d.KW * tap_stride;
            }
          const int64_t u0 = ceil_div(max64(0, x0 - b), classes_w);
          const int64_t u1 = ceil_div(max64(0, x0 + (next - r) - b), classes_w);
          line_class<T>(rows, w, d.C, tap_stride, u0, u1, c1 - c0,
                        at<T>(ptrs, 2) + line * dest_w * d.C + c0);
          if (whole && (next - done) * (c1 - c0) >= kFinished) {
            if (int32_t status = finish(ctx, done, next, c0, c1)) return status;
            done = next;
          }
        }
      }
    }
    if (done == end) continue;
    if (int32_t status = finish(ctx, done, end, c0, c1)) return status;
  }
  return NIR_OK;
}

// ---- weight gradient -----------------------------------------------------------------------------

// acc[j][v] += x[.., at tap kw + j] * dy over pixels [k0, k1) of the output, for `n` neighbouring
// taps of kernel row kh and kWide vectors of channels from c on, at most m channels.
template <class T, int n>
NIR_INLINE void pixels_of_taps(const ConvDims &d, const T *x, const T *dy, int64_t k0, int64_t k1,
                               int64_t kh, int64_t kw, int64_t c, int m, Vec<T> *sums) {
  constexpr int W = kLanes<T>;
  const int m1 = static_cast<int>(max64(0, m - W)), m0 = m < W ? m : W;
  Vec<T> acc[n][kWide];
#pragma GCC unroll 4
  for (int j = 0; j < n; ++j) acc[j][0] = acc[j][1] = Vec<T>{};
  const int64_t first = kw * d.dil_w - d.pad_w, last = (kw + n - 1) * d.dil_w - d.pad_w;
  const int64_t lo = first >= 0 ? 0 : ceil_div(-first, d.stride_w);
  const int64_t hi = last < d.W ? (d.W - 1 - last) / d.stride_w + 1 : 0;
  for (int64_t k = k0, next; k < k1; k = next) {
    const int64_t line = k / d.OW, o0 = k - line * d.OW, image = line / d.OH;
    next = min64(k1, (line + 1) * d.OW);
    const int64_t h = (line - image * d.OH) * d.stride_h + kh * d.dil_h - d.pad_h;
    if (h < 0 || h >= d.H) continue;
    const T *row = x + ((image * d.H + h) * d.W + first) * d.C + c;
    const T *out = dy + line * d.OW * d.C + c;
    const int64_t o1 = o0 + (next - k);
    const auto pixel = [&](int64_t o, bool checked) __attribute__((always_inline)) {
      const T *b = out + o * d.C, *a = row + o * d.stride_w * d.C;
      const Vec<T> g0 = load_some(b, m0), g1 = m1 ? load_some(b + W, m1) : Vec<T>{};
#pragma GCC unroll 4
      for (int j = 0; j < n; ++j) {
        const int64_t w = o * d.stride_w + first + j * d.dil_w;
        if (checked && (w < 0 || w >= d.W)) continue;
        const T *at = a + j * d.dil_w * d.C;
        acc[j][0] = fma<T>(load_some(at, m0), g0, acc[j][0]);
        if (m1) acc[j][1] = fma<T>(load_some(at + W, m1), g1, acc[j][1]);
      }
    };
    int64_t o = o0;
    const int64_t inner = max64(o0, min64(o1, lo)), end = max64(inner, min64(o1, hi));
    for (; o < inner; ++o) pixel(o, true);
    if (m == kWide * W) {
      for (; o < end; ++o) {
        const T *b = out + o * d.C, *a = row + o * d.stride_w * d.C;
        const Vec<T> g0 = load(b), g1 = load(b + W);
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) {
          acc[j][0] = fma<T>(load(a + j * d.dil_w * d.C), g0, acc[j][0]);
          acc[j][1] = fma<T>(load(a + j * d.dil_w * d.C + W), g1, acc[j][1]);
        }
      }
    } else {
      for (; o < end; ++o) pixel(o, false);
    }
    for (; o < o1; ++o) pixel(o, true);
  }
#pragma GCC unroll 4
  for (int j = 0; j < n; ++j)
    for (int v = 0; v < kWide; ++v)
      store(reinterpret_cast<T *>(sums + j * kWide + v),
            load(reinterpret_cast<T *>(sums + j * kWide + v)) + acc[j][v]);
}

template <class T>
int32_t weight_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                    int64_t c0, int64_t c1) {
  const ConvDims d(dims);
  constexpr int W = kLanes<T>;
  const T *x = at<const T>(ptrs, 0), *dy = at<const T>(ptrs, 1);
  const int64_t count = d.N * d.OH * d.OW;
  Vec<T> *sums = static_cast<Vec<T> *>(ctx->scratch);
  for (int64_t c = c0; c < c1; c += kWide * W) {
    const int m = static_cast<int>(min64(kWide * W, c1 - c));
    memset(sums, 0, static_cast<size_t>((r1 - r0) * kWide) * sizeof(Vec<T>));
    // A block of pixels is read for every tap while it is in cache; taps of one kernel row share
    // what is read of dy.
    for (int64_t k0 = 0; k0 < count; k0 += kBlockK)
      for (int64_t r = r0; r < r1;) {
        const int64_t kh = r / d.KW, kw = r % d.KW, k1 = min64(count, k0 + kBlockK);
        Vec<T> *sum = sums + (r - r0) * kWide;
        if (kw + 3 <= d.KW && r + 3 <= r1) {
          pixels_of_taps<T, 3>(d, x, dy, k0, k1, kh, kw, c, m, sum);
          r += 3;
        } else {
          pixels_of_taps<T, 1>(d, x, dy, k0, k1, kh, kw, c, m, sum);
          ++r;
        }
      }
    for (int64_t r = r0; r < r1; ++r) {
      T *out = at<T>(ptrs, 2) + r * dims[16] + c * dims[17];
      const T *sum = reinterpret_cast<const T *>(sums + (r - r0) * kWide);
      for (int i = 0; i < m; ++i) out[i * dims[17]] = sum[i];
    }
  }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                 \
  NIR_KERNEL(conv2d_depthwise_##dtype) {                                 \
    return NIR_NS::depthwise<T, true>(ctx, ptrs, dims, r0, r1, c0, c1);  \
  }                                                                      \
  NIR_KERNEL(conv2d_depthwise_input_grad_##dtype) {                      \
    return NIR_NS::depthwise<T, false>(ctx, ptrs, dims, r0, r1, c0, c1); \
  }                                                                      \
  NIR_KERNEL(conv2d_depthwise_weight_grad_##dtype) {                     \
    return NIR_NS::weight_grad<T>(ctx, ptrs, dims, r0, r1, c0, c1);      \
  }
DEFINE(f32, float)
DEFINE(f64, double)
