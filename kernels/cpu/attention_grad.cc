// attention_grad: the gradients of attention, from the log-sum-exp that its forward left.
//
//   ptrs  q, k, v, mask (only if there is one), d result, log-sum-exp [B, H, T], delta [B, H, T],
//         dq, dk, dv; or, with dims[41] set, one result that all three lie in
//   dims  0 B  1 H  2 T  3 S  4 D  5 E
//         6 q offset  7 q batch stride  8 q head stride  9 q token stride
//         10 .. 13 k  14 .. 17 v  18 .. 21 d result  22 .. 25 dq  26 .. 29 dk  30 .. 33 dv, likewise
//         34 mask: 0 none, 1 bool, 2 f32, added  35 .. 38 its strides along B, H, T, S
//         39 causal: query t sees keys 0 .. t + S - T  40 scale, as the bits of a float
//         41 whether dq, dk and dv lie in one result
//   rows  B * H
//   scratch  attention_grad_scratch in nir/targets/cpu_attention.py
//
// With P = exp(scale q k^T - lse): dv = P^T do, dS = scale P (do v^T - delta), dq = dS k,
// dk = dS^T q. A block of P is computed again rather than kept (Dao et al., 2022). One call owns a
// (batch, head): strips of queries add to its dk and dv in order, so threads do not change a bit.
#include "attention.h"

namespace NIR_NS {
namespace {

struct Problem {
  int64_t H, T, S, D, E;
  View q, k, v, dout, dq, dk, dv;
  int64_t mask_kind, mask[4];
  bool causal;
  float scale;
  bool joined;
  explicit Problem(const int64_t *d)
      : H(d[1]), T(d[2]), S(d[3]), D(d[4]), E(d[5]), q(view(d + 6)), k(view(d + 10)),
        v(view(d + 14)), dout(view(d + 18)), dq(view(d + 22)), dk(view(d + 26)), dv(view(d + 30)),
        mask_kind(d[34]), mask{d[35], d[36], d[37], d[38]}, causal(d[39] != 0),
        scale(as_float(d[40])), joined(d[41] != 0) {}
};

// One strip of queries and one block of keys in scratch. `D` and `E` are padded to whole vectors.
struct Strip {
  float *q, *q_turned;        // [kStrip][D], [D][kStrip] scaled
  float *dout, *dout_turned;  // [kStrip][E], [E][kStrip]
  float *k, *v;               // [kKeys][D], [kKeys][E]
  float *p, *ds;              // [kKeys][kStrip]
  float *dq;                  // [D][kStrip]
  float *mask, *rows;         // [kKeys][kStrip], [kStrip][kKeys]
  float *lse, *delta;         // [kStrip]
  float *ones;                // [kStrip]
  Strip(float *s, int64_t D, int64_t E) {
    const auto take = [&](int64_t n) {
      float *at = s;
      s += n;
      return at;
    };
    q = take(kStrip * D), q_turned = take(kStrip * D);
    dout = take(kStrip * E), dout_turned = take(kStrip * E);
    k = take(kKeys * D), v = take(kKeys * E);
    p = take(kKeys * kStrip), ds = take(kKeys * kStrip);
    dq = take(kStrip * D);
    mask = take(kKeys * kStrip), rows = take(kStrip * kKeys);
    lse = take(kStrip), delta = take(kStrip), ones = take(kStrip);
  }
};

// P and dS of V vectors of queries from lane c on, against `keys` keys of a block.
template <int V>
NIR_INLINE void probabilities(const Problem &p, const Strip &s, const float *k, int64_t k_step,
                              const float *v, int64_t v_step, int64_t c, int64_t keys, bool masked,
                              bool cut, int64_t q_seen) {
  F lse[V], delta[V];
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    lse[j] = load(s.lse + c + j * W);
    delta[j] = load(s.delta + c + j * W);
  }
  products<V, true>(k, k_step, s.q_turned + c, kStrip, p.D, keys, [&](int64_t i, auto &acc) {
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
        store(s.p + at, exp_negative(x - lse[j]));
      }
  });
  const F scale = broadcast(p.scale);
  products<V, true>(v, v_step, s.dout_turned + c, kStrip, p.E, keys, [&](int64_t i, auto &acc) {
    constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        const int64_t at = (i + r) * kStrip + c + j * W;
        store(s.ds + at, load(s.p + at) * (acc[r][j] - delta[j]) * scale);
      }
  });
  products<V, false>(k, k_step, s.ds + c, kStrip, keys, p.D, [&](int64_t i, auto &acc) {
    constexpr int R = sizeof(acc) / sizeof(acc[0]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        float *at = s.dq + (i + r) * kStrip + c + j * W;
        store(at, load(at) + acc[r][j]);
      }
  });
}

