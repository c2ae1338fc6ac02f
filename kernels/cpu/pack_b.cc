// pack_b: B in panels of 16 columns, k-major, zero-padded: the right operand of matmul and conv2d.
//
//   ptrs  B, packed
//   dims  0 batch  1 K1  2 K2  3 N  4 batch stride  5 k1 stride  6 k2 stride  7 n stride
//   rows  batch * ceil(N / 16) panels; cols 1
//
// packed[batch][panel][k1 * K2 + k2][16]; strides count elements of B. Two levels of k let the
// packing turn convolution weights round for the input gradient.
#include "gemm.h"

namespace NIR_NS {
namespace {

template <class T>
int32_t pack_b(void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1) {
  const int64_t K1 = d[1], K2 = d[2], N = d[3], s_batch = d[4], s_k1 = d[5], s_k2 = d[6],
                s_n = d[7];
  const int64_t panels = ceil_div(N, kPanel);
  constexpr int W = kLanes<T>;
  T *dst = at<T>(ptrs, 1) + r0 * K1 * K2 * kPanel;
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t n0 = r % panels * kPanel;
    const int cols = static_cast<int>(min64(kPanel, N - n0));
    const T *panel = at<const T>(ptrs, 0) + r / panels * s_batch + n0 * s_n;
    for (int64_t k1 = 0; k1 < K1; ++k1) {
      const T *src = panel + k1 * s_k1;
      if (s_k2 == 1 && K2 > 1) {
        // A transposed B: columns are runs, turned in registers.
        for (int j = 0; j < kPanel; j += W)
          transpose_run(dst + j, kPanel, src + j * s_n, s_n,
                        static_cast<int>(max64(0, min64(W, cols - j))), K2);
      } else {
        for (int64_t k = 0; k < K2; ++k)
          if (s_n == 1 && cols == kPanel)
            memcpy(dst + k * kPanel, src + k * s_k2, kPanel * sizeof(T));
          else
            for (int j = 0; j < kPanel; ++j)
              dst[k * kPanel + j] = j < cols ? src[k * s_k2 + j * s_n] : T(0);
      }
      dst += K2 * kPanel;
    }
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, T)                          \
  NIR_KERNEL(pack_b_##dtype) {                    \
    (void)ctx, (void)c0, (void)c1;                \
    return NIR_NS::pack_b<T>(ptrs, dims, r0, r1); \
  }
DEFINE(f32, float)
DEFINE(f64, double)
DEFINE(i32, int32_t)
DEFINE(i64, int64_t)
