// The register tile that matmul and the convolutions share.
//
// C[i, :] (+)= sum over pieces p, over k < length[p] of A[p][i][k] * B[offset[p] + k, :]
//
// A tile is `rows` rows by `vectors` vectors of columns. Every element of C is one ascending chain
// of fused multiply-adds from zero per block of at most kBlockK steps, and blocks are added to C in
// order: the result depends neither on the tile's size nor on who computes it, so all ISA levels
// and all splits of the range agree bit for bit.
#ifndef NIR_GEMM_H
#define NIR_GEMM_H

#include "simd.h"
#include "transpose.h"

namespace NIR_NS {

constexpr int kPanel = 16;    // columns of a packed panel of B, on every ISA level
constexpr int kBlockK = 256;  // steps of one chain

// Rows of the largest tile: as many accumulators as registers allow, two vectors of columns wide.
#if defined(__AVX512F__)
constexpr int kMaxRows = 14;
#elif defined(__AVX2__)
constexpr int kMaxRows = 6;
#else
constexpr int kMaxRows = 4;
#endif
constexpr int kMaxVectors = 8;
// Elements from one k to the next in a packed tile of A: a power of two, so that a row of 14 or
// fewer floats never crosses a cache line.
constexpr int kRowStep = kMaxRows > 8 ? 16 : kMaxRows > 4 ? 8 : 4;
// Rows of A packed at a time, 336 KB of f32 with their padding: within a 1 MB L2.
constexpr int kPackedRows = 336;
constexpr int kBlockM = kPackedRows / kRowStep * kMaxRows;

template <class T>
struct Tile {
  const T *const *a;  // kPacked: one pointer, step k holds `rows` elements from k * kRowStep on;
                      // else `rows` pointers per piece, k contiguous
  const T *b;         // first column of the tile, step 0
  int64_t b_step;     // elements from one k to the next
  int64_t b_panel;    // elements from one panel of kPanel columns to the next
  int pieces;
  const int32_t *length;  // steps of each piece
  const int64_t *offset;  // first step of each piece in b
  T *const *c;            // `rows` row pointers, at the first column of the tile
  int cols;               // columns of C to write, at most vectors * lanes
  bool add;               // add to C, or overwrite it
  // Prefetched while a step is at b: b + ahead, for a B that no cache holds. 0: nothing new.
  int64_t ahead = 0;
  // kKeep: where the columns read are left as packed panels, for the tiles of rows that follow.
  T *keep = nullptr;
  int64_t keep_panel = 0;
};

template <int n>
struct Int {
  static constexpr int value = n;
};

template <class T, int kRows, int kVectors, bool kPacked, bool kKeep = false>
void tile(const Tile<T> &t) {
  constexpr int W = kLanes<T>, kPerPanel = kPanel / W;
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Vec<T>{};

  // C arrives while the chains run: a tile's rows are far apart, where no hardware looks ahead.
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) __builtin_prefetch(t.c[i] + j * W, 1, 2);

  T *keep = t.keep;
  const int64_t keep_panel = t.keep_panel, ahead = t.ahead;
  for (int p = 0; p < t.pieces; ++p) {
    const T *a[kPacked ? 1 : kRows];
#pragma GCC unroll 16
    for (int i = 0; i < (kPacked ? 1 : kRows); ++i) a[i] = t.a[(kPacked ? 1 : kRows) * p + i];
    const T *b = t.b + t.offset[p] * t.b_step;
    const int64_t steps = t.length[p], b_step = t.b_step, b_panel = t.b_panel;
    // With more row pointers than registers, each is read from the stack once for two steps.
    constexpr int kUnroll = !kPacked && kRows > 7 && kVectors == 1 ? 2 : 1;
    int64_t k = 0;
    const auto advance = [&](auto unroll) __attribute__((always_inline)) {
      constexpr int U = decltype(unroll)::value;
      Vec<T> bv[U][kVectors];
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u, b += b_step)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          const T *at = b + (j / kPerPanel) * b_panel + (j % kPerPanel) * W;
          bv[u][j] = load(at);
          // One prefetch for each cache line, into L2: distant rows may share a set of L1.
          if (j * NIR_VECTOR_BYTES % 64 == 0) __builtin_prefetch(at + ahead, 0, 2);
          if constexpr (kKeep)
            store(keep + (j / kPerPanel) * keep_panel + (j % kPerPanel) * W, bv[u][j]);
        }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) {
          const Vec<T> av =
              broadcast(kPacked ? a[0][(k + u) * kRowStep + i] : a[kPacked ? 0 : i][k + u]);
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) acc[i][j] = fma<T>(av, bv[u][j], acc[i][j]);
        }
      k += U;
      if constexpr (kKeep) keep += U * kPanel;
    };
    while (k + kUnroll <= steps) advance(Int<kUnroll>{});
    if (kUnroll > 1 && k < steps) advance(Int<1>{});
  }

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    T *c = t.c[i];
    if (t.cols == kVectors * W) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        store(c + j * W, t.add ? load(c + j * W) + acc[i][j] : acc[i][j]);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        int n = t.cols - j * W;
        n = n < 0 ? 0 : n > W ? W : n;
        Vec<T> v = acc[i][j];
        if (n && t.add) v = load_first(c + j * W, n) + v;
        if (n) store_first(c + j * W, v, n);
      }
    }
  }
}

