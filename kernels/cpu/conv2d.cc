// conv2d and conv2d_input_grad: indirect GEMM on NHWC images. No im2col buffer: each tile of pixels
// holds pointers into the source image, one for each pixel and tap. Pixels of a batch are sorted by
// the taps that lie inside the image, and a tile has pixels of one such class: padding is never
// multiplied, whatever the tiles are, unless channels are few (or the kernel larger than 8 x 8),
// where it is zeros.
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

// Pixels that share a sliver of the weights while it is near: of few channels, and at most.
constexpr int kFewRows = 8 * kMaxRows, kBatchRows = 512;
// Of a chain of one block, whose epilogue is next: what it reads is still near.
constexpr int kOneBlockRows = 128;
constexpr int kMaxPieces = 32;    // pieces in one block of the chain
constexpr int64_t kPointers = 3584;   // of the tiles of a batch in one block
constexpr int64_t kClassTaps = 8;     // of an axis, in the mask of a class
constexpr int kClasses = 256;         // more than there are: (2 * 8 - 1) squared
constexpr int64_t kAhead = 24;        // steps from what is multiplied to what is fetched
constexpr int kFewChannels = 16;  // below, taps side by side in the source make one piece
constexpr int64_t kRowElements = 65536;  // size of `rows` below, unless one tile needs more

// A stretch of the chain that lies side by side in the source and in the weights: channels of one
// tap, or, where channels are few, of neighbouring taps in one kernel row.
struct Piece {
  int64_t b_offset;       // step in the packed weights
  int64_t source_offset;  // from the pixel's base
  int32_t length, dh, dw0, dw1;
  uint32_t taps;          // the bits that a class needs to read it
};

struct Pixel {
  int64_t base;  // offset in the source image of tap base 0
  int64_t row;   // number of the destination row
  int32_t h, w;  // source position of tap base 0
  int32_t of;    // class
};

struct Block {
  int32_t first, count;  // pieces
};

// Pixels that read inside the source through the same taps: bits of kernel rows, then of columns.
struct Class {
  uint32_t taps;
  int32_t count, next;
};

// Rows [first, first + rows) of a batch's pixels, all of one class, and what they read in a block.
struct Rows {
  int32_t first, rows;
  uint32_t taps;
  int32_t pieces;
  int64_t pointers, lists;  // where theirs begin
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
  Piece *pieces;
  int64_t piece_count, block_count;
  Block *blocks;
  Pixel *pixels, *sorted;
  Class *classes;
  Rows *tiles;
  const T **pointers;
  T *zeros;
  T *rows;  // [batch_rows][row_steps]: pieces across the left or right edge, copied with their
            // padding
  int32_t *lengths;
  int64_t *offsets;
  int64_t inner_h0, inner_h1, inner_w0, inner_w1;  // positions whose taps are all inside
  bool joins;                                      // few channels: pieces may span taps
  bool sorts;                                      // tiles have pixels of one class
  int64_t row_steps, batch_rows;
  Largest tile;
};

template <class T>
void take_scratch(Gather<T> &g, nir_ctx *ctx) {
  g.tile = largest_tile<T>(g.dest_channels / g.groups);
  Scratch s{static_cast<char *>(ctx->scratch)};
  const int64_t channels = g.source_channels / g.groups, taps = g.KH * g.KW;
  g.joins = channels < kFewChannels;
  g.row_steps = taps * channels;
  g.sorts = !g.joins && g.KH <= kClassTaps && g.KW <= kClassTaps;
  const int64_t in_block = min64(kMaxPieces, max64(1, ceil_div(kBlockK, max64(channels, 1))));
  g.batch_rows = g.sorts ? min64(kBatchRows, kPointers / in_block) : kFewRows;
  if (g.row_steps <= kBlockK) g.batch_rows = min64(g.batch_rows, kOneBlockRows);
  if (g.joins && g.row_steps > 0)
    g.batch_rows = max64(kMaxRows, min64(kFewRows, kRowElements / g.row_steps));
  const int64_t pieces = taps * max64(1, ceil_div(channels, kBlockK));
  g.pieces = s.take<Piece>(pieces);
  g.blocks = s.take<Block>(pieces);
  g.pixels = s.take<Pixel>(kBatchRows);
  g.sorted = s.take<Pixel>(kBatchRows);
  g.tiles = s.take<Rows>(kBatchRows);
  g.classes = s.take<Class>(kClasses);
  g.pointers = s.take<const T *>(kPointers);
  g.lengths = s.take<int32_t>(kPointers);
  g.offsets = s.take<int64_t>(kPointers);
  g.zeros = s.take<T>(kBlockK);
  g.rows = s.take<T>(g.joins ? g.batch_rows * g.row_steps : 0);
  zero_run(g.zeros, kBlockK);
}

