// matmul: C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n].
//
//   ptrs  A, B, C
//   dims  0 batch0  1 batch1  2 M  3 N  4 K
//         5 A batch0 stride  6 A batch1 stride  7 A m stride  8 A k stride
//         9 B batch0 stride  10 B batch1 stride  11 B stride (k of "rows", n of "cols")
//         12 C batch0 stride  13 C batch1 stride  14 C m stride
//   rows  (b0 * batch1 + b1) * M + m; cols n, split at multiples of 16
//   scratch  matmul in nir/targets/cpu_contractions.py
//
// Strides count elements; a stride of 0 broadcasts an operand over the batch. B is "packed" as
// pack_b leaves it (batch strides in elements of the packed buffer), or has contiguous "rows" or
// "cols". The latter two are brought into panels here, a sliver at a time, which costs less than a
// packed copy of all of B that memory has to hold and hand back.
#include "gemm.h"

namespace NIR_NS {
namespace {

enum Layout { kPanels, kRows, kCols };

// Elements finished before an epilogue runs over them: they are still in L1.
constexpr int64_t kEpilogueElements = 4 * kMaxRows * 2 * kPanel;
// Bytes of packed B that stay in L1 while rows pass by, all columns of a tile at a time.
constexpr int64_t kResidentB = 1 << 14;
// Steps from what is multiplied to what is fetched: the time that the third cache or DRAM takes.
// Rows that are a power of two apart share few sets of L2, which then hold no more than so many.
constexpr int64_t kAhead = 48, kAheadOfFewRows = 64, kAheadInPanels = 128;
// Columns that share a row of A which is not packed: below, packing costs more than it saves. Where
// B is in panels, tiles of four vectors read a row half as often.
constexpr int64_t kFewColumns = 32, kFewInPanels = 128;

template <class T>
struct Problem {
  const T *a;
  int64_t a_m, a_k;
  const T *b;
  Layout layout;
  int64_t b_stride;
  T *c;
  int64_t c_m;
  int64_t K;
};

template <class T>
NIR_INLINE void zero_rows(T *c, int64_t c_m, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) memset(c + i * c_m, 0, static_cast<size_t>(cols) * sizeof(T));
}

// Columns [n, n + cols) of B from step k0 on, as panels of `steps` steps.
template <class T>
void pack_sliver(T *dst, const Problem<T> &p, int64_t k0, int64_t steps, int64_t n, int64_t cols) {
  constexpr int W = kLanes<T>;
  for (int64_t j0 = 0; j0 < cols; j0 += kPanel, dst += steps * kPanel) {
    for (int j = 0; j < kPanel; j += W) {
      const int some = static_cast<int>(max64(0, min64(W, cols - j0 - j)));
      if (p.layout == kCols) {
        const T *src = p.b + (n + j0 + j) * p.b_stride + k0;
        transpose_run(dst + j, kPanel, src, p.b_stride, some, steps);
        continue;
      }
      const T *src = p.b + k0 * p.b_stride + n + j0 + j;
      for (int64_t k = 0; k < steps; ++k)
        store(dst + k * kPanel + j, some == W ? load(src + k * p.b_stride)
                                    : some    ? load_first(src + k * p.b_stride, some)
                                              : Vec<T>{});
    }
  }
}

// All tiles of A from row m0 and step k0 on, each in kRowStep * steps elements.
template <class T>
void pack_tiles(T *dst, const Problem<T> &p, int64_t m0, int64_t total, int64_t tiles, int64_t k0,
                int64_t steps) {
  // Where steps are rows of memory, few of them at a time: what is left of a cache line by one
  // tile is still there for the next.
  const int64_t some = p.a_m == 1 ? 8 : steps;
  for (int64_t k = 0; k < steps; k += some)
    for (int64_t i = 0; i < tiles; ++i) {
      int64_t m;
      int rows;
      tile_rows(total, tiles, i, &m, &rows);
      pack_rows(dst + (i * steps + k) * kRowStep, p.a + (m0 + m) * p.a_m + (k0 + k) * p.a_k, rows,
                min64(some, steps - k), p.a_m, p.a_k);
    }
}

// Rows [m0, m1), at most kBlockM of them, and columns [c0, c1) of one matrix of the batch; `row` is
// the first row's number in the iteration space.
template <class T, bool kPackA>
int32_t block(nir_ctx *ctx, const Problem<T> &p, int64_t m0, int64_t m1, int64_t c0, int64_t c1,
              int64_t row) {
  static constexpr KeepTable<T, kPackA> keeping{};
  constexpr int W = kLanes<T>;
  constexpr int64_t kNarrow = kPanel > 2 * W ? kPanel : 2 * W;
  // Rows of B are left in panels by tiles of more rows than that.
  const bool wide = !kPackA && p.layout != kRows;
  const Largest largest = wide ? largest_tile<T>(c1 - c0) : Largest{kMaxRows, kNarrow};
  const int64_t total = m1 - m0, tiles = ceil_div(total, largest.rows);
  // One tile of rows takes all the columns it can; many tiles share a sliver of B that stays in L1.
  // B of few steps stays there whole: results are then written and finished line by line.
  const int64_t resident = static_cast<int64_t>(sizeof(T)) * p.K * (c1 - c0);
  const int64_t sliver = p.layout == kPanels && p.K <= kBlockK && resident <= kResidentB ? c1 - c0
                         : tiles > 1 || p.layout == kCols ? largest.columns
                                                          : max64(kPanel, kMaxVectors * W);
  T *packed = static_cast<T *>(ctx->scratch);
  T *panels = kPackA ? packed + kPackedRows * kBlockK : packed;
  const int64_t zero_offset = 0;
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK) {
    const int32_t steps = static_cast<int32_t>(min64(kBlockK, p.K - k0));
    const bool last = k0 + steps == p.K;
    if constexpr (kPackA) pack_tiles(packed, p, m0, total, tiles, k0, steps);
    for (int64_t c = c0, cols; c < c1; c += cols) {
      cols = min64(sliver, c1 - c);
      bool in_panels = p.layout == kCols;
      if (p.layout == kRows) {
        if (cols > W) cols -= cols % W;  // what is left is a sliver of its own
        // The first tile keeps what it reads in panels for the others; few columns or an odd
        // number are packed beforehand; one tile reads B where it lies.
        in_panels = cols % W != 0 || (tiles > 1 && cols != kNarrow);
      }
      if (in_panels) pack_sliver(panels, p, k0, steps, c, cols);
      int64_t done = 0;
      for (int64_t i = 0; i < tiles; ++i) {
        int64_t m;
        int rows;
        tile_rows(total, tiles, i, &m, &rows);
        const T *a[kMaxRows];
        T *out[kMaxRows], *at_column[kMaxRows];
        for (int r = 0; r < rows; ++r) {
          out[r] = p.c + (m0 + m + r) * p.c_m + c;
          a[r] = kPackA ? packed + i * kRowStep * steps : p.a + (m0 + m + r) * p.a_m + k0;
        }
        Tile<T> t{a, nullptr, kPanel, 0, 1, &steps, &zero_offset, at_column, 0, k0 > 0};
        const auto column = [&](int64_t j) {
          for (int r = 0; r < rows; ++r) at_column[r] = out[r] + j;
        };
        const bool kept = p.layout == kRows && tiles > 1 && i > 0;
        if (in_panels || kept) {
          t.b_panel = int64_t{kPanel} * steps;
          tile_columns<kPackA>(t, rows, cols, [&](Tile<T> &t, int64_t j) {
            t.b = panels + j / kPanel * t.b_panel + j % kPanel;
            column(j);
          });
        } else if (p.layout == kPanels) {
          t.b_panel = p.K * kPanel;
          t.ahead = i == 0 ? kAheadInPanels * kPanel : 0;
          tile_columns<kPackA>(t, rows, cols, [&](Tile<T> &t, int64_t j) {
            const int64_t n = c + j;
            t.b = p.b + n / kPanel * t.b_panel + k0 * kPanel + n % kPanel;
            column(j);
          });
        } else {
          t.b_step = p.b_stride;
          t.b_panel = kPanel;
          t.ahead = (rows > 2 ? kAhead : kAheadOfFewRows) * p.b_stride;
          if (tiles == 1) {
            tile_columns<kPackA>(t, rows, cols, [&](Tile<T> &t, int64_t j) {
              t.b = p.b + k0 * p.b_stride + c + j;
              column(j);
            });
          } else {
            t.cols = 2 * W;
            t.keep_panel = int64_t{kPanel} * steps;
            for (int64_t j = 0; j < cols; j += 2 * W) {
              t.b = p.b + k0 * p.b_stride + c + j;
              t.keep = panels + j / kPanel * t.keep_panel + j % kPanel;
              column(j);
              keeping.fn[rows](t);
            }
          }
        }
        const int64_t ready = m + rows;
        if (last && (ready == total || (ready - done) * cols >= kEpilogueElements)) {
          if (int32_t status = finish(ctx, row + done, row + ready, c, c + cols)) return status;
          done = ready;
        }
      }
    }
  }
  return NIR_OK;
}

