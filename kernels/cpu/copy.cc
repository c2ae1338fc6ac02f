// Moving elements without looking at them, by size: 8, 16, 32 or 64 bits.
//
//   copy  ptrs  source, destination
//         dims  0 ndim (1 to 8)  1 source offset  2 destination offset, then for each axis in turn
//               3 + 3 a  size   4 + 3 a  source stride   5 + 3 a  destination stride
//         rows  product of all sizes but the last; cols  the last size
//   pad   ptrs  source, destination (contiguous)
//         dims  0 ndim (1 to 8)  1 the padding element's bits, then for each axis in turn
//               2 + 4 a  source size   3 + 4 a  low padding   4 + 4 a  factor   5 + 4 a destination
//               size
//         rows  product of all destination sizes but the last; cols  the last
//         destination i holds source (i - low) / factor where that is a whole number inside it
//   fill  ptrs  destination
//         dims  0 the element's bits
//         rows  number of elements; cols  1
//   concat_bytes  ptrs  sources, destination
//         dims  0 number of sources, then 1 + i  bytes of source i in one row
//         rows  rows of all of them; cols  1      no epilogue
//
// Offsets and strides count elements and may be negative. Transpose, slice, flip and
// broadcast are copies; dilate is a pad. Where the source's contiguous axis is put second to last,
// tiles keep both sides in cache.
#include "transpose.h"