// Cuts the used taps of a class into pieces, and those into blocks of at most kBlockK steps.
template <class T>
void plan(Gather<T> &g) {
  const int64_t channels = g.source_channels / g.groups;
  int64_t n = 0;
  for (int64_t kh = 0; kh < g.KH; ++kh) {
    const int64_t line_start = n;
    int64_t bh, bw;
    if (!g.h.base(kh, &bh)) continue;
    for (int64_t kw = 0; kw < g.KW; ++kw) {
      if (!g.w.base(kw, &bw)) continue;
      for (int64_t c = 0; c < channels; c += kBlockK) {
        const int64_t b_offset = (kh * g.KW + kw) * channels + c;
        const int64_t source_offset = (bh * g.w.source + bw) * g.source_channels + c;
        const int32_t length = static_cast<int32_t>(min64(kBlockK, channels - c));
        Piece *last = n > line_start ? &g.pieces[n - 1] : nullptr;
        if (g.joins && last && last->b_offset + last->length == b_offset &&
            last->source_offset + last->length == source_offset &&
            last->length + length <= kBlockK) {
          last->length += length;
          last->dw1 = static_cast<int32_t>(bw);
        } else {
          g.pieces[n++] = {b_offset,
                           source_offset,
                           length,
                           static_cast<int32_t>(bh),
                           static_cast<int32_t>(bw),
                           static_cast<int32_t>(bw),
                           g.sorts ? 1u << kh | 1u << (kClassTaps + kw) : 0};
        }
      }
    }
  }
  g.piece_count = n;
  g.inner_h0 = g.inner_w0 = 0, g.inner_h1 = g.h.source, g.inner_w1 = g.w.source;
  for (int64_t i = 0; i < n; ++i) {
    const Piece &p = g.pieces[i];
    g.inner_h0 = max64(g.inner_h0, -p.dh), g.inner_h1 = min64(g.inner_h1, g.h.source - p.dh);
    g.inner_w0 = max64(g.inner_w0, -p.dw0), g.inner_w1 = min64(g.inner_w1, g.w.source - p.dw1);
  }
  g.block_count = 0;
  int64_t steps = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i == 0 || steps + g.pieces[i].length > kBlockK ||
        g.blocks[g.block_count - 1].count == kMaxPieces) {
      g.blocks[g.block_count++] = {static_cast<int32_t>(i), 0};
      steps = 0;
    }
    ++g.blocks[g.block_count - 1].count;
    steps += g.pieces[i].length;
  }
}

NIR_INLINE bool inside(int32_t i, int64_t n) {
  return static_cast<uint64_t>(static_cast<int64_t>(i)) < static_cast<uint64_t>(n);
}

// What a pixel reads for a piece: the source itself, zeros, or, across the left or right edge, a
// copy with zeros for the taps outside.
template <class T>
NIR_INLINE const T *resolve(const Gather<T> &g, const Piece &piece, const Pixel &pixel,
                            const T *source, T *row) {
  if (!inside(pixel.h + piece.dh, g.h.source)) return g.zeros;
  const bool first = inside(pixel.w + piece.dw0, g.w.source),
             last = inside(pixel.w + piece.dw1, g.w.source);
  const T *from = source + (pixel.base + piece.source_offset);
  if (first && last) return from;
  if (piece.dw0 == piece.dw1) return g.zeros;
  // Only joined pieces come here: all channels of each tap, neighbours one column apart.
  row += piece.b_offset;
  const int64_t column = pixel.w + piece.dw0, length = piece.length, depth = g.source_channels;
  const int64_t lo = max64(0, min64(length, -column * depth));
  const int64_t hi = max64(lo, min64(length, (g.w.source - column) * depth));
  zero_run(row, lo);
  copy_run(row + lo, from + lo, hi - lo);
  zero_run(row + hi, length - hi);
  return row;
}

