// attention: softmax(q k^T scale + mask) v for each batch and head, without a matrix of scores.
//
//   ptrs  q, k, v, mask (only if there is one), result, log-sum-exp [B, H, T]
//   dims  0 B  1 H  2 T  3 S  4 D  5 E
//         6 q offset  7 q batch stride  8 q head stride  9 q token stride
//         10 .. 13 k  14 .. 17 v  18 .. 21 result, likewise
//         22 mask: 0 none, 1 bool, 2 f32, added  23 .. 26 its strides along B, H, T, S
//         27 causal: query t sees keys 0 .. t + S - T  28 scale, as the bits of a float
//   rows  B * H * ceil(T / 64) strips of queries (attention_f32), B * H (attention_few_f32)
//   scratch  attention_scratch in nir/targets/cpu_attention.py
//
// Blocks of 64 keys pass by a strip of 64 queries with a running maximum and sum (Milakov and
// Gimelshein, 2018; Dao et al., 2022). What a query that sees no key gets is 0, its log-sum-exp inf.
#include "attention.h"

namespace NIR_NS {
namespace {

// One strip of queries in scratch.
struct Strip {
  float *q;        // [D][kStrip], scaled
  float *scores;   // [kKeys][kStrip], then probabilities
  float *out;      // [E][kStrip]
  float *v;        // [kKeys][E padded]
  float *mask;     // [kKeys][kStrip]
  float *rows;     // [kStrip][kKeys]
  float *top;      // [kStrip] running maximum
  float *sum;      // [kStrip] running sum
  Strip(float *s, int64_t D, int64_t E) {
    const auto take = [&](int64_t n) {
      float *at = s;
      s += n;
      return at;
    };
    q = take(D * kStrip);
    scores = take(kKeys * kStrip);
    out = take(ceil_div(E, kPad) * kPad * kStrip);
    v = take(kKeys * ceil_div(E, kPad) * kPad);
    mask = take(kKeys * kStrip);
    rows = take(kStrip * kKeys);
    top = take(kStrip);
    sum = take(kStrip);
  }
};

// V vectors of queries from lane c on, against `keys` keys of a block.
template <int V>
NIR_INLINE void block(const Forward &p, const Strip &s, const float *k, const float *v,
                      int64_t v_step, int64_t c, int64_t keys, bool masked, bool cut, int64_t q_seen) {
  F top[V];
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) top[j] = broadcast(-kInf);
  products<V, true>(k, p.k.t, s.q + c, kStrip, p.D, keys, [&](int64_t i, auto &acc) {
    constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        F x = acc[r][j];
        const int64_t at = (i + r) * kStrip + c + j * W;
        if (masked) x += load(s.mask + at);
        // q_seen: the key that the strip's first query sees last, less the block's first key.
        if (cut)
          x = lanes_from(c + j * W + q_seen) < (I{} + static_cast<int32_t>(i + r))
                  ? broadcast(-kInf)
                  : x;
        store(s.scores + at, x);
        top[j] = larger(x, top[j]);
      }
  });
  F base[V], factor[V], sum[V];
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    const int64_t at = c + j * W;
    const F before = load(s.top + at), now = larger(top[j], before);
    // Where no key was seen yet, any finite base gives exp(-inf) = 0.
    base[j] = now == broadcast(-kInf) ? F{} : now;
    factor[j] = exp_negative(before - base[j]);
    sum[j] = load(s.sum + at) * factor[j];
    store(s.top + at, now);
  }
  for (int64_t i = 0; i < keys; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      float *at = s.scores + i * kStrip + c + j * W;
      const F e = exp_negative(load(at) - base[j]);
      sum[j] += e;
      store(at, e);
    }
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) store(s.sum + c + j * W, sum[j]);
  products<V, false>(v, v_step, s.scores + c, kStrip, keys, p.E, [&](int64_t i, auto &acc) {
    constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        float *at = s.out + (i + r) * kStrip + c + j * W;
        store(at, fma<float>(load(at), factor[j], acc[r][j]));
      }
  });
}

int32_t attention(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1) {
  const Forward p(d);
  const Strip s(static_cast<float *>(ctx->scratch), p.D, p.E);
  const int n = p.mask_kind ? 4 : 3;
  const float *q = at<const float>(ptrs, 0), *k = at<const float>(ptrs, 1),
              *v = at<const float>(ptrs, 2);
  float *out = at<float>(ptrs, n), *lse = at<float>(ptrs, n + 1);
  const int64_t strips = ceil_div(p.T, kStrip), offset = p.S - p.T;
  const int64_t padded = ceil_div(p.E, kPad) * kPad;
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t b = r / strips / p.H, h = r / strips % p.H, q0 = r % strips * kStrip;
    const int64_t nq = min64(kStrip, p.T - q0);
    turn(s.q, kStrip, q + p.q.at(b, h) + q0 * p.q.t, p.q.t, nq, p.D, p.scale);
    for (int j = 0; j < kStrip; j += W) {
      store(s.top + j, broadcast(-kInf));
      store(s.sum + j, F{});
    }
    const int64_t lanes = ceil_div(nq, W) * W;
    for (int64_t e = 0; e < p.E; ++e) zero_run(s.out + e * kStrip, lanes);
    Mask mask{nullptr, p.mask_kind, p.mask[2], p.mask[3]};
    if (p.mask_kind)
      mask.data = at<const char>(ptrs, 3) +
                  (b * p.mask[0] + h * p.mask[1]) * (p.mask_kind == 1 ? 1 : 4);
    const int64_t end = keys_seen(p.causal, q0, nq, offset, 0, p.S);
    for (int64_t k0 = 0; k0 < end; k0 += kKeys) {
      const int64_t nk = min64(kKeys, p.S - k0);
      const float *kb = k + p.k.at(b, h) + k0 * p.k.t, *vb = v + p.v.at(b, h) + k0 * p.v.t;
      int64_t v_step = p.v.t;
      if (v_step > padded) {
        gather_rows(s.v, padded, vb, v_step, nk, p.E);
        vb = s.v, v_step = padded;
      }
      if (mask.data) mask_block(s.mask, s.rows, mask, q0, nq, k0, nk);
      // Only blocks on the diagonal cut: their groups of queries stop at different keys.
      const bool cut = p.causal && q0 + offset < k0 + nk - 1;
      const int64_t group = cut ? kGroup : kStrip;
      for (int64_t c = 0; c < nq; c += group) {
        const int64_t queries = min64(group, nq - c);
        const int64_t keys = keys_seen(p.causal, q0 + c, queries, offset, k0, nk);
        if (!keys) continue;
        by_vectors(ceil_div(queries, W), [&](auto vectors, int64_t j) {
          block<decltype(vectors)::value>(p, s, kb, vb, v_step, c + j * W, keys,
                                          mask.data != nullptr, cut, q0 + offset - k0);
        });
      }
    }
    float *row = lse + (b * p.H + h) * p.T + q0;
    for (int64_t c = 0; c < nq; c += W) {
      const F sum = load(s.sum + c), top = load(s.top + c);
      const auto none = sum == F{};
      store_first(row + c, none ? broadcast(kInf) : top + log_positive(sum),
                  static_cast<int>(min64(W, nq - c)));
      store(s.sum + c, broadcast(1.0f) / (none ? broadcast(1.0f) : sum));
    }
    turn_back(out + p.out.at(b, h) + q0 * p.out.t, p.out.t, s.out, kStrip, p.E, nq, s.sum);
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

NIR_KERNEL(attention_f32) {
  (void)c0, (void)c1;
  return NIR_NS::attention(ctx, ptrs, dims, r0, r1);
}
