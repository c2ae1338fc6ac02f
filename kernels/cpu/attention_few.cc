// attention_few: attention of at most a few queries against many keys, as in decoding.
//
//   ptrs, dims  as in attention.cc  rows  B * H  scratch  attention_few in
//   nir/targets/cpu_attention.py
//
// What is to be read, K and V, is read once for each query and bounds the time; there are too few
// queries to fill lanes, so features lie along them. A score is a sum in 16 lanes and then by a
// fixed tree on every ISA level; sixteen keys go through the tree together.
#include "attention.h"

namespace NIR_NS {
namespace {

constexpr int kLane = 16;            // lanes of a sum, on every ISA level
constexpr int kParts = kLane / W;    // vectors that hold them
constexpr int64_t kFewKeys = 256;    // keys of a block

// Lanes l and l + s of a in the lanes l without bit s, those of b in the lanes with it.
template <int s>
NIR_INLINE F pairs(F a, F b) {
  I low, high;
#pragma GCC unroll 16
  for (int l = 0; l < W; ++l) {
    low[l] = l & s ? W + l - s : l;
    high[l] = l & s ? W + l : l + s;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}
template <int s>
NIR_INLINE void tree(F (&r)[W]) {
  if constexpr (s > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < s; ++i) r[i] = pairs<s>(r[i], r[i + s]);
    tree<s / 2>(r);
  }
}

// The scores of W keys; q is padded with zeros to whole sums. Keys past `keys` repeat the last.
NIR_INLINE F scores(const float *q, const float *k, int64_t k_step, int64_t D, int64_t keys) {
  const float *row[W];
  F acc[W][kParts];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    row[i] = k + min64(i, keys - 1) * k_step;
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) acc[i][p] = F{};
  }
  int64_t d = 0;
  for (; d + kLane <= D; d += kLane)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const F x = load(q + d + p * W);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) acc[i][p] = fma<float>(load(row[i] + d + p * W), x, acc[i][p]);
    }
  if (d < D)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const int n = static_cast<int>(max64(0, min64(W, D - d - p * W)));
      const F x = load(q + d + p * W);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        acc[i][p] = fma<float>(load_first(row[i] + (n ? d + p * W : 0), n), x, acc[i][p]);
    }
  F r[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    // The tree's first steps, lanes 8 and then 4 apart, where they lie in different vectors.
    if constexpr (kParts == 4)
      r[i] = (acc[i][0] + acc[i][2]) + (acc[i][1] + acc[i][3]);
    else if constexpr (kParts == 2)
      r[i] = acc[i][0] + acc[i][1];
    else
      r[i] = acc[i][0];
  }
  tree<W / 2>(r);
  return r[0];
}

// out[j * W ..] = out * factor + sum over keys of p[key] v[key], for V vectors of features.
template <int V>
NIR_INLINE void values(float *out, const float *p, const float *v, int64_t v_step, int64_t keys,
                       int64_t cols, float factor) {
  F acc[V];
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) acc[j] = F{};
  const int tail = static_cast<int>(cols - (V - 1) * W);
  for (int64_t i = 0; i < keys; ++i, v += v_step) {
    const F x = broadcast(p[i]);
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
      acc[j] = fma<float>(x, j < V - 1 || tail >= W ? load(v + j * W) : load_first(v + j * W, tail),
                          acc[j]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j)
    store(out + j * W, fma<float>(load(out + j * W), broadcast(factor), acc[j]));
}

