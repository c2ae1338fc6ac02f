// What the kernels of Winograd's F(2 x 2, 3 x 3) share: patches, and the transform of an image.
#ifndef NIR_WINOGRAD_H
#define NIR_WINOGRAD_H

#include "conv.h"

namespace NIR_NS {

constexpr int kPoints = 16;  // products for the four outputs of a patch

// Where a patch begins: its image, its first output line and column.
struct Patch {
  int64_t image, oh, ow;
};

// The patches of a convolution: 4 x 4 of x for 2 x 2 outputs, line by line.
struct Patches {
  ConvDims d;
  int64_t rows, cols;  // of one image
  explicit Patches(const int64_t *dims)
      : d(dims), rows(ceil_div(d.OH, 2)), cols(ceil_div(d.OW, 2)) {}
  Patch operator[](int64_t t) const {
    const int64_t row = t / cols;
    return {row / rows, row % rows * 2, t % cols * 2};
  }
};

// v[point] = B' d B of patches [t, t + count) and of `channels` from x on; channel c of patch p at
//   kPanels   (c / kRowStep * count_max + p) * kRowStep + c % kRowStep, as rows of a packed A
//   else      p * channels + c
// `zeros` has as many zeros.
template <class T, bool kPanels>
void read_patches(const Patches &patches, const T *x, int64_t channels, const T *zeros, int64_t t,
                  int64_t count, int64_t count_max, T *v, int64_t v_point) {
  constexpr int W = kLanes<T>;
  const ConvDims &d = patches.d;
  for (int64_t p = 0; p < count; ++p) {
    const Patch at = patches[t + p];
    const T *source[4][4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        const int64_t h = at.oh - d.pad_h + i, w = at.ow - d.pad_w + j;
        const bool inside = h >= 0 && h < d.H && w >= 0 && w < d.W;
        source[i][j] = inside ? x + ((at.image * d.H + h) * d.W + w) * d.C : zeros;
      }
    for (int64_t c = 0; c < channels; c += W) {
      const int n = static_cast<int>(min64(W, channels - c));
      T *to = v + (kPanels ? (c / kRowStep * count_max + p) * kRowStep + c % kRowStep
                           : p * channels + c);
      // A panel has room for whole vectors.
      const int m = kPanels ? W : n;
      Vec<T> s[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vec<T> d0 = load_some(source[0][j] + c, n), d1 = load_some(source[1][j] + c, n),
                     d2 = load_some(source[2][j] + c, n), d3 = load_some(source[3][j] + c, n);
        s[0][j] = d0 - d2, s[1][j] = d1 + d2, s[2][j] = d2 - d1, s[3][j] = d1 - d3;
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        T *out = to + i * 4 * v_point;
        store_some(out, s[i][0] - s[i][2], m);
        store_some(out + v_point, s[i][1] + s[i][2], m);
        store_some(out + 2 * v_point, s[i][2] - s[i][1], m);
        store_some(out + 3 * v_point, s[i][1] - s[i][3], m);
      }
    }
  }
}

}  // namespace NIR_NS

#endif  // NIR_WINOGRAD_H