namespace NIR_NS {
namespace {

constexpr int kMaxAxes = 8;
constexpr int64_t kTile = 16;
constexpr int64_t kBand = 64;

// dst[a * da + b] = src[a + b * sb] for a, b < kTile, in registers: each line of either side is
// touched once, since lines a power of two apart would push each other out of the cache.
template <class T>
NIR_INLINE void transpose_tile(T *dst, const T *src, int64_t da, int64_t sb) {
  if constexpr (sizeof(T) >= 4) {
    constexpr int W = kLanes<T>;
    for (int b = 0; b < kTile; b += W)
      for (int a = 0; a < kTile; a += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) v[i] = load(src + a + (b + i) * sb);
        transpose<T>(v);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(dst + (a + i) * da + b, v[i]);
      }
  } else {
    T block[kTile][kTile];
    for (int b = 0; b < kTile; ++b) memcpy(block[b], src + b * sb, sizeof(block[b]));
    for (int a = 0; a < kTile; ++a)
      for (int b = 0; b < kTile; ++b) dst[a * da + b] = block[b][a];
  }
}

// dst[a * da + b * db] = src[a * sa + b * sb] for a < A, b < B.
template <class T>
void plane(T *dst, const T *src, int64_t A, int64_t B, int64_t sa, int64_t da, int64_t sb,
           int64_t db) {
  if (sb == 1 && db == 1) {
    for (int64_t a = 0; a < A; ++a)
      memcpy(dst + a * da, src + a * sa, static_cast<size_t>(B) * sizeof(T));
    return;
  }
  const bool turns = sa == 1 && db == 1;
  // A band of the source's rows is read some lines wide, so that a page is entered once for them.
  for (int64_t band = 0; band < A; band += kBand)
    for (int64_t b0 = 0; b0 < B; b0 += kTile)
      for (int64_t a0 = band; a0 < min64(A, band + kBand); a0 += kTile) {
        const int64_t a1 = min64(A, a0 + kTile), b1 = min64(B, b0 + kTile);
        if (turns && a1 - a0 == kTile && b1 - b0 == kTile)
          transpose_tile(dst + a0 * da + b0, src + a0 + b0 * sb, da, sb);
        else
          for (int64_t a = a0; a < a1; ++a)
            for (int64_t b = b0; b < b1; ++b) dst[a * da + b * db] = src[a * sa + b * sb];
      }
}

template <class T>
int32_t copy(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
             int64_t c1) {
  const int64_t n = d[0];
  if (n < 1 || n > kMaxAxes) return NIR_UNSUPPORTED;
  const int64_t *last = d + 3 * n, *above = n > 1 ? d + 3 * (n - 1) : nullptr;
  const int64_t A = above ? above[0] : 1, sa = above ? above[1] : 0, da = above ? above[2] : 0;
  const T *src = at<const T>(ptrs, 0) + d[1];
  T *dst = at<T>(ptrs, 1) + d[2];
  for (int64_t r = r0; r < r1;) {
    const int64_t a = r % A, count = min64(A - a, r1 - r);
    int64_t from = a * sa + c0 * last[1], to = a * da + c0 * last[2], rest = r / A;
    for (int64_t axis = n - 3; axis >= 0; --axis) {
      const int64_t *s = d + 3 + 3 * axis;
      from += rest % s[0] * s[1];
      to += rest % s[0] * s[2];
      rest /= s[0];
    }
    plane(dst + to, src + from, count, c1 - c0, sa, da, last[1], last[2]);
    r += count;
  }
  return finish(ctx, r0, r1, c0, c1);
}

// Destination columns [c0, c1) of one row whose other coordinates lie on source elements.
template <class T>
void pad_row(T *dst, const T *src, const int64_t *axis, T value, int64_t c0, int64_t c1) {
  const int64_t size = axis[0], low = axis[1], factor = axis[2];
  const int64_t first = max64(c0, low), end = min64(c1, size ? low + (size - 1) * factor + 1 : low);
  for (int64_t c = c0; c < min64(first, c1); ++c) dst[c] = value;
  if (factor == 1) {
    if (first < end)
      memcpy(dst + first, src + (first - low), static_cast<size_t>(end - first) * sizeof(T));
  } else {
    for (int64_t c = first; c < end; ++c)
      dst[c] = (c - low) % factor ? value : src[(c - low) / factor];
  }
  for (int64_t c = max64(end, c0); c < c1; ++c) dst[c] = value;
}

template <class T>
int32_t pad(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
            int64_t c1) {
  const int64_t n = d[0];
  if (n < 1 || n > kMaxAxes) return NIR_UNSUPPORTED;
  const int64_t *axes = d + 2, *last = axes + 4 * (n - 1);
  const T value = static_cast<T>(d[1]);
  for (int64_t r = r0; r < r1; ++r) {
    int64_t rest = r, from = 0, stride = last[0];
    bool inside = true;
    for (int64_t a = n - 2; a >= 0; --a) {
      const int64_t *axis = axes + 4 * a, i = rest % axis[3] - axis[1];
      inside = inside && i >= 0 && i % axis[2] == 0 && i / axis[2] < axis[0];
      from += i / axis[2] * stride;
      stride *= axis[0];
      rest /= axis[3];
    }
    T *dst = at<T>(ptrs, 1) + r * last[3];
    if (inside)
      pad_row(dst, at<const T>(ptrs, 0) + from, last, value, c0, c1);
    else
      for (int64_t c = c0; c < c1; ++c) dst[c] = value;
  }
  return finish(ctx, r0, r1, c0, c1);
}

template <class T>
int32_t fill(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
             int64_t c1) {
  T *dst = at<T>(ptrs, 0);
  const T value = static_cast<T>(d[0]);
  for (int64_t r = r0; r < r1; ++r) dst[r] = value;
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(bits, T)                                                                 \
  NIR_KERNEL(copy_b##bits) { return NIR_NS::copy<T>(ctx, ptrs, dims, r0, r1, c0, c1); } \
  NIR_KERNEL(pad_b##bits) { return NIR_NS::pad<T>(ctx, ptrs, dims, r0, r1, c0, c1); }   \
  NIR_KERNEL(fill_b##bits) { return NIR_NS::fill<T>(ctx, ptrs, dims, r0, r1, c0, c1); }
DEFINE(8, uint8_t)
DEFINE(16, uint16_t)
DEFINE(32, uint32_t)
DEFINE(64, uint64_t)

NIR_KERNEL(concat_bytes) {
  (void)ctx, (void)c0, (void)c1;
  const int64_t count = dims[0];
  int64_t row = 0, offset = 0;
  for (int64_t i = 0; i < count; ++i) row += dims[1 + i];
  char *dst = NIR_NS::at<char>(ptrs, static_cast<int>(count));
  for (int64_t i = 0; i < count; offset += dims[1 + i], ++i) {
    const int64_t bytes = dims[1 + i];
    const char *src = NIR_NS::at<const char>(ptrs, static_cast<int>(i));
    for (int64_t r = r0; r < r1 && bytes; ++r)
      memcpy(dst + r * row + offset, src + r * bytes, static_cast<size_t>(bytes));
  }
  return NIR_OK;
}