int32_t attention_grad(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1) {
  const Problem p(d);
  const int64_t Dp = ceil_div(p.D, kPad) * kPad, Ep = ceil_div(p.E, kPad) * kPad;
  const Strip s(static_cast<float *>(ctx->scratch), Dp, Ep);
  const int n = p.mask_kind ? 4 : 3;
  const int64_t offset = p.S - p.T;
  for (int j = 0; j < kStrip; j += W) store(s.ones + j, broadcast(1.0f));
  for (int64_t r = r0; r < r1; ++r) {
    const int64_t b = r / p.H, h = r % p.H;
    const float *q = at<const float>(ptrs, 0) + p.q.at(b, h);
    const float *k = at<const float>(ptrs, 1) + p.k.at(b, h);
    const float *v = at<const float>(ptrs, 2) + p.v.at(b, h);
    const float *dout = at<const float>(ptrs, n) + p.dout.at(b, h);
    const float *lse = at<const float>(ptrs, n + 1) + r * p.T;
    const float *delta = at<const float>(ptrs, n + 2) + r * p.T;
    float *dq = at<float>(ptrs, n + 3) + p.dq.at(b, h);
    float *dk = at<float>(ptrs, p.joined ? n + 3 : n + 4) + p.dk.at(b, h);
    float *dv = at<float>(ptrs, p.joined ? n + 3 : n + 5) + p.dv.at(b, h);
    Mask mask{nullptr, p.mask_kind, p.mask[2], p.mask[3]};
    if (p.mask_kind)
      mask.data = at<const char>(ptrs, 3) +
                  (b * p.mask[0] + h * p.mask[1]) * (p.mask_kind == 1 ? 1 : 4);
    for (int64_t i = 0; i < p.S; ++i) {
      zero_run(dk + i * p.dk.t, p.D);
      zero_run(dv + i * p.dv.t, p.E);
    }
    for (int64_t q0 = 0; q0 < p.T; q0 += kStrip) {
      const int64_t nq = min64(kStrip, p.T - q0);
      gather_rows(s.q, Dp, q + q0 * p.q.t, p.q.t, nq, p.D);
      gather_rows(s.dout, Ep, dout + q0 * p.dout.t, p.dout.t, nq, p.E);
      turn(s.q_turned, kStrip, s.q, Dp, nq, p.D, p.scale);
      turn(s.dout_turned, kStrip, s.dout, Ep, nq, p.E, 1.0f);
      for (int64_t e = 0; e < Dp; ++e) zero_run(s.dq + e * kStrip, kStrip);
      for (int j = 0; j < kStrip; j += W) {
        const int left = static_cast<int>(max64(0, min64(W, nq - j)));
        store(s.lse + j, load_first(lse + q0 + j, left));
        store(s.delta + j, load_first(delta + q0 + j, left));
      }
      const int64_t end = keys_seen(p.causal, q0, nq, offset, 0, p.S);
      for (int64_t k0 = 0; k0 < end; k0 += kKeys) {
        const int64_t nk = min64(kKeys, p.S - k0);
        const float *kb = k + k0 * p.k.t, *vb = v + k0 * p.v.t;
        int64_t k_step = p.k.t, v_step = p.v.t;
        if (k_step > Dp) {
          gather_rows(s.k, Dp, kb, k_step, nk, p.D);
          kb = s.k, k_step = Dp;
        }
        if (v_step > Ep) {
          gather_rows(s.v, Ep, vb, v_step, nk, p.E);
          vb = s.v, v_step = Ep;
        }
        if (mask.data) mask_block(s.mask, s.rows, mask, q0, nq, k0, nk);
        const bool cut = p.causal && q0 + offset < k0 + nk - 1;
        const int64_t group = cut ? kGroup : kStrip;
        for (int64_t c = 0; c < nq; c += group) {
          const int64_t queries = min64(group, nq - c);
          const int64_t keys = keys_seen(p.causal, q0 + c, queries, offset, k0, nk);
          if (!keys) continue;
          by_vectors(ceil_div(queries, W), [&](auto vectors, int64_t j) {
            probabilities<decltype(vectors)::value>(p, s, kb, k_step, vb, v_step, c + j * W, keys,
                                                    mask.data != nullptr, cut, q0 + offset - k0);
          });
          add_product<true>(dv + k0 * p.dv.t, p.dv.t, s.p + c, kStrip, s.dout + c * Ep, Ep,
                            queries, keys, p.E);
          add_product<true>(dk + k0 * p.dk.t, p.dk.t, s.ds + c, kStrip, s.q + c * Dp, Dp, queries,
                            keys, p.D);
        }
      }
      turn_back(dq + q0 * p.dq.t, p.dq.t, s.dq, kStrip, p.D, nq, s.ones);
    }
  }
  return NIR_OK;
}

}  // namespace
}  // namespace NIR_NS

NIR_KERNEL(attention_grad_f32) {
  (void)c0, (void)c1;
  return NIR_NS::attention_grad(ctx, ptrs, dims, r0, r1);
}
