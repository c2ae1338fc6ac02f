// What attention's forward and backward kernels share.
//
// Queries lie along the lanes of a vector. Scores are then computed as K Q^T and the values as
// V^T P^T: K and V are read as they are stored, a maximum or a sum over keys is a vertical one, and
// the probabilities leave one product in the form in which the next one reads them. Only the
// queries of a strip are turned round, and the result is turned back.
//
// Strips, blocks of keys and the order of all sums are fixed here, for every ISA level: a lane
// computes the same bits whichever vector it lies in.
#ifndef NIR_ATTENTION_H
#define NIR_ATTENTION_H

#include "transpose.h"

namespace NIR_NS {

using F = Vec<float>;
using I = Vec<int32_t>;
constexpr int W = kLanes<float>;

constexpr int kStrip = 64;  // queries of a strip
constexpr int kKeys = 64;   // keys of a block: its probabilities, 16 KB, stay in L1
constexpr int kGroup = 32;  // queries that share a number of keys where a causal mask cuts a block
constexpr int kPad = 16;    // rows in scratch are multiples of it

#if defined(__AVX512F__)
constexpr int kWidest = 4;  // vectors of a tile
constexpr int tile_height(int vectors) { return vectors > 2 ? 6 : 8; }
#else
constexpr int kWidest = 2;
constexpr int tile_height(int) { return 4; }
#endif

constexpr float kInf = __builtin_inff();

template <int n>
struct Count {
  static constexpr int value = n;
};

// acc[i][j] = sum over k of a(i, k) * b[k * b_step + j * W ..], an ascending chain, with
// a(i, k) = a[i * a_step + k] where kByRow, else a[k * a_step + i].
template <int R, int V, bool kByRow>
NIR_INLINE void product(F (&acc)[R][V], const float *a, int64_t a_step, const float *b,
                        int64_t b_step, int64_t steps) {
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) acc[i][j] = F{};
  for (int64_t k = 0; k < steps; ++k, b += b_step) {
    F bv[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) bv[j] = load(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const F av = broadcast(kByRow ? a[i * a_step] : a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) acc[i][j] = fma<float>(av, bv[j], acc[i][j]);
    }
    a += kByRow ? 1 : a_step;
  }
}

// `use(i, acc)` on each tile of `rows` rows and V vectors; a(i, k) and b as above.
template <int V, bool kByRow, int R, class Use>
NIR_INLINE void last_rows(const float *a, int64_t a_step, const float *b, int64_t b_step,
                          int64_t steps, int64_t i, int64_t rows, Use use) {
  if constexpr (R > 0) {
    if (rows == R) {
      F acc[R][V];
      product<R, V, kByRow>(acc, a + i * (kByRow ? a_step : 1), a_step, b, b_step, steps);
      use(i, acc);
    } else {
      last_rows<V, kByRow, R - 1>(a, a_step, b, b_step, steps, i, rows, use);
    }
  }
}

template <int V, bool kByRow, class Use>
NIR_INLINE void products(const float *a, int64_t a_step, const float *b, int64_t b_step,
                         int64_t steps, int64_t rows, Use use) {
  constexpr int R = tile_height(V);
  int64_t i = 0;
  for (; i + R <= rows; i += R) {
    F acc[R][V];
    product<R, V, kByRow>(acc, a + i * (kByRow ? a_step : 1), a_step, b, b_step, steps);
    use(i, acc);
  }
  last_rows<V, kByRow, R - 1>(a, a_step, b, b_step, steps, i, rows - i, use);
}

// `use(Count<V>, j)` for the vectors from j on, V of them, until `vectors` are done.
template <int V, class Use>
NIR_INLINE void last_vectors(int64_t j, int64_t left, Use use) {
  if constexpr (V > 0) {
    if (left == V)
      use(Count<V>{}, j);
    else
      last_vectors<V - 1>(j, left, use);
  }
}
template <class Use>
NIR_INLINE void by_vectors(int64_t vectors, Use use) {
  int64_t j = 0;
  for (; j + kWidest <= vectors; j += kWidest) use(Count<kWidest>{}, j);
  last_vectors<kWidest - 1>(j, vectors - j, use);
}

