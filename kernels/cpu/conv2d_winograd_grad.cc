// conv2d_weight_grad of 3 x 3 windows with stride 1 by Winograd's F(3 x 3, 2 x 2): the nine taps that
// a patch of 2 x 2 of dy contributes to cost 16 products where the definition has 36.
//
//   dw = A' [ sum over patches of (B' d B) . (G e G') ] A     d 4 x 4 of x, e 2 x 2 of dy
//
//   conv2d_winograd_weight_grad  ptrs  x [N, H, W, C], dy [N, OH, OW, O], dw
//                                rows  C; cols  O
//     dims     conv.h, then  16 dw's tap stride  17 dw's input channel stride
//              18 dw's output channel stride
//     rows     split at multiples of 16, cols too
//     scratch  conv2d_winograd_weight_grad in nir/targets/cpu_contractions.py
//
// B is that of the forward transform, so x is read as there. The sum over patches is a product of
// matrices at each of the 16 points, [C, patches] x [patches, O], in blocks of patches whose number
// depends on C alone: each an ascending chain, added in order. G's halves are applied to the sums.
#include "winograd.h"

namespace NIR_NS {
namespace {

// Patches of a block: their transforms stay within some megabytes, and sums are rarely reread.
constexpr int64_t kMostPatches = 128, kLeastPatches = 64, kBlockElements = 16384;
// Channels of a tile: all of a packed step, or half where that is more than fits the registers.
constexpr int kTileRows = kMaxRows < kRowStep ? kRowStep / 2 : kRowStep;

// e[point][panel][p][16]: 2 x 2 of dy by (e0, e0 + e1, e0 - e1, e1) on both axes, columns [c0, c1).
template <class T>
void read_gradients(const Patches &patches, const T *dy, const T *zeros, int64_t t, int64_t count,
                    int64_t count_max, int64_t c0, int64_t c1, T *e, int64_t e_point) {
  constexpr int W = kLanes<T>;
  const ConvDims &d = patches.d;
  for (int64_t p = 0; p < count; ++p) {
    const Patch at = patches[t + p];
    const T *source[2][2];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const bool inside = at.oh + i < d.OH && at.ow + j < d.OW;
        source[i][j] =
            inside ? dy + ((at.image * d.OH + at.oh + i) * d.OW + at.ow + j) * d.O + c0 : zeros;
      }
    for (int64_t c = 0; c < c1 - c0; c += W) {
      const int n = static_cast<int>(min64(W, c1 - c0 - c));
      Vec<T> s[4][2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Vec<T> e0 = load_some(source[0][j] + c, n), e1 = load_some(source[1][j] + c, n);
        s[0][j] = e0, s[1][j] = e0 + e1, s[2][j] = e0 - e1, s[3][j] = e1;
      }
      T *to = e + (c / kPanel * count_max + p) * kPanel + c % kPanel;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        T *out = to + i * 4 * e_point;
        store(out, s[i][0]);
        store(out + e_point, s[i][0] + s[i][1]);
        store(out + 2 * e_point, s[i][0] - s[i][1]);
        store(out + 3 * e_point, s[i][1]);
      }
    }
  }
}

// dw of a vector of output channels from m[point], for one input channel: out[tap].
template <class T>
NIR_INLINE void taps_of_sums(const T *m, int64_t m_point, int n, Vec<T> *out) {
  const Vec<T> half = broadcast(T{0.5});
  const auto transform = [&](Vec<T> m0, Vec<T> m1, Vec<T> m2, Vec<T> m3, Vec<T> *to, int step) {
    const Vec<T> sum = (m1 + m2) * half;
    to[0] = m0 + sum, to[step] = (m1 - m2) * half, to[2 * step] = sum - m3;
  };
  Vec<T> rows[3][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const T *at = m + j * m_point;
    transform(load_some(at, n), load_some(at + 4 * m_point, n), load_some(at + 8 * m_point, n),
              load_some(at + 12 * m_point, n), &rows[0][j], 4);
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i)
    transform(rows[i][0], rows[i][1], rows[i][2], rows[i][3], out + 3 * i, 1);
}

