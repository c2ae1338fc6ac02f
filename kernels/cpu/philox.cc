// random_bits: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1,
// 2, 3", SC 2011).
//
//   ptrs  key i64[], counter i64[], y i32[n]
//   dims  0 n
//   rows  n; cols  1
//
// y[i] is word i % 4 of block counter + i / 4. The block's number fills words 0 and 1 of the
// counter (low half first), words 2 and 3 are 0; the key's low half comes first too.
#include "simd.h"

namespace NIR_NS {
namespace {

constexpr int kBlocks = 16;  // blocks computed side by side, one a lane

// word[w][b] = word w of block first + b.
NIR_INLINE void philox(uint64_t key, uint64_t first, uint32_t word[4][kBlocks]) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int b = 0; b < kBlocks; ++b) {
    word[0][b] = static_cast<uint32_t>(first + b);
    word[1][b] = static_cast<uint32_t>((first + b) >> 32);
    word[2][b] = word[3][b] = 0;
  }
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int b = 0; b < kBlocks; ++b) {
      const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * word[0][b];
      const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * word[2][b];
      const uint32_t w1 = word[1][b], w3 = word[3][b];
      word[0][b] = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ k0;
      word[1][b] = static_cast<uint32_t>(p1);
      word[2][b] = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ k1;
      word[3][b] = static_cast<uint32_t>(p0);
    }
}

}  // namespace
}  // namespace NIR_NS

NIR_KERNEL(random_bits_i32) {
  using namespace NIR_NS;
  (void)dims;
  const uint64_t key = static_cast<uint64_t>(*at<const int64_t>(ptrs, 0));
  const uint64_t counter = static_cast<uint64_t>(*at<const int64_t>(ptrs, 1));
  uint32_t *out = at<uint32_t>(ptrs, 2);
  uint32_t word[4][kBlocks];
  for (int64_t i = r0; i < r1;) {
    philox(key, counter + static_cast<uint64_t>(i / 4), word);
    const int64_t start = i / 4 * 4, end = min64(r1, start + 4 * kBlocks);
    for (; i < end; ++i) out[i] = word[(i - start) % 4][(i - start) / 4];
  }
  return finish(ctx, r0, r1, c0, c1);
}