// c[i * c_step ..] += a(i, k) b[k], over all of b's `cols` columns.
template <bool kByRow>
inline void add_product(float *c, int64_t c_step, const float *a, int64_t a_step, const float *b,
                        int64_t b_step, int64_t steps, int64_t rows, int64_t cols) {
  by_vectors(ceil_div(cols, W), [&](auto v, int64_t first) {
    constexpr int V = decltype(v)::value;
    const int64_t j0 = first * W;
    const bool whole = j0 + V * W <= cols;
    products<V, kByRow>(a, a_step, b + j0, b_step, steps, rows, [&](int64_t i, auto &acc) {
      constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float *row = c + (i + r) * c_step + j0;
        if (whole) {
#pragma GCC unroll 4
          for (int j = 0; j < V; ++j) store(row + j * W, load(row + j * W) + acc[r][j]);
        } else {
#pragma GCC unroll 4
          for (int j = 0; j < V; ++j) {
            const int n = static_cast<int>(min64(W, cols - j0 - j * W));
            store_first(row + j * W, load_first(row + j * W, n) + acc[r][j], n);
          }
        }
      }
    });
  });
}

// exp(x) for x <= 0 and nan: the generated loops' polynomial, within 1.2 ulp; 0 where the result
// would be denormal.
NIR_INLINE F exp_negative(F x) {
  constexpr float magic = 12582912.0f;  // adding it leaves the nearest integer in the low bits
  const F t = fma<float>(x, broadcast(1.44269504088896341f), broadcast(magic));
  const F n = t - broadcast(magic);
  F r = fma<float>(n, broadcast(-0.693359375f), x);
  r = fma<float>(n, broadcast(0.00021219444005469057f), r);
  F p = fma<float>(r, broadcast(0.001392625083149798f), broadcast(0.008363232883682618f));
  p = fma<float>(r, p, broadcast(0.041666554212984146f));
  p = fma<float>(r, p, broadcast(0.16666576666119928f));
  p = fma<float>(r, p, broadcast(0.5f));
  const F q = fma<float>(r * r, p, r);
  const F pow2 = (F)(((I)t << 23) + (127 << 23));
  return x < broadcast(-87.33f) ? F{} : fma<float>(q, pow2, pow2);
}

// log(x) for normal x > 0, inf and nan, within 1 ulp.
NIR_INLINE F log_positive(F x) {
  const I bits = (I)x, n = (bits - 0x3F3504F3) >> 23;  // x = 2^n m, sqrt(1/2) <= m < sqrt(2)
  const F f = (F)(bits - (n << 23)) - broadcast(1.0f);
  const F e = __builtin_convertvector(n, F);
  constexpr float c[] = {-0.11479733846637635f, 0.1168541992348674f,   -0.12425687331451106f,
                         0.1424905764569748f,   -0.16667802319501254f, 0.200007157488921f,
                         -0.24999996957950882f, 0.33333331180030046f};
  F p = broadcast(0.06971611471451178f);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) p = fma<float>(f, p, broadcast(c[i]));
  F y = fma<float>(f * f * f, p, e * broadcast(-0.00021219444005469057f));
  y = fma<float>(f * f, broadcast(-0.5f), y);
  y = fma<float>(e, broadcast(0.693359375f), f + y);
  return x < broadcast(kInf) ? y : x;
}

NIR_INLINE F larger(F a, F b) { return a > b ? a : b; }

// dst[c * dst_step + r] = factor * src[r * src_step + c] for c < cols and r < rows; rows of dst are
// filled up with zeros to whole vectors.
inline void turn(float *dst, int64_t dst_step, const float *src, int64_t src_step, int64_t rows,
                 int64_t cols, float factor) {
  for (int64_t r0 = 0; r0 < rows; r0 += W)
    for (int64_t c0 = 0; c0 < cols; c0 += W) {
      const int n = static_cast<int>(min64(W, cols - c0));
      F v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        v[i] = r0 + i < rows ? load_first(src + (r0 + i) * src_step + c0, n) * broadcast(factor)
                             : F{};
      transpose<float>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < n) store(dst + (c0 + i) * dst_step + r0, v[i]);
    }
}

