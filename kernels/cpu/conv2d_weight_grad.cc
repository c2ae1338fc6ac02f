// conv2d_weight_grad: dw[kh, kw, c, o] = sum over pixels of x[pixel at tap (kh, kw), c] * dy[pixel,
// o].
//
//   ptrs  x [N, H, W, C], dy [N, OH, OW, O], dw (logically [KH, KW, C / groups, O])
//   dims  conv.h, then  16 dw's kernel position stride  17 dw's channel stride
//         18 dw's output stride  19 whether x is NCHW
//   rows  C / groups * KH * KW; cols  O, split at multiples of 16
//   scratch  conv2d_weight_grad in nir/targets/cpu_contractions.py
//
// The strides let dw lie as HWIO or as OIHW. A GEMM whose k runs over the output pixels, in blocks
// of 256 added in order; x is read where it lies, at the pixels whose tap is inside the image, so
// padding costs nothing. Threads split the rows and columns of dw, so no partial sums meet and the
// number of threads cannot matter.
#include "conv.h"
#include "transpose.h"

namespace NIR_NS {
namespace {

constexpr int64_t kColumns = 256;       // columns of dy packed at a time: 256 KB of f32, within L2
constexpr int64_t kSumBytes = 1 << 18;  // sums that wait to be transposed
constexpr int64_t kFewChannels = 16;    // below, taps side by side in x make one line
// Rows of a tile: 8 divides the numbers of channels there are, and 16 chains hide the latency.
constexpr int kTileRows = kMaxRows > 8 ? 8 : kMaxRows;

// Pixels in a row of which each reads x `step` elements after the one before.
template <class T>
struct Stretch {
  const T *x;
  int64_t step;
  int32_t pixel, count;  // the first one's number in the block of dy
};

template <class T>
struct Task {
  const Stretch<T> *stretches;
  int64_t count, offset;  // `offset`: the tile's first row within what the stretches point to
  const T *b;             // packed dy, first column of the tile
  int64_t b_panel;
  T *const *out;
  int cols;
  bool add;
};

template <class T, int kRows, int kVectors>
void outer(const Task<T> &t) {
  constexpr int W = kLanes<T>, kPerPanel = kPanel / W;
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Vec<T>{};
  for (int64_t s = 0; s < t.count; ++s) {
    const Stretch<T> &stretch = t.stretches[s];
    const T *a = stretch.x + t.offset, *b = t.b + int64_t{kPanel} * stretch.pixel;
    const int64_t step = stretch.step, b_panel = t.b_panel;
    for (int32_t k = 0; k < stretch.count; ++k, a += step, b += kPanel) {
      Vec<T> bv[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j)
        bv[j] = load(b + (j / kPerPanel) * b_panel + (j % kPerPanel) * W);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> av = broadcast(a[i]);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) acc[i][j] = fma<T>(av, bv[j], acc[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      T *c = t.out[i] + j * W;
      const int n = static_cast<int>(max64(0, min64(W, t.cols - j * W)));
      if (n == W)
        store(c, t.add ? load(c) + acc[i][j] : acc[i][j]);
      else if (n)
        store_first(c, t.add ? load_first(c, n) + acc[i][j] : acc[i][j], n);
    }
}

template <class T>
struct OuterTable {
  using Fn = void (*)(const Task<T> &);
  Fn fn[kTileRows + 1][3];
  constexpr OuterTable() : fn{} { fill<kTileRows>(); }
  template <int kRows>
  constexpr void fill() {
    fn[kRows][1] = outer<T, kRows, 1>;
    fn[kRows][2] = outer<T, kRows, 2>;
    if constexpr (kRows > 1) fill<kRows - 1>();
  }
};

NIR_INLINE bool inside(int64_t i, int64_t n) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
}

// Rows of dw whose elements of x lie side by side at every pixel: the channels of one tap, or, where
// channels are few, those of one kernel row.
struct Line {
  int64_t plane, kh, kw, taps;  // `taps` neighbours from kw on
  int64_t first, length;        // elements from x's channel `first` of tap kw on
  int64_t row, row_step;        // numbers of the rows: `row` + i * row_step
};

template <class T>
struct Gradient {
  ConvDims d;
  const T *x, *dy;
  T *dw;
  int64_t tap_stride, channel_stride, column_stride;
  bool planar;
  int64_t channels, columns;  // of a group
  // From scratch:
  Stretch<T> *stretches;
  T *packed, *edges, *sums;

  bool joins() const { return d.dil_w == 1 && d.groups == 1 && (planar || channels < kFewChannels); }
  int64_t taps() const { return d.KH * d.KW; }
};

// The stretches of pixels [k0, k1) at which `line` lies in the image. Pixels across its left or
// right edge, which only lines of several taps have, are copied with zeros for the taps outside.
template <class T>
int64_t list_stretches(const Gradient<T> &g, const Line &line, int64_t group, int64_t k0,
                       int64_t k1) {
  const ConvDims &d = g.d;
  const int64_t dh = line.kh * d.dil_h - d.pad_h, dw0 = line.kw * d.dil_w - d.pad_w,
                dw1 = dw0 + (line.taps - 1) * d.dil_w;
  const int64_t step = d.stride_w * d.depth;
  // Outputs of a row that read inside the image through some tap, and through all of them.
  const auto from = [&](int64_t dw) { return dw >= 0 ? 0 : ceil_div(-dw, d.stride_w); };
  const auto to = [&](int64_t dw) { return dw < d.W ? (d.W - 1 - dw) / d.stride_w + 1 : 0; };
  const int64_t some0 = from(dw1), some1 = to(dw0), all0 = from(dw0), all1 = to(dw1);
  T *edge = g.edges;
  int64_t n = 0;
  bool copied = false;  // whether the last stretch lies in `edges`
  const auto add = [&](const T *x, int64_t x_step, int64_t pixel, int64_t count, bool copy) {
    if (n && copy == copied) {
      Stretch<T> &last = g.stretches[n - 1];
      const int64_t apart = x - last.x;
      // Where rows or images follow each other evenly, they are one stretch.
      if (last.pixel + last.count == pixel && (last.count == 1 || apart == last.step * last.count) &&
          (count == 1 || x_step == (last.count == 1 ? apart : last.step))) {
        if (last.count == 1) last.step = apart;
        last.count += static_cast<int32_t>(count);
        return;
      }
    }
    copied = copy;
    g.stretches[n++] = {x, x_step, static_cast<int32_t>(pixel), static_cast<int32_t>(count)};
  };
  int64_t row = k0 / d.OW, image = row / d.OH, y = row - image * d.OH, o = k0 - row * d.OW;
  for (int64_t k = k0; k < k1;) {
    const int64_t end = min64(d.OW, o + (k1 - k)), h = y * d.stride_h + dh;
    if (inside(h, d.H)) {
      const T *x = g.x + (((image * d.planes + line.plane) * d.H + h) * d.W + dw0) * d.depth +
                   group * g.channels + line.first;
      const int64_t base = k - k0 - o;
      int64_t p = max64(o, some0);
      const int64_t stop = min64(end, some1), inner0 = min64(stop, max64(p, all0)),
                    inner1 = max64(inner0, min64(stop, all1));
      const auto across = [&] {
        const int64_t column = p * d.stride_w + dw0;  // of the first tap
        const int64_t lo = max64(0, min64(line.length, -column * d.depth - line.first));
        const int64_t hi = max64(lo, min64(line.length, (d.W - column) * d.depth - line.first));
        zero_run(edge, lo);
        copy_run(edge + lo, x + p * step + lo, hi - lo);
        zero_run(edge + hi, line.length - hi);
        add(edge, line.length, base + p, 1, true);
        edge += line.length;
      };
      for (; p < inner0; ++p) across();
      if (p < inner1) add(x + p * step, step, base + p, inner1 - p, false);
      for (p = inner1; p < stop; ++p) across();
    }
    k += end - o;
    o = 0;
    if (++y == d.OH) y = 0, ++image;
  }
  return n;
}

template <class T>
void pack_columns(const T *dy, int64_t stride, int64_t steps, int64_t cols, T *packed) {
  for (int64_t c = 0; c < cols; c += kPanel, packed += steps * kPanel) {
    const int64_t n = min64(kPanel, cols - c);
    for (int64_t k = 0; k < steps; ++k) {
      T *dst = packed + k * kPanel;
      const T *src = dy + k * stride + c;
      if (n == kPanel) {
        memcpy(dst, src, kPanel * sizeof(T));
      } else {
        for (int64_t j = 0; j < kPanel; ++j) dst[j] = j < n ? src[j] : T(0);
      }
    }
  }
}

// What is left of `line`'s rows in [r0, r1).
inline Line clip(Line line, int64_t r0, int64_t r1) {
  const int64_t from = max64(0, ceil_div(r0 - line.row, line.row_step));
  const int64_t to = min64(line.length, ceil_div(max64(0, r1 - line.row), line.row_step));
  line.first += from, line.row += from * line.row_step, line.length = max64(0, to - from);
  return line;
}

// Line number i of those that rows [r0, r1) cross.
template <class T>
Line line_of(const Gradient<T> &g, int64_t i) {
  const ConvDims &d = g.d;
  if (g.planar && !g.joins()) return {i / g.taps(), i / d.KW % d.KH, i % d.KW, 1, 0, 1, i, 1};
  if (g.planar) return {i / d.KH, i % d.KH, 0, d.KW, 0, d.KW, i * d.KW, 1};
  if (g.joins()) return {0, i, 0, d.KW, 0, d.KW * d.depth, i * d.KW * d.depth, 1};
  return {0, i / d.KW, i % d.KW, 1, 0, g.channels, i, g.taps()};
}

// Where row r of dw begins.
template <class T>
T *row_of(const Gradient<T> &g, int64_t r) {
  const bool by_tap = g.joins() && !g.planar;
  const int64_t tap = by_tap ? r / g.channels : r % g.taps();
  const int64_t c = by_tap ? r % g.channels : r / g.taps();
  return g.dw + tap * g.tap_stride + c * g.channel_stride;
}

// sums[row][cols] to rows [r0, r1) and columns from c0 on of dw, where columns do not lie side by
// side: in registers where rows do, else one by one.
template <class T>
void strew(const Gradient<T> &g, const T *sums, int64_t cols, int64_t r0, int64_t r1, int64_t c0) {
  constexpr int W = kLanes<T>;
  const bool side_by_side =
      g.tap_stride == 1 && g.channel_stride == g.taps() && (g.planar || !g.joins());
  if (!side_by_side) {
    for (int64_t r = r0; r < r1; ++r) {
      T *out = row_of(g, r) + c0 * g.column_stride;
      for (int64_t c = 0; c < cols; ++c) out[c * g.column_stride] = sums[(r - r0) * cols + c];
    }
    return;
  }
  for (int64_t c = 0; c < cols; c += W) {
    const int n = static_cast<int>(min64(W, cols - c));
    for (int64_t r = r0; r < r1; r += W) {
      const int rows = static_cast<int>(min64(W, r1 - r));
      const T *from = sums + (r - r0) * cols + c;
      T *to = g.dw + r + (c0 + c) * g.column_stride;
      Vec<T> v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = i < rows ? load_first(from + i * cols, n) : Vec<T>{};
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < n) store_first(to + i * g.column_stride, v[i], rows);
    }
  }
}

// Rows [r0, r1) and columns [c0, c1) of one group, at most kColumns of them.
template <class T>
void block(const Gradient<T> &g, int64_t group, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  static constexpr OuterTable<T> table{};
  constexpr int W = kLanes<T>;
  const ConvDims &d = g.d;
  const bool direct = g.column_stride == 1;
  const int64_t cols = c1 - c0, count = d.N * d.OH * d.OW;
  const int64_t lines = (g.planar ? g.channels : 1) * (g.joins() ? d.KH : g.taps());
  for (int64_t k0 = 0; k0 < max64(count, 1); k0 += kBlockK) {
    const int64_t steps = min64(kBlockK, count - k0);
    pack_columns(g.dy + k0 * d.O + c0, d.O, steps, cols, g.packed);
    for (int64_t i = 0; i < lines; ++i) {
      const Line line = clip(line_of(g, i), r0, r1);
      if (line.length <= 0) continue;
      const int64_t n = list_stretches(g, line, group, k0, k0 + steps);
      if (!n && k0) continue;  // a tap that reads only padding here
      const int64_t tiles = ceil_div(line.length, kTileRows);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        int64_t m;
        int rows;
        tile_rows(line.length, tiles, tile, &m, &rows);
        T *start[kTileRows], *out[kTileRows];
        for (int j = 0; j < rows; ++j) {
          const int64_t r = line.row + (m + j) * line.row_step;
          start[j] = direct ? row_of(g, r) + c0 : g.sums + (r - r0) * cols;
        }
        for (int64_t c = 0; c < cols; c += 2 * W) {
          for (int j = 0; j < rows; ++j) out[j] = start[j] + c;
          const Task<T> task{g.stretches,
                             n,
                             m,
                             g.packed + c / kPanel * steps * kPanel + c % kPanel,
                             steps * kPanel,
                             out,
                             static_cast<int>(min64(2 * W, cols - c)),
                             k0 > 0};
          table.fn[rows][cols - c > W ? 2 : 1](task);
        }
      }
    }
  }
  if (!direct) strew(g, g.sums, cols, r0, r1, c0);
}

template <class T>
int32_t conv2d_weight_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0,
                           int64_t r1, int64_t c0, int64_t c1) {
  Gradient<T> g{ConvDims(dims), at<const T>(ptrs, 0), at<const T>(ptrs, 1), at<T>(ptrs, 2),
                dims[16],       dims[17],             dims[18],             dims[19] != 0,
                0,              0,                    nullptr,              nullptr,
                nullptr,        nullptr};
  g.channels = g.d.C / g.d.groups, g.columns = g.d.O / g.d.groups;
  g.d.read_planes(g.planar);
  Scratch s{static_cast<char *>(ctx->scratch)};
  g.stretches = s.take<Stretch<T>>(kBlockK);
  g.packed = s.take<T>(kBlockK * kColumns);
  g.edges = s.take<T>(g.joins() ? kBlockK * g.d.KW * g.d.depth : 0);
  g.sums = s.take<T>(0);
  // As many rows at a time as sums stay in L2, whole channels where that can be.
  const int64_t widest = min64(kColumns, g.columns);
  int64_t some = kSumBytes / (widest * static_cast<int64_t>(sizeof(T)));
  some = max64(some / (kTileRows * g.taps()), 1) * kTileRows * g.taps();
  for (int64_t r = r0; r < r1; r += some) {
    const int64_t end = min64(r1, r + some);
    for (int64_t c = c0; c < c1;) {
      const int64_t group = c / g.columns,
                    stop = min64(min64(c1, (group + 1) * g.columns), c + kColumns);
      block(g, group, r, end, c, stop);
      c = stop;
    }
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