template <class T>
int32_t weight_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                    int64_t c0, int64_t c1) {
  if (r0 >= r1 || c0 >= c1) return NIR_OK;
  constexpr int W = kLanes<T>;
  const Patches patches(dims);
  const ConvDims &d = patches.d;
  const int64_t channels = r1 - r0, columns = c1 - c0;
  const int64_t total = d.N * patches.rows * patches.cols;
  const int64_t most = max64(kLeastPatches, min64(kMostPatches, kBlockElements / max64(d.C, 1)));
  // A cache line more than the matrices: points that begin in one set of L1 evict each other.
  const int64_t v_point = ceil_div(channels, kRowStep) * kRowStep * most + kPanel,
                e_point = ceil_div(columns, kPanel) * kPanel * most + kPanel,
                m_point = channels * columns + kPanel;
  Scratch s{static_cast<char *>(ctx->scratch)};
  T *zeros = s.take<T>(max64(channels, columns)), *v = s.take<T>(kPoints * v_point),
    *e = s.take<T>(kPoints * e_point), *m = s.take<T>(kPoints * m_point);
  zero_run(zeros, max64(channels, columns));
  if (!total) zero_run(m, kPoints * m_point);
  for (int64_t t = 0; t < total; t += most) {
    const int64_t count = min64(most, total - t);
    read_patches<T, true>(patches, at<const T>(ptrs, 0) + r0, channels, zeros, t, count, most, v,
                          v_point);
    read_gradients(patches, at<const T>(ptrs, 1), zeros, t, count, most, c0, c1, e, e_point);
    const int32_t length = static_cast<int32_t>(count);
    const int64_t offset = 0, sliver = max64(2 * W, kPanel);
    for (int point = 0; point < kPoints; ++point)
      for (int64_t c = 0; c < columns; c += sliver)
        for (int64_t r = 0; r < channels; r += kTileRows) {
          const int rows = static_cast<int>(min64(kTileRows, channels - r));
          const T *a[1] = {v + point * v_point + r / kRowStep * kRowStep * most + r % kRowStep};
          T *out[kTileRows];
          Tile<T> tile{a, nullptr, kPanel, kPanel * most, 1, &length, &offset, out, 0, t > 0};
          tile_columns<true>(tile, rows, min64(sliver, columns - c), [&](Tile<T> &tile, int64_t j) {
            const int64_t n = c + j;
            tile.b = e + point * e_point + n / kPanel * kPanel * most + n % kPanel;
            for (int i = 0; i < rows; ++i) out[i] = m + point * m_point + (r + i) * columns + n;
          });
        }
  }
  T *dw = at<T>(ptrs, 2);
  const int64_t s_tap = dims[16], s_c = dims[17], s_o = dims[18];
  for (int64_t c = 0; c < columns; c += W) {
    const int n = static_cast<int>(min64(W, columns - c));
    for (int64_t r = 0; r < channels; ++r) {
      Vec<T> taps[9];
      taps_of_sums(m + r * columns + c, m_point, n, taps);
      T *to = dw + (r0 + r) * s_c + (c0 + c) * s_o;
      if (s_o == 1) {
        for (int k = 0; k < 9; ++k) store_some(to + k * s_tap, taps[k], n);
        continue;
      }
      alignas(64) T lanes[9][W];
      for (int k = 0; k < 9; ++k) store(lanes[k], taps[k]);
      for (int i = 0; i < n; ++i)
        for (int k = 0; k < 9; ++k) to[i * s_o + k * s_tap] = lanes[k][i];
    }
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                    \
  NIR_KERNEL(conv2d_winograd_weight_grad_##dtype) {                         \
    return NIR_NS::weight_grad<T>(ctx, ptrs, dims, r0, r1, c0, c1);         \
  }
DEFINE(f32, float)
DEFINE(f64, double)