// dst[c * dst_step + r] = src[r * src_step + c] * factors[c], the way back: rows of src are whole
// vectors, those of dst are not.
inline void turn_back(float *dst, int64_t dst_step, const float *src, int64_t src_step,
                      int64_t rows, int64_t cols, const float *factors) {
  for (int64_t c0 = 0; c0 < cols; c0 += W)
    for (int64_t r0 = 0; r0 < rows; r0 += W) {
      const int n = static_cast<int>(min64(W, rows - r0));
      F v[W];
      const F f = load(factors + c0);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = i < n ? load(src + (r0 + i) * src_step + c0) * f : F{};
      transpose<float>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (c0 + i < cols) store_first(dst + (c0 + i) * dst_step + r0, v[i], n);
    }
}

// Copies rows to where they lie close together, padded with zeros to whole vectors: rows of a
// projection are pages apart and would push each other out of L1.
inline void gather_rows(float *dst, int64_t dst_step, const float *src, int64_t src_step,
                        int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; c += W)
      store(dst + r * dst_step + c,
            load_first(src + r * src_step + c, static_cast<int>(min64(W, cols - c))));
}

// The masks of one (batch, head): what is added to the scores, in the form of the scores.
struct Mask {
  const void *data;  // at (batch, head); null: none
  int64_t kind;      // 1: bool, True where a query sees a key; 2: f32, added
  int64_t t, s;      // elements from one query, one key to the next
};

// dst[key * kStrip + query] for a block.
inline void mask_block(float *dst, float *rows, const Mask &m, int64_t q0, int64_t nq, int64_t k0,
                       int64_t nk) {
  const int64_t distinct = m.t ? nq : 1;
  for (int64_t q = 0; q < distinct; ++q) {
    float *row = rows + q * kKeys;
    const int64_t at = (q0 + q) * m.t + k0 * m.s;
    if (m.kind == 1) {
      const uint8_t *src = static_cast<const uint8_t *>(m.data) + at;
      for (int64_t k = 0; k < nk; ++k) row[k] = src[k * m.s] ? 0.0f : -kInf;
    } else {
      const float *src = static_cast<const float *>(m.data) + at;
      for (int64_t k = 0; k < nk; ++k) row[k] = src[k * m.s];
    }
  }
  if (m.t) {
    turn(dst, kStrip, rows, kKeys, nq, nk, 1.0f);
  } else {
    for (int64_t k = 0; k < nk; ++k)
      for (int j = 0; j < kStrip; j += W) store(dst + k * kStrip + j, broadcast(rows[k]));
  }
}

// Keys of the block at k0 that queries [q, q + n) see, all of them together.
NIR_INLINE int64_t keys_seen(bool causal, int64_t q, int64_t n, int64_t offset, int64_t k0,
                             int64_t nk) {
  return causal ? max64(0, min64(nk, q + n + offset - k0)) : nk;
}

NIR_INLINE I lanes_from(int64_t first) {
  I v;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) v[i] = i;
  return v + static_cast<int32_t>(first);
}

// Where q, k, v, the result or a gradient lie: elements to the first, and from one batch, head and
// token to the next; features are contiguous.
struct View {
  int64_t offset, b, h, t;
  NIR_INLINE int64_t at(int64_t batch, int64_t head) const { return offset + batch * b + head * h; }
};
NIR_INLINE View view(const int64_t *d) { return View{d[0], d[1], d[2], d[3]}; }

NIR_INLINE float as_float(int64_t bits) {
  const int32_t low = static_cast<int32_t>(bits);
  float f;
  memcpy(&f, &low, 4);
  return f;
}

// What the forward kernels are given: dims as in attention.cc.
struct Forward {
  int64_t H, T, S, D, E;
  View q, k, v, out;
  int64_t mask_kind, mask[4];
  bool causal;
  float scale;
  explicit Forward(const int64_t *d)
      : H(d[1]), T(d[2]), S(d[3]), D(d[4]), E(d[5]), q(view(d + 6)), k(view(d + 10)),
        v(view(d + 14)), out(view(d + 18)), mask_kind(d[22]), mask{d[23], d[24], d[25], d[26]},
        causal(d[27] != 0), scale(as_float(d[28])) {}
};

}  // namespace NIR_NS

#endif  // NIR_ATTENTION_H