// The taps through which a pixel reads inside the source.
template <class T>
uint32_t taps_of(const Gather<T> &g, const Pixel &p) {
  uint32_t taps = 0;
  int64_t b;
  for (int64_t k = 0; k < g.KH; ++k)
    if (g.h.base(k, &b) && inside(p.h + b, g.h.source)) taps |= 1u << k;
  for (int64_t k = 0; k < g.KW; ++k)
    if (g.w.base(k, &b) && inside(p.w + b, g.w.source)) taps |= 1u << (kClassTaps + k);
  return taps;
}

// Sorts the batch by class and cuts the classes into tiles: their number.
template <class T>
int64_t cut_tiles(const Gather<T> &g, int64_t count) {
  int classes = 0;
  for (int64_t i = 0; i < count; ++i) {
    Pixel &p = g.pixels[i];
    const bool inner = !g.sorts || (p.h >= g.inner_h0 && p.h < g.inner_h1 && p.w >= g.inner_w0 &&
                                    p.w < g.inner_w1);
    const uint32_t taps = inner ? ~0u : taps_of(g, p);
    int c = 0;
    while (c < classes && g.classes[c].taps != taps) ++c;
    if (c == classes) g.classes[classes++] = {taps, 0, 0};
    ++g.classes[c].count;
    p.of = c;
  }
  int64_t n = 0;
  int32_t start = 0;
  for (int c = 0; c < classes; ++c) {
    Class &k = g.classes[c];
    const int64_t tiles = ceil_div(k.count, g.tile.rows);
    for (int64_t i = 0; i < tiles; ++i) {
      int64_t m;
      int rows;
      tile_rows(k.count, tiles, i, &m, &rows);
      g.tiles[n++] = {start + static_cast<int32_t>(m), rows, k.taps, 0, 0, 0};
    }
    k.next = start;
    start += k.count;
  }
  for (int64_t i = 0; i < count; ++i) g.sorted[g.classes[g.pixels[i].of].next++] = g.pixels[i];
  return n;
}

// What the tiles read in a block: pieces, and pointers [piece][row], from where `next` says on.
struct Next {
  int64_t pointers = 0, lists = 0;
};
template <class T>
void point(const Gather<T> &g, const Block &block, int64_t group, Rows *tile_list, int64_t tiles,
           Next &next) {
  const T *source = g.source + group * (g.source_channels / g.groups);
  int64_t pointers = next.pointers, lists = next.lists;
  for (int64_t t = 0; t < tiles; ++t) {
    Rows &tile = tile_list[t];
    tile.pieces = 0, tile.pointers = pointers, tile.lists = lists;
    const Pixel *pixels = g.sorted + tile.first;
    for (int32_t i = block.first; i < block.first + block.count; ++i) {
      const Piece &piece = g.pieces[i];
      if ((piece.taps & tile.taps) != piece.taps) continue;
      g.lengths[lists] = piece.length, g.offsets[lists++] = piece.b_offset;
      ++tile.pieces;
      for (int32_t r = 0; r < tile.rows; ++r) {
        const Pixel &p = pixels[r];
        const bool inner = g.sorts || (p.h >= g.inner_h0 && p.h < g.inner_h1 &&
                                       p.w >= g.inner_w0 && p.w < g.inner_w1);
        g.pointers[pointers++] =
            inner ? source + (p.base + piece.source_offset)
                  : resolve(g, piece, p, source, g.rows + (tile.first + r) * g.row_steps);
      }
    }
  }
  next = {pointers, lists};
}

