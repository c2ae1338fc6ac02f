// conv2d and conv2d_input_grad of 3 x 3 windows with stride 1 by Winograd's F(2 x 2, 3 x 3), after
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): four outputs cost 16
// products where the definition has 36.
//
//   y = A' [ (G g G') . (B' d B) ] A     d a 4 x 4 patch of x, g the window, y 2 x 2 outputs
//
//   conv2d_winograd  ptrs  x [N, H, W, C], u, y [N, OH, OW, O]
//                    rows  N * OH * OW output pixels; cols  O
//                    dims  conv.h
//     u = G g G' as 16 matrices [C, O] in panels. The image gradient is the same kernel on dy, with
//     windows turned by half a turn and channels exchanged.
//   pack_winograd    ptrs  w, u
//                    rows  panels of 16 columns
//                    dims  0 C  1 O  2 elements from one tap to the next (of nine)  3 from one row of
//                          the matrices to the next  4 from one column to the next
//                          5 whether the taps are read backwards
//   cols     split at multiples of 16
//   scratch  conv2d_winograd in nir/targets/cpu_contractions.py
//
// Transforms add in a fixed order and never multiply, and a product is one chain over C: all ISA
// levels and all splits of the range agree bit for bit. An inf or nan reaches all four outputs of a
// patch. Patches go in blocks, through 16 products of matrices that share B's panels.
#include "winograd.h"

