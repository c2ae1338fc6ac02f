// conv2d and conv2d_input_grad: indirect GEMM on NHWC images. No im2col buffer: each tile of pixels
// holds pointers into the source image, one for each pixel and tap, and padding points at zeros.
//
//   conv2d             ptrs  x [N, H, W, C], packed w, y [N, OH, OW, O]
//                      rows  N * OH * OW output pixels; cols  O
//     w is packed by pack_b with batch = groups, K1 = KH * KW, K2 = C / groups, N = O / groups,
//     strides: batch O / groups, k1 (C / groups) * O, k2 O, n 1.
//   conv2d_input_grad  ptrs  dy [N, OH, OW, O], packed w, dx [N, H, W, C]
//                      rows  N * H * W input pixels; cols  C
//     w is packed with K1 = KH * KW, K2 = O / groups, N = C / groups,
//     strides: batch O / groups, k1 (C / groups) * O, k2 1, n O.
//   dims     conv.h
//   cols     split at multiples of 16, and only where groups is 1
//   scratch  conv2d_scratch in nir/targets/cpu.py
#include "conv.h"

namespace NIR_NS {
namespace {

constexpr int kBatchRows = 8 * kMaxRows;  // pixels that share a sliver of the weights while it is in L1
constexpr int kMaxPieces = 32;            // pieces in one block of the chain
constexpr int kFewChannels = 16;          // below, pixels are copied into rows: pointers would not pay
constexpr int64_t kRowElements = 65536;   // size of those rows

struct Piece {
  int64_t b_offset;       // step in the packed weights
  int64_t source_offset;  // from the pixel's base to the tap and channel
  int32_t length, dh, dw;
  int32_t run;  // taps from here on, this one included, that lie side by side in the source
};

struct Pixel {
  int64_t base;  // offset in the source image of tap base 0
  int64_t row;   // number of the destination row
  int32_t h, w;  // source position of tap base 0
};

struct Block {
  int32_t first, count;  // pieces
};

// One residue class of destination pixels with its taps.
template <class T>
struct Gather {
  GatherAxis h, w;
  int64_t KH, KW, dest_h, dest_w, dest_channels, source_channels, groups;
  const T *source;
  const T *weights;
  T *dest;
  // From scratch:
  Piece *taps;  // used taps; in pointer mode with channels already cut into pieces
  int64_t tap_count, block_count;
  Block *blocks;
  Pixel *pixels;
  const T **pointers;
  T *zeros, *rows;
  int32_t *lengths;
  int64_t *offsets;
  bool copies;        // few channels: copy each pixel's taps into a row of `rows`
  int64_t row_steps;  // steps of such a row
  int64_t batch_rows;
};

template <class T>
void take_scratch(Gather<T> &g, nir_ctx *ctx) {
  Scratch s{static_cast<char *>(ctx->scratch)};
  const int64_t channels = g.source_channels / g.groups, taps = g.KH * g.KW;
  g.copies = channels < kFewChannels;
  g.row_steps = taps * channels;
  g.batch_rows = kBatchRows;
  if (g.copies && g.row_steps > 0) {
    g.batch_rows = max64(kMaxRows, min64(kBatchRows, kRowElements / g.row_steps));
  }
  const int64_t pieces = taps * max64(1, ceil_div(channels, kBlockK));
  g.taps = s.take<Piece>(pieces);
  g.blocks = s.take<Block>(pieces);
  g.pixels = s.take<Pixel>(kBatchRows);
  g.pointers = s.take<const T *>(kMaxPieces * kBatchRows);
  g.lengths = s.take<int32_t>(kMaxPieces);
  g.offsets = s.take<int64_t>(kMaxPieces);
  g.zeros = s.take<T>(kBlockK);
  g.rows = s.take<T>(g.copies ? g.batch_rows * g.row_steps : 0);
  zero_run(g.zeros, kBlockK);
}

// Lists the used taps of a class and cuts them into blocks of at most kBlockK steps.
template <class T>
void plan(Gather<T> &g) {
  const int64_t channels = g.source_channels / g.groups;
  const int64_t chunk = g.copies ? channels : kBlockK;
  int64_t n = 0;
  for (int64_t kh = 0; kh < g.KH; ++kh) {
    int64_t bh, bw;
    if (!g.h.base(kh, &bh)) continue;
    for (int64_t kw = 0; kw < g.KW; ++kw) {
      if (!g.w.base(kw, &bw)) continue;
      for (int64_t c = 0; c < channels; c += chunk) {
        g.taps[n++] = {(kh * g.KW + kw) * channels + c, (bh * g.w.source + bw) * g.source_channels + c,
                       static_cast<int32_t>(min64(chunk, channels - c)), static_cast<int32_t>(bh),
                       static_cast<int32_t>(bw), 1};
      }
    }
  }
  for (int64_t i = n - 2; i >= 0 && g.copies; --i) {
    const Piece &next = g.taps[i + 1];
    if (next.dh == g.taps[i].dh && next.source_offset == g.taps[i].source_offset + next.length)
      g.taps[i].run = next.run + 1;
  }
  g.tap_count = n;
  g.block_count = 0;
  int64_t steps = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i == 0 || steps + g.taps[i].length > kBlockK || g.blocks[g.block_count - 1].count == kMaxPieces) {
      g.blocks[g.block_count++] = {static_cast<int32_t>(i), 0};
      steps = 0;
    }
    ++g.blocks[g.block_count - 1].count;
    steps += g.taps[i].length;
  }
}

