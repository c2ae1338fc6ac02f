// conv2d of an image in NCHW, as a network's first layer reads it: few channels, each a plane.
//
//   conv2d_planar  ptrs  x [N, C, H, W], packed w, y [N, OH, OW, O]
//                  rows  N * OH * OW output pixels; cols  O
//   dims     conv.h
//   cols     split at multiples of 16
//   scratch  conv2d_planar in nir/targets/cpu_contractions.py
//
// The lines of x that a line of y reads lie in a ring, padding included. Pixel i of a tile then finds
// its tap `i * stride` elements behind the first pixel's: an address made of two registers, where
// general convolutions load a pointer, and no border to test for. A line of x is copied once for the
// kernel rows that read it.
//
// w is packed as for conv2d with K1 = C, K2 = KH * KW. The chain runs over (C, KH, KW) in blocks of
// whole kernel rows, of at most kBlockK steps unless one row has more.
#include "conv.h"

namespace NIR_NS {
namespace {

constexpr int kGroup = 4;  // pixels that share a pointer: offsets of 0, 1, 2 and 3 strides

// A block of the chain for one tile of pixels.
template <class T>
struct Taps {
  const T *const *lines;  // where each kernel row of each channel begins, for pixel 0 of the line
  int64_t count, first;   // of lines; offset of the tile's first pixel
  int64_t KW, stride, dilation;
  const T *w;             // first column, first step
  int64_t w_panel;        // elements from one panel to the next
  T *y;
  int64_t y_step;         // elements from one pixel to the next
  int cols;
  bool add;
};

template <class T, int kRows, int kVectors>
void tile(const Taps<T> &t) {
  constexpr int W = kLanes<T>, kPerPanel = kPanel / W, kGroups = (kRows + kGroup - 1) / kGroup;
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Vec<T>{};
  const T *w = t.w;
  const int64_t KW = t.KW, stride = t.stride, dilation = t.dilation, w_panel = t.w_panel;
  for (int64_t l = 0; l < t.count; ++l) {
    const T *x[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) x[g] = t.lines[l] + t.first + g * kGroup * stride;
    for (int64_t k = 0; k < KW; ++k, w += kPanel) {
      Vec<T> wv[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j)
        wv[j] = load(w + (j / kPerPanel) * w_panel + (j % kPerPanel) * W);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> xv = broadcast(x[i / kGroup][(i % kGroup) * stride]);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) acc[i][j] = fma<T>(xv, wv[j], acc[i][j]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) x[g] += dilation;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    T *y = t.y + i * t.y_step;
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      int n = t.cols - j * W;
      n = n < 0 ? 0 : n > W ? W : n;
      if (n == W)
        store(y + j * W, t.add ? load(y + j * W) + acc[i][j] : acc[i][j]);
      else if (n)
        store_first(y + j * W, t.add ? load_first(y + j * W, n) + acc[i][j] : acc[i][j], n);
    }
  }
}

template <class T>
struct Tiles {
  void (*fn[kMaxRows + 1][2])(const Taps<T> &);
  constexpr Tiles() : fn{} { fill<kMaxRows>(); }
  template <int kRows>
  constexpr void fill() {
    fn[kRows][0] = tile<T, kRows, 1>;
    fn[kRows][1] = tile<T, kRows, 2>;
    if constexpr (kRows > 1) fill<kRows - 1>();
  }
};

// The lines of x round one line of y: line `ih` of channel c at slot ih modulo `span`.
template <class T>
struct Ring {
  const ConvDims &d;
  const T *x;
  int64_t span, width;  // lines of a channel; elements of a line with its padding
  T *memory;
  const T **lines;      // [C][KH]
  int64_t image = -1, next = 0;  // whose lines are there, and the first that was never read

  T *slot(int64_t c, int64_t ih) {
    return memory + (c * span + ((ih % span) + span) % span) * width;
  }

  void read(int64_t ih) {
    for (int64_t c = 0; c < d.C; ++c) {
      T *to = slot(c, ih);
      if (ih < 0 || ih >= d.H) {
        zero_run(to, width);
        continue;
      }
      const int64_t begin = min64(d.pad_w, width), end = max64(begin, min64(width, d.pad_w + d.W));
      zero_run(to, begin);
      copy_run(to + begin, x + ((image * d.C + c) * d.H + ih) * d.W, end - begin);
      zero_run(to + end, width - end);
    }
  }

  // Makes `lines` those that line `oh` of an image reads.
  void turn(int64_t n, int64_t oh) {
    const int64_t first = oh * d.stride_h - d.pad_h;
    if (n != image) image = n, next = first;
    for (next = max64(next, first); next < first + span; ++next) read(next);
    for (int64_t c = 0; c < d.C; ++c)
      for (int64_t k = 0; k < d.KH; ++k) lines[c * d.KH + k] = slot(c, first + k * d.dil_h);
  }
};

template <class T>
int32_t conv2d_planar(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                      int64_t c0, int64_t c1) {
  static constexpr Tiles<T> tiles{};
  constexpr int64_t W = kLanes<T>;
  const ConvDims d(dims);
  const int64_t count = d.C * d.KH, K = count * d.KW;
  const int64_t in_block = max64(1, kBlockK / max64(1, d.KW));
  Scratch s{static_cast<char *>(ctx->scratch)};
  Ring<T> ring{d, at<const T>(ptrs, 0), (d.KH - 1) * d.dil_h + 1,
               (d.OW - 1) * d.stride_w + (d.KW - 1) * d.dil_w + 1, nullptr, nullptr};
  ring.lines = s.take<const T *>(count);
  ring.memory = s.take<T>(d.C * ring.span * ring.width);
  const T *weights = at<const T>(ptrs, 1);
  T *y = at<T>(ptrs, 2);
  for (int64_t r = r0; r < r1;) {
    const int64_t line = r / d.OW, x0 = r % d.OW, x1 = min64(d.OW, x0 + (r1 - r));
    ring.turn(line / d.OH, line % d.OH);
    const int64_t parts = ceil_div(x1 - x0, kMaxRows);
    for (int64_t c = c0; c < c1; c += 2 * W) {
      const int cols = static_cast<int>(min64(2 * W, c1 - c));
      for (int64_t part = 0; part < parts; ++part) {
        int64_t m;
        int rows;
        tile_rows(x1 - x0, parts, part, &m, &rows);
        for (int64_t l = 0; l == 0 || l < count; l += in_block)
          tiles.fn[rows][cols > W]({ring.lines + l, min64(in_block, count - l),
                                    (x0 + m) * d.stride_w, d.KW, d.stride_w, d.dil_w,
                                    weights + c / kPanel * K * kPanel + c % kPanel + l * d.KW * kPanel,
                                    K * kPanel, y + (r + m) * d.O + c, d.O, cols, l > 0});
      }
    }
    if (int32_t status = finish(ctx, r, r + (x1 - x0), c0, c1)) return status;
    r += x1 - x0;
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                  \
  NIR_KERNEL(conv2d_planar_##dtype) {                                     \
    return NIR_NS::conv2d_planar<T>(ctx, ptrs, dims, r0, r1, c0, c1);     \
  }
DEFINE(f32, float)
DEFINE(f64, double)