NIR_INLINE float sum_of_lanes(const float *lanes) {
  float s[kLane];
  memcpy(s, lanes, sizeof(s));
  for (int step = kLane / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

int32_t attention_few(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1) {
  const Forward p(d);
  const int n = p.mask_kind ? 4 : 3;
  const int64_t padded_d = ceil_div(p.D, kLane) * kLane;
  float *q = static_cast<float *>(ctx->scratch), *score = q + padded_d, *masks = score + kFewKeys,
        *out = masks + kFewKeys;
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t b = r / p.H, h = r % p.H;
    for (int64_t t = 0; t < p.T; ++t) {
      const float *own = at<const float>(ptrs, 0) + p.q.at(b, h) + t * p.q.t;
      for (int64_t i = 0; i < padded_d; ++i) q[i] = i < p.D ? own[i] * p.scale : 0.0f;
      for (int64_t e = 0; e < p.E; e += W) store(out + e, F{});
      const int64_t end = keys_seen(p.causal, t, 1, p.S - p.T, 0, p.S);
      float top = -kInf, lanes[kLane] = {};
      for (int64_t k0 = 0; k0 < end; k0 += kFewKeys) {
        const int64_t nk = min64(kFewKeys, end - k0);
        const float *k = at<const float>(ptrs, 1) + p.k.at(b, h) + k0 * p.k.t;
        const float *v = at<const float>(ptrs, 2) + p.v.at(b, h) + k0 * p.v.t;
        if (p.mask_kind) {
          const int64_t first = b * p.mask[0] + h * p.mask[1] + t * p.mask[2] + k0 * p.mask[3];
          for (int64_t i = 0; i < nk; ++i) {
            const int64_t j = first + i * p.mask[3];
            masks[i] = p.mask_kind == 2 ? at<const float>(ptrs, 3)[j]
                                        : (at<const uint8_t>(ptrs, 3)[j] ? 0.0f : -kInf);
          }
        }
        const int64_t whole = ceil_div(nk, kLane) * kLane;
        for (int64_t i = 0; i < whole; i += W) {
          const int64_t left = nk - i;
          F x = broadcast(-kInf);
          if (left > 0) {
            const F s = scores(q, k + i * p.k.t, p.k.t, p.D, left);
            x = lanes_from(i) < (I{} + static_cast<int32_t>(nk)) ? s : x;
            if (p.mask_kind) {
              const int m = static_cast<int>(min64(W, left));
              x += load_first(masks + i, m);
            }
          }
          store(score + i, x);
        }
        float now = top;
        for (int64_t i = 0; i < nk; ++i) now = score[i] > now ? score[i] : now;
        const float base = now == -kInf ? 0.0f : now;
        const float factor = exp_negative(broadcast(top - base))[0];
        top = now;
        F sum[kParts];
#pragma GCC unroll 4
        for (int j = 0; j < kParts; ++j) sum[j] = load(lanes + j * W) * broadcast(factor);
        for (int64_t i = 0; i < whole; i += kLane)
#pragma GCC unroll 4
          for (int j = 0; j < kParts; ++j) {
            const F e = exp_negative(load(score + i + j * W) - broadcast(base));
            sum[j] += e;
            store(score + i + j * W, e);
          }
#pragma GCC unroll 4
        for (int j = 0; j < kParts; ++j) store(lanes + j * W, sum[j]);
        for (int64_t e = 0; e < p.E; e += 4 * W)
          last_vectors<4>(0, min64(4, ceil_div(p.E - e, W)), [&](auto vectors, int64_t) {
            values<decltype(vectors)::value>(out + e, score, v + e, p.v.t, nk, p.E - e, factor);
          });
      }
      const float sum = sum_of_lanes(lanes);
      const bool none = sum == 0.0f;
      const F share = broadcast(1.0f / (none ? 1.0f : sum));
      float *dst = at<float>(ptrs, n) + p.out.at(b, h) + t * p.out.t;
      for (int64_t e = 0; e < p.E; e += W)
        store_first(dst + e, load(out + e) * share, static_cast<int>(min64(W, p.E - e)));
      at<float>(ptrs, n + 1)[r * p.T + t] = none ? kInf : top + log_positive(broadcast(sum))[0];
    }
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

NIR_KERNEL(attention_few_f32) {
  (void)c0, (void)c1;
  return NIR_NS::attention_few(ctx, ptrs, dims, r0, r1);
}