NIR_INLINE bool inside(int32_t i, int64_t n) { return static_cast<uint64_t>(static_cast<int64_t>(i)) < static_cast<uint64_t>(n); }

// Copies the used taps of one pixel side by side. A run of taps is moved at once where all of it lies
// inside the image.
template <class T>
void copy_taps(const Gather<T> &g, const Pixel &pixel, const T *source, T *row) {
  for (int64_t i = 0; i < g.tap_count;) {
    const Piece &tap = g.taps[i];
    const int64_t n = tap.run;
    const Piece &end = g.taps[i + n - 1];
    const bool row_inside = inside(pixel.h + tap.dh, g.h.source);
    if (row_inside && inside(pixel.w + tap.dw, g.w.source) && inside(pixel.w + end.dw, g.w.source)) {
      copy_run(row, source + pixel.base + tap.source_offset, n * tap.length);
      row += n * tap.length;
    } else if (!row_inside) {
      zero_run(row, n * tap.length);
      row += n * tap.length;
    } else {
      for (int64_t j = i; j < i + n; ++j, row += tap.length) {
        if (inside(pixel.w + g.taps[j].dw, g.w.source))
          copy_run(row, source + pixel.base + g.taps[j].source_offset, tap.length);
        else
          zero_run(row, tap.length);
      }
    }
    i += n;
  }
}

// The pointers of one tile and block, [piece][row], and the pieces' lengths and offsets. Copied taps
// that are neighbours in the weights too become one piece.
template <class T>
int point(const Gather<T> &g, const Block &block, int64_t group, int64_t first, int rows, const T **pointers) {
  const int64_t channels = g.source_channels / g.groups;
  const T *source = g.source + group * channels;
  int n = 0;
  for (int64_t i = block.first; i < block.first + block.count; ++i) {
    const Piece &tap = g.taps[i];
    if (g.copies && n && g.offsets[n - 1] + g.lengths[n - 1] == tap.b_offset) {
      g.lengths[n - 1] += tap.length;
      continue;
    }
    g.lengths[n] = tap.length;
    g.offsets[n] = tap.b_offset;
    for (int r = 0; r < rows; ++r) {
      const Pixel &p = g.pixels[first + r];
      if (g.copies)
        pointers[n * rows + r] = g.rows + (first + r) * g.row_steps + i * channels;
      else
        pointers[n * rows + r] = inside(p.h + tap.dh, g.h.source) && inside(p.w + tap.dw, g.w.source)
                                     ? source + (p.base + tap.source_offset)
                                     : g.zeros;
    }
    ++n;
  }
  return n;
}

// Columns [c0, c1), all of one group, of the `count` pixels that are listed. With `epilogue`, they
// are consecutive rows.
template <class T>
int32_t run_batch(nir_ctx *ctx, const Gather<T> &g, int64_t count, int64_t group, int64_t c0, int64_t c1,
                  bool epilogue) {
  constexpr int64_t sliver = 2 * kLanes<T> > kPanel ? 2 * kLanes<T> : kPanel;
  const int64_t channels = g.source_channels / g.groups, columns = g.dest_channels / g.groups;
  const int64_t K = g.KH * g.KW * channels, tiles = ceil_div(count, kMaxRows);
  const T *weights = g.weights + group * ceil_div(columns, kPanel) * K * kPanel;
  if (g.copies)
    for (int64_t i = 0; i < count; ++i)
      copy_taps(g, g.pixels[i], g.source + group * channels, g.rows + i * g.row_steps);
  if (!g.block_count) {
    for (int64_t i = 0; i < count; ++i) zero_run(g.dest + g.pixels[i].row * g.dest_channels + c0, c1 - c0);
    return epilogue ? finish(ctx, g.pixels[0].row, g.pixels[0].row + count, c0, c1) : NIR_OK;
  }
  for (int64_t b = 0; b < g.block_count; ++b) {
    int pieces = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      int64_t m;
      int rows;
      tile_rows(count, tiles, i, &m, &rows);
      pieces = point(g, g.blocks[b], group, m, rows, g.pointers + m * kMaxPieces);
    }
    for (int64_t c = c0; c < c1; c += sliver) {
      const int64_t cols = min64(sliver, c1 - c);
      for (int64_t i = 0; i < tiles; ++i) {
        int64_t m;
        int rows;
        tile_rows(count, tiles, i, &m, &rows);
        T *out[kMaxRows];
        Tile<T> t{g.pointers + m * kMaxPieces, nullptr, kPanel, K * kPanel, pieces, g.lengths, g.offsets, out,
                  0, b > 0};
        tile_columns<false>(t, rows, cols, [&](Tile<T> &t, int64_t j) {
          const int64_t n = c - group * columns + j;
          t.b = weights + n / kPanel * K * kPanel + n % kPanel;
          for (int r = 0; r < rows; ++r) out[r] = g.dest + g.pixels[m + r].row * g.dest_channels + c + j;
        });
      }
      if (epilogue && b + 1 == g.block_count) {
        int32_t status = finish(ctx, g.pixels[0].row, g.pixels[0].row + count, c, c + cols);
        if (status) return status;
      }
    }
  }
  return NIR_OK;
}

