// conv2d_weight_grad: dw[kh, kw, c, o] = sum over pixels of x[pixel at tap (kh, kw), c] * dy[pixel,
// o].
//
//   ptrs  x [N, H, W, C], dy [N, OH, OW, O], dw (logically [KH, KW, C / groups, O])
//   dims  conv.h, then  16 dw's kernel position stride  17 dw's channel stride
//         18 dw's output stride  19 whether x is NCHW
//   rows  KH * KW * C / groups, or C * KH * KW for NCHW; cols  O, split at multiples of 16
//   scratch  conv2d_weight_grad_scratch in nir/targets/cpu.py
//
// The strides let dw lie as HWIO or as OIHW. An epilogue sees rows and columns, whatever the
// layout. A GEMM whose k runs over the output pixels, in blocks of 256 added in order. Threads
// split the rows and columns of dw, so no partial sums meet and the number of threads cannot
// matter.
#include "conv.h"

namespace NIR_NS {
namespace {

constexpr int64_t kStretchBytes = 16384;  // sums that are transposed at a time
constexpr int64_t kColumns = 256;  // columns of dy packed at a time: 256 KB of f32, within L2

struct Pixel {
  int64_t base;  // offset in x of tap position (0, 0) before padding
  int32_t h, w;  // its position, from -pad on
};

// A run of rows of dw within one tile, whose x elements are contiguous at every pixel: channels of
// one tap, or, without dilation and groups, of neighbouring taps in one kernel row.
struct Run {
  int64_t offset;  // from a pixel's base
  int32_t row, length, dh, dw0, dw1;
};

inline int list_runs(const ConvDims &d, int64_t group, int64_t row, int rows, Run *runs) {
  const int64_t channels = d.depth / d.groups;
  int64_t line_before = -1;  // plane and kernel row
  int n = 0;
  for (int i = 0; i < rows;) {
    const int64_t tap = (row + i) / channels, c = (row + i) % channels;
    const int64_t line = tap / d.KW, plane = line / d.KH;
    const int64_t dh = line % d.KH * d.dil_h, dw = tap % d.KW * d.dil_w;
    const int len = static_cast<int>(min64(rows - i, channels - c));
    if (line == line_before && d.dil_w == 1 && d.groups == 1) {
      runs[n - 1].length += len;
      runs[n - 1].dw1 = static_cast<int32_t>(dw);
    } else {
      runs[n++] = {((plane * d.H + dh) * d.W + dw) * d.depth + group * channels + c,
                   i,
                   len,
                   static_cast<int32_t>(dh),
                   static_cast<int32_t>(dw),
                   static_cast<int32_t>(dw)};
    }
    line_before = line;
    i += len;
  }
  return n;
}

NIR_INLINE bool inside(int64_t i, int64_t n) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
}

// n elements, half <= n <= 2 * half, as two halves that may overlap: no masks and no loop.
template <int half, class T>
NIR_INLINE void move(T *dst, const T *src, int n) {
  struct Half {
    T x[half];
  } first, last;
  memcpy(&first, src, sizeof(Half));
  memcpy(&last, src + n - half, sizeof(Half));
  memcpy(dst, &first, sizeof(Half));
  memcpy(dst + n - half, &last, sizeof(Half));
}
template <int half, class T>
NIR_INLINE void clear(T *dst, int n) {
  memset(dst, 0, half * sizeof(T));
  memset(dst + n - half, 0, half * sizeof(T));
}

// packed[k * kRowStep + row] for one run: x where the tap lies inside the image, else 0.
template <int half, class T>
void gather(const ConvDims &d, const T *x, const Pixel *pixels, int64_t steps, const Run &run,
            T *packed) {
  const int n = run.length;
  for (int64_t k = 0; k < steps; ++k) {
    const Pixel p = pixels[k];
    T *dst = packed + k * kRowStep + run.row;
    const T *src = x + (p.base + run.offset);
    if (!inside(p.h + run.dh, d.H)) {
      clear<half>(dst, n);
    } else if (inside(p.w + run.dw0, d.W) && inside(p.w + run.dw1, d.W)) {
      move<half>(dst, src, n);
    } else {
      // A run over several taps, across the left or right edge; its first tap may start in
      // mid-channel.
      const int64_t c = run.offset % d.depth, column = p.w + run.dw0;
      const int64_t lo = max64(0, min64(n, -column * d.depth - c));
      const int64_t hi = max64(lo, min64(n, (d.W - column) * d.depth - c));
      zero_run(dst, lo);
      copy_run(dst + lo, src + lo, hi - lo);
      zero_run(dst + hi, n - hi);
    }
  }
}

template <class T>
void gather_run(const ConvDims &d, const T *x, const Pixel *pixels, int64_t steps, const Run &run,
                T *packed) {
  static_assert(kMaxRows <= 16);
  if (run.length >= 8) return gather<8>(d, x, pixels, steps, run, packed);
  if (run.length >= 4) return gather<4>(d, x, pixels, steps, run, packed);
  if (run.length >= 2) return gather<2>(d, x, pixels, steps, run, packed);
  gather<1>(d, x, pixels, steps, run, packed);
}

template <class T>
void pack_columns(const T *dy, int64_t stride, int64_t steps, int64_t cols, T *packed) {
  for (int64_t c = 0; c < cols; c += kPanel, packed += steps * kPanel)
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t n = min64(kPanel, cols - c);
      T *dst = packed + k * kPanel;
      const T *src = dy + k * stride + c;
      if (n == kPanel) {
        memcpy(dst, src, kPanel * sizeof(T));
      } else {
        for (int64_t j = 0; j < kPanel; ++j) dst[j] = j < n ? src[j] : T(0);
      }
    }
}

