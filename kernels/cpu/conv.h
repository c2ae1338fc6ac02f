// What the convolution kernels share: the sizes, and where taps land.
//
//   dims  0 N  1 H  2 W  3 C  4 OH  5 OW  6 O  7 KH  8 KW  9 stride_h  10 stride_w
//         11 pad_top  12 pad_left  13 dilation_h  14 dilation_w  15 groups
//
// Images are NHWC, weights HWIO = [KH, KW, C / groups, O]. conv2d_planar reads an image in NCHW, of
// one group, plane by plane, and conv2d_weight_grad may: the chain then runs over (C, KH, KW).
// Padding at the bottom and right is what OH and OW imply.
#ifndef NIR_CONV_H
#define NIR_CONV_H

#include "gemm.h"

namespace NIR_NS {

struct ConvDims {
  int64_t N, H, W, C, OH, OW, O, KH, KW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups;
  int64_t planes = 1, depth;  // planes of an image, and channels that lie side by side in each
  explicit ConvDims(const int64_t *d)
      : N(d[0]),
        H(d[1]),
        W(d[2]),
        C(d[3]),
        OH(d[4]),
        OW(d[5]),
        O(d[6]),
        KH(d[7]),
        KW(d[8]),
        stride_h(d[9]),
        stride_w(d[10]),
        pad_h(d[11]),
        pad_w(d[12]),
        dil_h(d[13]),
        dil_w(d[14]),
        groups(d[15]),
        depth(d[3]) {}
  void read_planes(bool planar) {
    if (planar) planes = C, depth = 1;
  }
};

// One axis of a gather: destination first + u * step, for 0 <= u < count, reads source
// u * source_step + base(tap) of [0, source).
//
// Forward, output u reads input u * stride + tap * dilation - pad. In the input gradient, inputs of
// one residue class modulo the stride read output u + (first + pad - tap * dilation) / stride, for
// the taps where that is whole: the others cannot contribute.
struct GatherAxis {
  int64_t first, step, count, source_step, source;
  int64_t stride, pad, dilation;
  bool forward;

  bool base(int64_t tap, int64_t *out) const {
    int64_t b = tap * dilation - pad;
    if (!forward) {
      b = first - b;
      if (b % stride != 0) return false;
      b /= stride;
    }
    *out = b;
    // Some u must read inside the source: a tap that only ever reads padding is skipped, a decision
    // that depends on the shape alone.
    int64_t u = b >= 0 ? 0 : ceil_div(-b, source_step);
    return u < count && u * source_step + b < source;
  }
};

inline GatherAxis forward_axis(int64_t in, int64_t out, int64_t stride, int64_t pad,
                               int64_t dilation) {
  return {0, 1, out, stride, in, stride, pad, dilation, true};
}
inline GatherAxis input_grad_axis(int64_t in, int64_t out, int64_t stride, int64_t pad,
                                  int64_t dilation, int64_t residue) {
  return {residue,  stride, residue < in ? ceil_div(in - residue, stride) : 0, 1, out, stride, pad,
          dilation, false};
}

// Memory from the call's scratch, in pieces of whole cache lines.
struct Scratch {
  char *next;
  template <class T>
  T *take(int64_t n) {
    T *p = reinterpret_cast<T *>(next);
    next += ceil_div(n * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return p;
  }
};

}  // namespace NIR_NS

#endif  // NIR_CONV_H
