// Depthwise convolution (groups = C = O): each channel has its own taps, so channels fill the
// vectors.
//
//   conv2d_depthwise              ptrs  x, w, y    rows  N * OH * OW; cols  C
//   conv2d_depthwise_input_grad   ptrs  dy, w, dx                 rows  N * H * W;   cols  C
//   conv2d_depthwise_weight_grad  ptrs  x, dy, dw                 rows  KH * KW;     cols  C
//   dims  conv.h, then  16 weight's kernel position stride  17 weight's channel stride
//   scratch  KH * KW * C elements where the channel stride is not 1 (forward and input gradient)
//
// w and dw are logically [KH, KW, 1, C]; the strides let them lie as HWIO or as OIHW. A sum over
// taps is one ascending chain; the sum over pixels goes in blocks of 256.
#include "conv.h"

namespace NIR_NS {
namespace {

// dst[0:n] = sum over taps of source[tap] * w[tap], for the taps that lie inside the source.
template <class T>
NIR_INLINE void pixel(const ConvDims &d, const GatherAxis &h, const GatherAxis &w, int64_t u_h,
                      int64_t u_w, const T *source, const T *weights, int64_t tap_stride, T *dst,
                      int64_t n) {
  constexpr int W = kLanes<T>;
  for (int64_t c = 0; c < n; c += W) {
    const int m = static_cast<int>(min64(W, n - c));
    Vec<T> acc{};
    for (int64_t kh = 0; kh < d.KH; ++kh) {
      int64_t y;
      if (!h.base(kh, &y)) continue;
      y += u_h * h.source_step;
      if (y < 0 || y >= h.source) continue;
      for (int64_t kw = 0; kw < d.KW; ++kw) {
        int64_t x;
        if (!w.base(kw, &x)) continue;
        x += u_w * w.source_step;
        if (x < 0 || x >= w.source) continue;
        const T *s = source + (y * w.source + x) * d.C + c,
                *k = weights + (kh * d.KW + kw) * tap_stride + c;
        acc = m == W ? fma<T>(load(s), load(k), acc)
                     : fma<T>(load_first(s, m), load_first(k, m), acc);
      }
    }
    store_first(dst + c, acc, m);
  }
}

template <class T, bool kForward>
int32_t depthwise(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                  int64_t c0, int64_t c1) {
  const ConvDims d(dims);
  const int64_t dest_h = kForward ? d.OH : d.H, dest_w = kForward ? d.OW : d.W;
  const int64_t source = kForward ? d.H * d.W : d.OH * d.OW;
  int64_t tap_stride = dims[16];
  const T *weights = at<const T>(ptrs, 1) + c0 * dims[17];
  if (dims[17] != 1) {
    // Channels side by side, once, rather than a gather for each pixel.
    T *turned = static_cast<T *>(ctx->scratch);
    for (int64_t tap = 0; tap < d.KH * d.KW; ++tap)
      for (int64_t c = 0; c < c1 - c0; ++c)
        turned[tap * (c1 - c0) + c] = weights[tap * tap_stride + c * dims[17]];
    weights = turned;
    tap_stride = c1 - c0;
  }
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t x = r % dest_w, y = r / dest_w % dest_h, image = r / dest_w / dest_h;
    const GatherAxis h =
        kForward ? forward_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h)
                 : input_grad_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h, y % d.stride_h);
    const GatherAxis w =
        kForward ? forward_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w)
                 : input_grad_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w, x % d.stride_w);
    pixel<T>(d, h, w, y / h.step, x / w.step, at<const T>(ptrs, 0) + image * source * d.C + c0,
             weights, tap_stride, at<T>(ptrs, 2) + r * d.C + c0, c1 - c0);
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T>
int32_t weight_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                    int64_t c0, int64_t c1) {
  const ConvDims d(dims);
  constexpr int W = kLanes<T>;
  const T *x = at<const T>(ptrs, 0), *dy = at<const T>(ptrs, 1);
  const int64_t count = d.N * d.OH * d.OW;
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t dh = r / d.KW * d.dil_h - d.pad_h, dw = r % d.KW * d.dil_w - d.pad_w;
    for (int64_t c = c0; c < c1; c += W) {
      const int m = static_cast<int>(min64(W, c1 - c));
      Vec<T> sum{};
      for (int64_t k0 = 0; k0 < count; k0 += kBlockK) {
        Vec<T> acc{};
        for (int64_t k = k0; k < min64(k0 + kBlockK, count); ++k) {
          const int64_t line = k / d.OW, image = line / d.OH;
          const int64_t h = line % d.OH * d.stride_h + dh, w = k % d.OW * d.stride_w + dw;
          if (h < 0 || h >= d.H || w < 0 || w >= d.W) continue;
          const T *a = x + ((image * d.H + h) * d.W + w) * d.C + c, *b = dy + k * d.C + c;
          acc = m == W ? fma<T>(load(a), load(b), acc)
                       : fma<T>(load_first(a, m), load_first(b, m), acc);
        }
        sum = sum + acc;
      }
      T *out = at<T>(ptrs, 2) + r * dims[16] + c * dims[17];
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