namespace NIR_NS {
namespace {

// Patches of a block: transformed, they and their products take up to 4 MB of f32.
constexpr int64_t kPatches = 128, kFewPatches = 32, kBlockChannels = 65536;

template <class T>
struct Winograd {
  Patches at;
  const T *x, *u;
  T *y;
  int64_t r0, r1, c0, c1;
  int64_t patches = 0;                     // of a block
  int64_t v_point = 0, m_point = 0;        // elements from one of the 16 matrices to the next
  T *zeros = nullptr, *v = nullptr, *m = nullptr;
};

// m[point] = v[point] u[point]: panels of u stay near for all patches of the block.
template <class T>
void multiply(const Winograd<T> &g, int64_t count) {
  const int64_t C = g.at.d.C, panels = ceil_div(g.at.d.O, kPanel), columns = g.c1 - g.c0;
  const Largest largest = largest_tile<T>(columns);
  const int64_t sliver = largest.columns, tiles = ceil_div(count, largest.rows);
  const int32_t length = static_cast<int32_t>(C);
  const int64_t offset = 0;
  for (int point = 0; point < kPoints; ++point) {
    const T *u = g.u + point * panels * C * kPanel, *v = g.v + point * g.v_point;
    T *m = g.m + point * g.m_point;
    for (int64_t c = 0; c < columns; c += sliver)
      for (int64_t i = 0; i < tiles; ++i) {
        int64_t first;
        int rows;
        tile_rows(count, tiles, i, &first, &rows);
        const T *a[kMaxRows];
        T *out[kMaxRows];
        for (int r = 0; r < rows; ++r) a[r] = v + (first + r) * C;
        Tile<T> t{a, nullptr, kPanel, C * kPanel, 1, &length, &offset, out, 0, false};
        t.ahead = i ? 0 : kPanel * 24;
        tile_columns<false>(t, rows, min64(sliver, columns - c), [&](Tile<T> &t, int64_t j) {
          const int64_t n = g.c0 + c + j;
          t.b = u + n / kPanel * C * kPanel + n % kPanel;
          for (int r = 0; r < rows; ++r) out[r] = m + (first + r) * columns + c + j;
        });
      }
  }
}

// y = A' m A of patches [t, t + count), where it lies in the call's rows.
template <class T>
void write_patches(const Winograd<T> &g, int64_t t, int64_t count) {
  constexpr int W = kLanes<T>;
  const ConvDims &d = g.at.d;
  const int64_t columns = g.c1 - g.c0;
  for (int64_t p = 0; p < count; ++p) {
    const Patch at = g.at[t + p];
    T *to[2][2];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const int64_t r = (at.image * d.OH + at.oh + i) * d.OW + at.ow + j;
        const bool mine = at.oh + i < d.OH && at.ow + j < d.OW && r >= g.r0 && r < g.r1;
        to[i][j] = mine ? g.y + r * d.O + g.c0 : nullptr;
      }
    const T *from = g.m + p * columns;
    for (int64_t c = 0; c < columns; c += W) {
      const int n = static_cast<int>(min64(W, columns - c));
      Vec<T> s[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const T *m = from + j * g.m_point + c;
        const Vec<T> m0 = load_some(m, n), m1 = load_some(m + 4 * g.m_point, n),
                     m2 = load_some(m + 8 * g.m_point, n), m3 = load_some(m + 12 * g.m_point, n);
        s[0][j] = m0 + m1 + m2, s[1][j] = m1 - m2 - m3;
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if (to[i][0]) store_some(to[i][0] + c, s[i][0] + s[i][1] + s[i][2], n);
        if (to[i][1]) store_some(to[i][1] + c, s[i][1] - s[i][2] - s[i][3], n);
      }
    }
  }
}

// The epilogue of patches [t, t + count): line by line.
template <class T>
int32_t finish_patches(nir_ctx *ctx, const Winograd<T> &g, int64_t t, int64_t count) {
  if (!ctx->epilogue) return NIR_OK;
  for (int64_t end = t + count; t < end;) {
    const Patch at = g.at[t];
    const int64_t next = min64(end, (t / g.at.cols + 1) * g.at.cols);
    const int64_t ow = min64(g.at.d.OW, at.ow + 2 * (next - t));
    for (int64_t oh = at.oh; oh < min64(at.oh + 2, g.at.d.OH); ++oh) {
      const int64_t line = (at.image * g.at.d.OH + oh) * g.at.d.OW;
      const int64_t begin = max64(g.r0, line + at.ow), stop = min64(g.r1, line + ow);
      if (begin < stop)
        if (int32_t status = finish(ctx, begin, stop, g.c0, g.c1)) return status;
    }
    t = next;
  }
  return NIR_OK;
}

template <class T>
int32_t conv2d_winograd(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0,
                        int64_t r1, int64_t c0, int64_t c1) {
  if (r0 >= r1 || c0 >= c1) return NIR_OK;
  Winograd<T> g{Patches(dims), at<const T>(ptrs, 0), at<const T>(ptrs, 1), at<T>(ptrs, 2),
                r0, r1, c0, c1};
  const ConvDims &d = g.at.d;
  g.patches = max64(kFewPatches, min64(kPatches, kBlockChannels / (d.C + d.O)));
  // A cache line more than the matrix: 16 streams that begin in one set of L1 would evict each other.
  g.v_point = g.patches * d.C + kPanel, g.m_point = g.patches * (c1 - c0) + kPanel;
  Scratch s{static_cast<char *>(ctx->scratch)};
  g.zeros = s.take<T>(d.C);
  g.v = s.take<T>(kPoints * g.v_point), g.m = s.take<T>(kPoints * g.m_point);
  zero_run(g.zeros, d.C);
  const auto patch_row = [&](int64_t line) {
    return line / d.OH * g.at.rows + line % d.OH / 2;
  };
  const int64_t first = patch_row(r0 / d.OW) * g.at.cols,
                last = (patch_row((r1 - 1) / d.OW) + 1) * g.at.cols;
  for (int64_t t = first; t < last; t += g.patches) {
    const int64_t count = min64(g.patches, last - t);
    read_patches<T, false>(g.at, g.x, g.at.d.C, g.zeros, t, count, 0, g.v, g.v_point);
    multiply(g, count);
    write_patches(g, t, count);
    if (int32_t status = finish_patches(ctx, g, t, count)) return status;
  }
  return NIR_OK;
}

// u[point][panel][c][16] = G g G': for each axis g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2.
template <class T>
int32_t pack_winograd(void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1) {
  constexpr int W = kLanes<T>;
  const int64_t C = dims[0], O = dims[1], tap = dims[2], s_c = dims[3], s_o = dims[4];
  const bool backwards = dims[5];
  const int64_t point = ceil_div(O, kPanel) * C * kPanel;
  const T *w = at<const T>(ptrs, 0);
  T *u = at<T>(ptrs, 1);
  const Vec<T> half = broadcast(T{0.5});
  const auto transform = [&](Vec<T> g0, Vec<T> g1, Vec<T> g2, Vec<T> *out, int step) {
    const Vec<T> outer = g0 + g2;
    out[0] = g0, out[step] = (outer + g1) * half, out[2 * step] = (outer - g1) * half;
    out[3 * step] = g2;
  };
  for (int64_t panel = r0; panel < r1; ++panel)
    for (int64_t c = 0; c < C; ++c) {
      alignas(64) T taps[9][kPanel] = {};
      const int64_t columns = min64(kPanel, O - panel * kPanel);
      const T *from = w + c * s_c + panel * kPanel * s_o;
      for (int64_t n = 0; n < columns; ++n)
        for (int64_t k = 0; k < 9; ++k)
          taps[backwards ? 8 - k : k][n] = from[n * s_o + k * tap];
      for (int64_t n = 0; n < kPanel; n += W) {
        Vec<T> g[9], rows[3][4], out[kPoints];
        for (int k = 0; k < 9; ++k) g[k] = load(taps[k] + n);
        for (int i = 0; i < 3; ++i) transform(g[3 * i], g[3 * i + 1], g[3 * i + 2], rows[i], 1);
        for (int j = 0; j < 4; ++j) transform(rows[0][j], rows[1][j], rows[2][j], out + j, 4);
        for (int i = 0; i < kPoints; ++i)
          store(u + i * point + (panel * C + c) * kPanel + n, out[i]);
      }
    }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                                        \
  NIR_KERNEL(conv2d_winograd_##dtype) {                                                         \
    return NIR_NS::conv2d_winograd<T>(ctx, ptrs, dims, r0, r1, c0, c1);                         \
  }                                                                                             \
  NIR_KERNEL(pack_winograd_##dtype) {                                                           \
    (void)ctx, (void)c0, (void)c1;                                                              \
    return NIR_NS::pack_winograd<T>(ptrs, dims, r0, r1);                                        \
  }
DEFINE(f32, float)
DEFINE(f64, double)
