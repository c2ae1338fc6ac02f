// matmul: C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n].
//
//   ptrs  A, B, C
//   dims  0 batch0  1 batch1  2 M  3 N  4 K
//         5 A batch0 stride  6 A batch1 stride  7 A m stride  8 A k stride
//         9 B batch0 stride  10 B batch1 stride  11 B k stride (layout "rows" only)
//         12 C batch0 stride  13 C batch1 stride  14 C m stride
//   rows  (b0 * batch1 + b1) * M + m; cols n, split at multiples of 16
//   scratch  matmul_scratch in nir/targets/cpu.py
//
// Strides count elements; a stride of 0 broadcasts an operand over the batch. Layout "packed": B as
// pack_b leaves it, batch strides in elements of the packed buffer. Layout "rows": columns of B are
// contiguous, which saves the packing where few rows of A would share it.
#include "gemm.h"

namespace NIR_NS {
namespace {

constexpr int64_t kEpilogueRows = 4 * kMaxRows;  // rows finished before an epilogue runs over them

template <class T>
struct Problem {
  const T *a;
  int64_t a_m, a_k;
  const T *b;
  int64_t b_k;  // 0: packed
  T *c;
  int64_t c_m;
  int64_t K;
};

template <class T>
NIR_INLINE void zero_rows(T *c, int64_t c_m, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) memset(c + i * c_m, 0, static_cast<size_t>(cols) * sizeof(T));
}

// Rows [m0, m1), at most kBlockM of them, and columns [c0, c1) of one matrix of the batch; `row` is
// the first row's number in the iteration space.
template <class T, bool kPacked>
int32_t block(nir_ctx *ctx, const Problem<T> &p, int64_t m0, int64_t m1, int64_t c0, int64_t c1,
              int64_t row) {
  constexpr int W = kLanes<T>;
  const int64_t total = m1 - m0, tiles = ceil_div(total, kMaxRows);
  // One tile of rows takes all the columns it can; many tiles share a sliver of B that stays in L1.
  const int64_t sliver = max64(kPanel, tiles == 1 ? kMaxVectors * W : 2 * W);
  T *packed = static_cast<T *>(ctx->scratch);
  T *tail = packed + kPackedRows * kBlockK;  // the last columns of an unpacked B, padded to a panel
  const int64_t zero_offset = 0;
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK) {
    const int32_t steps = static_cast<int32_t>(min64(kBlockK, p.K - k0));
    const bool last = k0 + steps == p.K;
    if constexpr (kPacked) {
      for (int64_t i = 0; i < tiles; ++i) {
        int64_t m;
        int rows;
        tile_rows(total, tiles, i, &m, &rows);
        pack_rows(packed + i * kRowStep * steps, p.a + (m0 + m) * p.a_m + k0 * p.a_k, rows, steps,
                  p.a_m, p.a_k);
      }
    }
    for (int64_t c = c0; c < c1; c += sliver) {
      const int64_t cols = min64(sliver, c1 - c);
      const int64_t direct = p.b_k ? cols / W * W : cols;
      if (direct < cols)
        for (int64_t k = 0; k < steps; ++k)
          for (int j = 0; j < W; ++j)
            tail[k * W + j] = direct + j < cols ? p.b[(k0 + k) * p.b_k + c + direct + j] : T(0);
      int64_t done = 0;
      for (int64_t i = 0; i < tiles; ++i) {
        int64_t m;
        int rows;
        tile_rows(total, tiles, i, &m, &rows);
        const T *a[kMaxRows];
        T *out[kMaxRows], *at_column[kMaxRows];
        for (int r = 0; r < rows; ++r) {
          out[r] = p.c + (m0 + m + r) * p.c_m + c;
          a[r] = kPacked ? packed + i * kRowStep * steps : p.a + (m0 + m + r) * p.a_m + k0;
        }
        Tile<T> t{a, nullptr, 0, 0, 1, &steps, &zero_offset, at_column, 0, k0 > 0};
        auto column = [&](int64_t j) {
          for (int r = 0; r < rows; ++r) at_column[r] = out[r] + j;
        };
        t.b_step = p.b_k ? p.b_k : kPanel;
        t.b_panel = p.b_k ? kPanel : p.K * kPanel;
        tile_columns<kPacked>(t, rows, direct, [&](Tile<T> &t, int64_t j) {
          const int64_t n = c + j;
          t.b = p.b_k ? p.b + k0 * p.b_k + n
                      : p.b + n / kPanel * p.K * kPanel + k0 * kPanel + n % kPanel;
          column(j);
        });
        if (direct < cols) {
          t.b_step = W;
          tile_columns<kPacked>(t, rows, cols - direct, [&](Tile<T> &t, int64_t j) {
            t.b = tail;
            column(direct + j);
          });
        }
        const int64_t ready = m + rows;
        if (last && (ready == total || ready - done >= kEpilogueRows)) {
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
               int64_t c0, int64_t c1, bool b_packed) {
  const int64_t M = d[2], K = d[4];
  // Packing A buys contiguous loads; it pays once enough columns share it.
  const bool pack_a = d[8] != 1 || c1 - c0 > 64;
  for (int64_t r = r0; r < r1 && c0 < c1;) {
    const int64_t batch = r / M, m0 = r - batch * M;
    const int64_t m1 = min64(min64(M, m0 + (r1 - r)), m0 + kBlockM);
    const int64_t b0 = batch / d[1], b1 = batch % d[1];
    const Problem<T> p{at<const T>(ptrs, 0) + b0 * d[5] + b1 * d[6],
                       d[7],
                       d[8],
                       at<const T>(ptrs, 1) + b0 * d[9] + b1 * d[10],
                       b_packed ? 0 : max64(d[11], 1),
                       at<T>(ptrs, 2) + b0 * d[12] + b1 * d[13],
                       d[14],
                       K};
    int32_t status;
    if (K <= 0) {
      zero_rows(p.c + m0 * p.c_m + c0, p.c_m, m1 - m0, c1 - c0);
      status = finish(ctx, r, r + (m1 - m0), c0, c1);
    } else {
      status = pack_a ? block<T, true>(ctx, p, m0, m1, c0, c1, r)
                      : block<T, false>(ctx, p, m0, m1, c0, c1, r);
    }
    if (status) return status;
    r += m1 - m0;
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                              \
  NIR_KERNEL(matmul_##dtype##_packed) {                               \
    return NIR_NS::matmul<T>(ctx, ptrs, dims, r0, r1, c0, c1, true);  \
  }                                                                   \
  NIR_KERNEL(matmul_##dtype##_rows) {                                 \
    return NIR_NS::matmul<T>(ctx, ptrs, dims, r0, r1, c0, c1, false); \
  }
DEFINE(f32, float)
DEFINE(f64, double)
DEFINE(i32, int32_t)
DEFINE(i64, int64_t)