// Columns [c0, c1), all of one group, of the `count` pixels that are listed. With `epilogue`, they
// are consecutive rows.
template <class T>
int32_t run_batch(nir_ctx *ctx, const Gather<T> &g, int64_t count, int64_t group, int64_t c0,
                  int64_t c1, bool epilogue) {
  const int64_t sliver = g.tile.columns;
  const int64_t channels = g.source_channels / g.groups, columns = g.dest_channels / g.groups;
  const int64_t K = g.KH * g.KW * channels, first_row = g.pixels[0].row;
  const T *weights = g.weights + group * ceil_div(columns, kPanel) * K * kPanel;
  if (!g.block_count) {
    for (int64_t i = 0; i < count; ++i)
      zero_run(g.dest + g.pixels[i].row * g.dest_channels + c0, c1 - c0);
    return epilogue ? finish(ctx, first_row, first_row + count, c0, c1) : NIR_OK;
  }
  const int64_t tiles = cut_tiles(g, count);
  const auto multiply = [&](int64_t b, const Rows *list, int64_t c, int64_t cols) {
    int64_t ahead = kAhead * kPanel;  // the first tile fetches the sliver for all
    for (int64_t i = 0; i < tiles; ++i) {
      const Rows &tile = list[i];
      if (b > 0 && !tile.pieces) continue;
      T *out[kMaxRows];
      Tile<T> t{g.pointers + tile.pointers,
                nullptr,
                kPanel,
                K * kPanel,
                tile.pieces,
                g.lengths + tile.lists,
                g.offsets + tile.lists,
                out,
                0,
                b > 0};
      t.ahead = ahead;
      if (tile.pieces) ahead = 0;
      const Pixel *pixels = g.sorted + tile.first;
      tile_columns<false>(t, tile.rows, cols, [&](Tile<T> &t, int64_t j) {
        const int64_t n = c - group * columns + j;
        t.b = weights + n / kPanel * K * kPanel + n % kPanel;
        for (int r = 0; r < tile.rows; ++r)
          out[r] = g.dest + pixels[r].row * g.dest_channels + c + j;
      });
    }
  };
  Next next;
  if (tiles * g.block_count <= kBatchRows && count * g.piece_count <= kPointers) {
    // Few pixels: all they read is listed at once, and the weights stream by in the order in which
    // they lie.
    for (int64_t b = g.block_count - 1; b >= 0; --b) {
      if (b) memcpy(g.tiles + b * tiles, g.tiles, static_cast<size_t>(tiles) * sizeof(Rows));
      point(g, g.blocks[b], group, g.tiles + b * tiles, tiles, next);
    }
    for (int64_t c = c0; c < c1; c += sliver) {
      const int64_t cols = min64(sliver, c1 - c);
      for (int64_t b = 0; b < g.block_count; ++b) multiply(b, g.tiles + b * tiles, c, cols);
      if (epilogue)
        if (int32_t status = finish(ctx, first_row, first_row + count, c, c + cols)) return status;
    }
    return NIR_OK;
  }
  for (int64_t b = 0; b < g.block_count; ++b) {
    next = {};
    point(g, g.blocks[b], group, g.tiles, tiles, next);
    for (int64_t c = c0; c < c1; c += sliver) {
      const int64_t cols = min64(sliver, c1 - c);
      multiply(b, g.tiles, c, cols);
      if (epilogue && b + 1 == g.block_count)
        if (int32_t status = finish(ctx, first_row, first_row + count, c, c + cols)) return status;
    }
  }
  return NIR_OK;
}

template <class T>
int32_t run_groups(nir_ctx *ctx, const Gather<T> &g, int64_t count, int64_t c0, int64_t c1,
                   bool epilogue) {
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
int32_t run_class(nir_ctx *ctx, Gather<T> &g, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                  bool epilogue) {
  int64_t count = 0;
  for (int64_t r = r0; r < r1;) {
    const int64_t line = r / g.dest_w, image = line / g.dest_h, y = line % g.dest_h,
                  x0 = r % g.dest_w;
    const int64_t x1 = min64(g.dest_w, x0 + (r1 - r));
    if (y % g.h.step == g.h.first) {
      const int64_t skip = (g.w.first - x0 % g.w.step + g.w.step) % g.w.step;
      for (int64_t x = x0 + skip; x < x1; x += g.w.step) {
        const int64_t h = (y - g.h.first) / g.h.step * g.h.source_step;
        const int64_t w = (x - g.w.first) / g.w.step * g.w.source_step;
        g.pixels[count++] = {
            ((image * g.h.source + h) * g.w.source + w) * g.source_channels,
            line * g.dest_w + x, static_cast<int32_t>(h), static_cast<int32_t>(w), 0};
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
int32_t conv2d(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0, int64_t r1,
               int64_t c0, int64_t c1) {
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
int32_t conv2d_input_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *dims, int64_t r0,
                          int64_t r1, int64_t c0, int64_t c1) {
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

#define DEFINE(dtype, T)                                                                    \
  NIR_KERNEL(conv2d_##dtype) { return NIR_NS::conv2d<T>(ctx, ptrs, dims, r0, r1, c0, c1); } \
  NIR_KERNEL(conv2d_input_grad_##dtype) {                                                   \
    return NIR_NS::conv2d_input_grad<T>(ctx, ptrs, dims, r0, r1, c0, c1);                   \
  }
DEFINE(f32, float)
DEFINE(f64, double)