template <class T>
int32_t run_groups(nir_ctx *ctx, const Gather<T> &g, int64_t count, int64_t c0, int64_t c1, bool epilogue) {
  const int64_t columns = g.dest_channels / g.groups;
  for (int64_t c = c0; c < c1 && count;) {
    const int64_t group = c / columns, end = min64(c1, (group + 1) * columns);
    if (int32_t status = run_batch(ctx, g, count, group, c, end, epilogue)) return status;
    c = end;
  }
  return NIR_OK;
}

// The pixels of g's class among the destination rows [r0, r1).
template <class T>
int32_t run_class(nir_ctx *ctx, Gather<T> &g, int64_t r0, int64_t r1, int64_t c0, int64_t c1, bool epilogue) {
  int64_t count = 0;
  for (int64_t r = r0; r < r1;) {
    const int64_t line = r / g.dest_w, image = line / g.dest_h, y = line % g.dest_h, x0 = r % g.dest_w;
    const int64_t x1 = min64(g.dest_w, x0 + (r1 - r));
    if (y % g.h.step == g.h.first) {
      const int64_t skip = (g.w.first - x0 % g.w.step + g.w.step) % g.w.step;
      for (int64_t x = x0 + skip; x < x1; x += g.w.step) {
        const int64_t h = (y - g.h.first) / g.h.step * g.h.source_step;
        const int64_t w = (x - g.w.first) / g.w.step * g.w.source_step;
        g.pixels[count++] = {((image * g.h.source + h) * g.w.source + w) * g.source_channels,
                             line * g.dest_w + x, static_cast<int32_t>(h), static_cast<int32_t>(w)};
        if (count == g.batch_rows) {
          if (int32_t status = run_groups(ctx, g, count, c0, c1, epilogue)) return status;
          count = 0;
        }
      }
    }
    r += x1 - x0;
  }
  return run_groups(ctx, g, count, c0, c1, epilogue);
}

template <class T>
int32_t conv2d(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1, int64_t c0,
               int64_t c1) {
  const ConvDims d(dims);
  Gather<T> g{};
  g.h = forward_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h);
  g.w = forward_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w);
  g.KH = d.KH, g.KW = d.KW, g.dest_h = d.OH, g.dest_w = d.OW, g.groups = d.groups;
  g.dest_channels = d.O, g.source_channels = d.C;
  g.source = at<const T>(ptrs, 0), g.weights = at<const T>(ptrs, 1), g.dest = at<T>(ptrs, 2);
  take_scratch(g, ctx);
  plan(g);
  return run_class(ctx, g, r0, r1, c0, c1, true);
}

template <class T>
int32_t conv2d_input_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
                          int64_t c0, int64_t c1) {
  const ConvDims d(dims);
  Gather<T> g{};
  g.KH = d.KH, g.KW = d.KW, g.dest_h = d.H, g.dest_w = d.W, g.groups = d.groups;
  g.dest_channels = d.C, g.source_channels = d.O;
  g.source = at<const T>(ptrs, 0), g.weights = at<const T>(ptrs, 1), g.dest = at<T>(ptrs, 2);
  take_scratch(g, ctx);
  // A stretch of rows through all residue classes while it is in cache, then its epilogue.
  const bool one_class = d.stride_h * d.stride_w == 1;
  const int64_t stretch = one_class ? r1 - r0 : g.batch_rows * d.stride_h * d.stride_w;
  for (int64_t r = r0; r < r1; r += stretch) {
    const int64_t end = min64(r1, r + stretch);
    for (int64_t a = 0; a < d.stride_h; ++a)
      for (int64_t b = 0; b < d.stride_w; ++b) {
        g.h = input_grad_axis(d.H, d.OH, d.stride_h, d.pad_h, d.dil_h, a);
        g.w = input_grad_axis(d.W, d.OW, d.stride_w, d.pad_w, d.dil_w, b);
        plan(g);
        if (int32_t status = run_class(ctx, g, r, end, c0, c1, one_class)) return status;
      }
    if (!one_class)
      if (int32_t status = finish(ctx, r, end, c0, c1)) return status;
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                                                     \
  NIR_KERNEL(conv2d_##dtype) {                                               \
    return NIR_NS::conv2d<T>(ctx, ptrs, dims, r0, r1, c0, c1);               \
  }                                                                          \
  NIR_KERNEL(conv2d_input_grad_##dtype) {                                    \
    return NIR_NS::conv2d_input_grad<T>(ctx, ptrs, dims, r0, r1, c0, c1);    \
  }
DEFINE(f32, float)
DEFINE(f64, double)