// Where dw's rows lie: by kernel position and then channel, or, read by planes, the other way round.
template <class T>
struct Output {
  T *dw;
  int64_t inner, outer_stride, inner_stride, column_stride;
  T *row(int64_t r) const { return dw + r / inner * outer_stride + r % inner * inner_stride; }

  // Rows [r0, r1) of sums, [row][cols], to columns c0 and on: a transposition, in stretches of rows
  // whose sums stay in L1 while each column of them is written. Counting saves a division each.
  void strew(const T *sums, int64_t cols, int64_t r0, int64_t r1, int64_t c0) const {
    const int64_t stretch = max64(16, kStretchBytes / (cols * static_cast<int64_t>(sizeof(T))));
    for (int64_t r = r0; r < r1; r += stretch) {
      const int64_t end = min64(r1, r + stretch);
      for (int64_t c = 0; c < cols; ++c) {
        T *column = row(r) + (c0 + c) * column_stride;
        const T *from = sums + (r - r0) * cols + c;
        for (int64_t i = r, at = r % inner; i < end; ++i, from += cols) {
          *column = *from;
          column += inner_stride;
          if (++at == inner) {
            at = 0;
            column += outer_stride - inner * inner_stride;
          }
        }
      }
    }
  }
};

// Rows [r0, r1) and columns [c0, c1) of one group, at most kColumns of them.
template <class T>
void block(nir_ctx *ctx, const ConvDims &d, const T *x, const T *dy, const Output<T> &o,
           int64_t group, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  Scratch s{static_cast<char *>(ctx->scratch)};
  Pixel *pixels = s.take<Pixel>(kBlockK);
  T *packed_rows = s.take<T>(kBlockK * kRowStep);
  T *packed_columns = s.take<T>(kBlockK * kColumns);
  // Columns that do not lie side by side are summed in scratch and strewn at the end.
  const int64_t cols = c1 - c0;
  const bool direct = o.column_stride == 1;
  T *sums = s.take<T>(direct ? 0 : (r1 - r0) * cols);
  const int64_t count = d.N * d.OH * d.OW, tiles = ceil_div(r1 - r0, kMaxRows), zero_offset = 0;
  for (int64_t k0 = 0; k0 < count; k0 += kBlockK) {
    const int32_t steps = static_cast<int32_t>(min64(kBlockK, count - k0));
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t line = (k0 + k) / d.OW, image = line / d.OH;
      const int64_t h = line % d.OH * d.stride_h - d.pad_h,
                    w = (k0 + k) % d.OW * d.stride_w - d.pad_w;
      pixels[k] = {((image * d.planes * d.H + h) * d.W + w) * d.depth, static_cast<int32_t>(h),
                   static_cast<int32_t>(w)};
    }
    pack_columns(dy + k0 * d.O + c0, d.O, steps, cols, packed_columns);
    for (int64_t i = 0; i < tiles; ++i) {
      int64_t m;
      int rows;
      tile_rows(r1 - r0, tiles, i, &m, &rows);
      Run runs[kMaxRows];
      const int run_count = list_runs(d, group, r0 + m, rows, runs);
      for (int j = 0; j < run_count; ++j) gather_run(d, x, pixels, steps, runs[j], packed_rows);
      const T *a = packed_rows;
      T *start[kMaxRows], *out[kMaxRows];
      for (int r = 0; r < rows; ++r)
        start[r] = direct ? o.row(r0 + m + r) + c0 : sums + (m + r) * cols;
      Tile<T> t{&a,  nullptr, kPanel, static_cast<int64_t>(steps) * kPanel, 1, &steps, &zero_offset,
                out, 0,       k0 > 0};
      tile_columns<true>(t, rows, cols, [&](Tile<T> &t, int64_t j) {
        t.b = packed_columns + j / kPanel * steps * kPanel + j % kPanel;
        for (int r = 0; r < rows; ++r) out[r] = start[r] + j;
      });
    }
  }
  if (!direct) o.strew(sums, cols, r0, r1, c0);
}