// The widest tile, in vectors, for a number of rows: few rows need many columns in flight to hide
// the latency of the chains.
constexpr int widest(int rows) {
#if defined(__AVX512F__)
  return rows <= 2 ? 8 : rows <= 6 ? 4 : 2;
#else
  return rows == 1 ? 8 : rows == 2 ? 4 : 2;
#endif
}

// The largest tile of rows that are read where they lie, and the columns that all tiles do before
// the next ones. Rows of many channels lie 4 KB apart, or near it, where all of a tile share a set
// of L1: six fit its eight ways, and their pointers the registers. That needs the columns to keep
// the chains as many.
struct Largest {
  int64_t rows, columns;
};
template <class T>
constexpr Largest largest_tile(int64_t columns) {
  constexpr int64_t kFewRows = 6, W = kLanes<T>, kNarrow = 2 * W > kPanel ? 2 * W : kPanel;
  if (kMaxRows > kFewRows && columns >= 4 * W) return {kFewRows, 4 * W};
  return {kMaxRows, kNarrow};
}

template <class T>
using TileFn = void (*)(const Tile<T> &);

// tile<T, rows, 1 << log2_vectors, kPacked>, or null where that does not fit the registers.
template <class T, bool kPacked>
struct TileTable {
  TileFn<T> fn[kMaxRows + 1][4];
  constexpr TileTable() : fn{} { fill<kMaxRows>(); }
  template <int kRows>
  constexpr void fill() {
    fn[kRows][0] = tile<T, kRows, 1, kPacked>;
    fn[kRows][1] = tile<T, kRows, 2, kPacked>;
    if constexpr (widest(kRows) >= 4) fn[kRows][2] = tile<T, kRows, 4, kPacked>;
    if constexpr (widest(kRows) >= 8) fn[kRows][3] = tile<T, kRows, 8, kPacked>;
    if constexpr (kRows > 1) fill<kRows - 1>();
  }
};

// Computes `cols` columns of a tile of `rows` rows, as many vectors at a time as fit.
// `column(t, j)` sets t.b and t.c for the columns from j on.
template <bool kPacked, class T, class Column>
NIR_INLINE void tile_columns(Tile<T> &t, int rows, int64_t cols, Column column) {
  static constexpr TileTable<T, kPacked> table{};
  constexpr int W = kLanes<T>;
  for (int64_t j = 0; j < cols;) {
    int64_t vectors = ceil_div(cols - j, W);
    int log2 = 3;
    while (log2 > 0 && (!table.fn[rows][log2] || (1 << log2) > vectors)) --log2;
    int64_t width = static_cast<int64_t>(W) << log2;
    t.cols = static_cast<int>(min64(width, cols - j));
    column(t, j);
    table.fn[rows][log2](t);
    j += width;
  }
}

// tile<T, rows, 2, kPacked, kKeep = true>, for the first of several tiles of rows. Those are nearly
// equal, so none has less than half the rows of the largest.
template <class T, bool kPacked>
struct KeepTable {
  static constexpr int kLeast = kMaxRows / 2;
  TileFn<T> fn[kMaxRows + 1];
  constexpr KeepTable() : fn{} { fill<kMaxRows>(); }
  template <int kRows>
  constexpr void fill() {
    fn[kRows] = tile<T, kRows, 2, kPacked, true>;
    if constexpr (kRows > kLeast) fill<kRows - 1>();
  }
};

// Rows [m, m + rows) of tile number `i` of `count` tiles over `total` rows: tiles of nearly equal
// height, so that no tile is left with one or two rows.
NIR_INLINE void tile_rows(int64_t total, int64_t count, int64_t i, int64_t *m, int *rows) {
  int64_t base = total / count, rest = total % count;
  *m = i * base + min64(i, rest);
  *rows = static_cast<int>(base + (i < rest));
}

// Steps of the layout of a packed A, dst[k * kRowStep + i] = src[i * row_stride + k * k_stride].
template <class T>
void pack_rows(T *dst, const T *src, int rows, int64_t steps, int64_t row_stride,
               int64_t k_stride) {
  constexpr int W = kLanes<T>;
  if (row_stride == 1) {
    for (int64_t k = 0; k < steps; ++k) copy_run(dst + k * kRowStep, src + k * k_stride, rows);
  } else if (k_stride == 1) {
    for (int i = 0; i < rows; i += W)
      transpose_run(dst + i, kRowStep, src + i * row_stride, row_stride,
                    static_cast<int>(min64(W, rows - i)), steps);
  } else {
    for (int64_t k = 0; k < steps; ++k)
      for (int i = 0; i < rows; ++i) dst[k * kRowStep + i] = src[i * row_stride + k * k_stride];
  }
}

}  // namespace NIR_NS

#endif  // NIR_GEMM_H
