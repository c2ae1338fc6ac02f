// Vectors of one ISA level, on the compiler's vector extension: lane-wise + - * compare come from
// the language; what it lacks (fused multiply-add, masked loads and stores) is here.
//
// Everything inline lives in a namespace named after the ISA level: the same header is compiled
// once per level, and the linker must never let one level's copy of a function serve another.
#ifndef NIR_SIMD_H
#define NIR_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#else
#include <math.h>
#endif

#include "nir_kernel.h"

#define NIR_CAT_(a, b) a##b
#define NIR_CAT(a, b) NIR_CAT_(a, b)
#define NIR_NS NIR_CAT(nir_, NIR_ISA)
// The symbol of a kernel at this ISA level: NIR_SYMBOL(matmul_f32_packed) is
// nir_matmul_f32_packed_avx512.
#define NIR_SYMBOL(name) NIR_CAT(NIR_CAT(NIR_CAT(nir_, name), _), NIR_ISA)
#define NIR_KERNEL(name)                                                                     \
  extern "C" int32_t NIR_SYMBOL(name)(nir_ctx * ctx, void *const *ptrs, const int64_t *dims, \
                                      int64_t r0, int64_t r1, int64_t c0, int64_t c1)
#define NIR_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define NIR_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define NIR_VECTOR_BYTES 32
#else
#define NIR_VECTOR_BYTES 16
#endif

namespace NIR_NS {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(NIR_VECTOR_BYTES)));
  // The same vector in memory: any alignment, any aliasing.
  typedef T memory __attribute__((vector_size(NIR_VECTOR_BYTES), aligned(1), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int kLanes = NIR_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
constexpr bool kFloat = static_cast<T>(0.5) != 0;

template <class T>
NIR_INLINE Vec<T> load(const T *p) {
  return *reinterpret_cast<const typename VecOf<T>::memory *>(p);
}
template <class T>
NIR_INLINE void store(T *p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::memory *>(p) = v;
}
template <class T>
NIR_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - (+0) is x for every x, -0 included
}

// The first n of the lanes, 0 <= n <= lanes; memory past them is not touched.
template <class T>
NIR_INLINE Vec<T> load_first(const T *p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p);
  else if constexpr (sizeof(T) == 8)
    return (Vec<T>)_mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return (Vec<T>)_mm256_maskload_epi32(reinterpret_cast<const int *>(p), mask);
  } else if constexpr (sizeof(T) == 8) {
    __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    return (Vec<T>)_mm256_maskload_epi64(reinterpret_cast<const long long *>(p), mask);
  }
#endif
  Vec<T> v{};
  memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
  return v;
}
template <class T>
NIR_INLINE void store_first(T *p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)v);
  else if constexpr (sizeof(T) == 8)
    return _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), (__m512i)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskstore_epi32(reinterpret_cast<int *>(p), mask, (__m256i)v);
  } else if constexpr (sizeof(T) == 8) {
    __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_maskstore_epi64(reinterpret_cast<long long *>(p), mask, (__m256i)v);
  }
#endif
  memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
}

// Up to a whole vector, for loops whose last one is shorter.
template <class T>
NIR_INLINE Vec<T> load_some(const T *p, int n) {
  return n == kLanes<T> ? load(p) : load_first(p, n);
}
template <class T>
NIR_INLINE void store_some(T *p, Vec<T> v, int n) {
  n == kLanes<T> ? store(p, v) : store_first(p, v, n);
}

// a * b + c with one rounding, on every ISA level.
NIR_INLINE double fma1(double a, double b, double c) { return __builtin_fma(a, b, c); }
NIR_INLINE float fma1(float a, float b, float c) {
#if defined(__FMA__) || !defined(__x86_64__)
  return __builtin_fmaf(a, b, c);
#else
  // The product of two floats is exact in double. Rounding the double sum to odd (its last bit set
  // whenever the sum was inexact) makes the final rounding to float the only one that counts.
  double product = static_cast<double>(a) * b, addend = c, sum = product + addend;
  double back = sum - product, error = (product - (sum - back)) + (addend - back);
  int64_t bits;
  memcpy(&bits, &sum, 8);
  int64_t inexact = (error > 0) | (error < 0);
  int64_t toward = ((error > 0) == (sum > 0)) ? 1 : -1;
  bits += inexact & ~bits & 1 ? toward : 0;
  memcpy(&sum, &bits, 8);
  return static_cast<float>(sum);
#endif
}
template <class T>
NIR_INLINE T fma1(T a, T b, T c) {
  return static_cast<T>(a * b + c);
}

template <class T>
NIR_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && kFloat<T>) return _mm512_fmadd_ps(a, b, c);
  if constexpr (sizeof(T) == 8 && kFloat<T>) return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4 && kFloat<T>) return _mm256_fmadd_ps(a, b, c);
  if constexpr (sizeof(T) == 8 && kFloat<T>) return _mm256_fmadd_pd(a, b, c);
#else
  if constexpr (kFloat<T>) {
    for (int i = 0; i < kLanes<T>; ++i) c[i] = fma1(a[i], b[i], c[i]);
    return c;
  }
#endif
  return a * b + c;
}

NIR_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
NIR_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
NIR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// n elements without a call: the runs that convolutions move are a few vectors long.
template <class T>
NIR_INLINE void copy_run(T *dst, const T *src, int64_t n) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(dst + i, load(src + i));
  if (i < n)
    store_first(dst + i, load_first(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}
template <class T>
NIR_INLINE void zero_run(T *dst, int64_t n) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(dst + i, Vec<T>{});
  if (i < n) store_first(dst + i, Vec<T>{}, static_cast<int>(n - i));
}

template <class T>
NIR_INLINE T *at(void *const *ptrs, int i) {
  return static_cast<T *>(ptrs[i]);
}

// Runs the call's epilogue, if it has one, on a finished tile.
NIR_INLINE int32_t finish(nir_ctx *ctx, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  if (!ctx->epilogue) return NIR_OK;
  return ctx->epilogue(ctx, ctx->epilogue_ptrs, ctx->epilogue_dims, r0, r1, c0, c1);
}

}  // namespace NIR_NS

#endif  // NIR_SIMD_H