template <class T>
int32_t conv2d_weight_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0,
                           int64_t r1, int64_t c0, int64_t c1) {
  ConvDims d(dims);
  d.read_planes(dims[19]);
  const int64_t channels = d.depth / max64(d.groups, 1), columns = d.O / max64(d.groups, 1);
  Output<T> o{at<T>(ptrs, 2), channels, dims[16], dims[17], dims[18]};
  if (dims[19]) o.inner = d.KH * d.KW, o.outer_stride = dims[17], o.inner_stride = dims[16];
  const GatherAxis h = forward_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h);
  const GatherAxis w = forward_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w);
  const auto reads = [&](int64_t tap) {
    int64_t unused;
    return d.N > 0 && h.base(tap / d.KW % d.KH, &unused) && w.base(tap % d.KW, &unused);
  };
  for (int64_t r = r0; r < r1;) {
    // A stretch of kernel positions that all read the image, or all read nothing but padding.
    const bool live = reads(r / channels);
    int64_t tap = r / channels + 1;
    while (tap * channels < r1 && reads(tap) == live) ++tap;
    const int64_t end = min64(r1, tap * channels);
    if (!live)
      for (int64_t i = r; i < end; ++i)
        for (int64_t c = c0; c < c1; ++c) o.row(i)[c * o.column_stride] = 0;
    for (int64_t c = c0; live && c < c1;) {
      const int64_t group = c / columns,
                    stop = min64(min64(c1, (group + 1) * columns), c + kColumns);
      block(ctx, d, at<const T>(ptrs, 0), at<const T>(ptrs, 1), o, group, r, end, c, stop);
      c = stop;
    }
    r = end;
  }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                   \
  NIR_KERNEL(conv2d_weight_grad_##dtype) {                                 \
    return NIR_NS::conv2d_weight_grad<T>(ctx, ptrs, dims, r0, r1, c0, c1); \
  }
DEFINE(f32, float)
DEFINE(f64, double)