template <class T>
int32_t matmul(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1,
               int64_t c0, int64_t c1, Layout layout) {
  const int64_t M = d[2], K = d[4];
  for (int64_t r = r0; r < r1 && c0 < c1;) {
    const int64_t batch = r / M, m0 = r - batch * M;
    const int64_t rows = min64(M - m0, r1 - r);
    // Blocks of nearly equal height: none is left with a few rows.
    const int64_t m1 = m0 + ceil_div(rows, ceil_div(rows, kBlockM));
    const int64_t b0 = batch / d[1], b1 = batch % d[1];
    const Problem<T> p{at<const T>(ptrs, 0) + b0 * d[5] + b1 * d[6],
                       d[7],
                       d[8],
                       at<const T>(ptrs, 1) + b0 * d[9] + b1 * d[10],
                       layout,
                       d[11],
                       at<T>(ptrs, 2) + b0 * d[12] + b1 * d[13],
                       d[14],
                       K};
    int32_t status;
    if (K <= 0) {
      zero_rows(p.c + m0 * p.c_m + c0, p.c_m, m1 - m0, c1 - c0);
      status = finish(ctx, r, r + (m1 - m0), c0, c1);
    } else if (d[8] != 1 ||
               (m1 - m0 > 4 && c1 - c0 > (layout == kRows ? kFewColumns : kFewInPanels))) {
      status = block<T, true>(ctx, p, m0, m1, c0, c1, r);
    } else {
      status = block<T, false>(ctx, p, m0, m1, c0, c1, r);
    }
    if (status) return status;
    r += m1 - m0;
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                        \
  NIR_KERNEL(matmul_##dtype##_packed) {                                         \
    return NIR_NS::matmul<T>(ctx, ptrs, dims, r0, r1, c0, c1, NIR_NS::kPanels); \
  }                                                                             \
  NIR_KERNEL(matmul_##dtype##_rows) {                                           \
    return NIR_NS::matmul<T>(ctx, ptrs, dims, r0, r1, c0, c1, NIR_NS::kRows);   \
  }                                                                             \
  NIR_KERNEL(matmul_##dtype##_cols) {                                           \
    return NIR_NS::matmul<T>(ctx, ptrs, dims, r0, r1, c0, c1, NIR_NS::kCols);   \
  }
DEFINE(f32, float)
DEFINE(f64, double)
DEFINE(i32, int32_t)
DEFINE(i64, int64_t)
