// Sorting, and the k largest or smallest, along an axis of [outer, n, inner].
//
//   sort   ptrs  x, values (x's shape), indices i64 (x's shape)
//          dims  0 outer  1 n  2 inner  3 descending
//          scratch  2 n items
//   top_k  ptrs  x, values [outer, k, inner], indices i64 [outer, k, inner]
//          dims  0 outer  1 n  2 inner  3 largest  4 k
//          scratch  k items
//   rows  outer; cols  inner.  An item is 8 bytes, 16 for elements of 8 bytes.
//
// Elements become unsigned keys whose order is the op's: -0 and +0 have one key, all nan the
// highest. With the index behind it every item is distinct, so the result does not depend on how it
// is found, and it is the stable order. k > n is NIR_INDEX_OUT_OF_RANGE.
#include "simd.h"

namespace NIR_NS {
namespace {

// How the bits of an element make a key: of an unsigned or signed integer, or of a float whose
// infinity has the bits `inf`.
enum Form { kUnsigned, kSigned, kFloating };

template <class U, Form form, uint64_t inf = 0>
struct Element {
  using Bits = U;
  static constexpr U kTop = static_cast<U>(U{1} << (8 * sizeof(U) - 1));

  static NIR_INLINE U key(U bits) {
    if constexpr (form == kUnsigned) return bits;
    if constexpr (form == kSigned) return static_cast<U>(bits ^ kTop);
    const U size = static_cast<U>(bits & ~kTop);
    if (size > static_cast<U>(inf)) return static_cast<U>(~U{0});
    // Positive numbers lie above kTop in their own order, negative ones below it in reverse.
    return static_cast<U>(bits & kTop ? kTop - size : kTop + size);
  }
};

template <class K, class I>
struct Item {
  K key;
  I index;
};
template <class U>
struct ItemOf {
  using type = Item<uint32_t, uint32_t>;
};
template <>
struct ItemOf<uint64_t> {
  using type = Item<uint64_t, uint64_t>;
};

template <class T>
NIR_INLINE bool before(const T &a, const T &b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

constexpr int64_t kFew = 40;

template <class T>
void insertion_sort(T *items, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const T item = items[i];
    int64_t j = i;
    // Items come in the order of their indices, so keys alone decide.
    for (; j > 0 && item.key < items[j - 1].key; --j) items[j] = items[j - 1];
    items[j] = item;
  }
}

// Least significant byte first; a byte that is the same in all keys costs nothing. Returns the
// buffer, of the two, that holds the result.
template <int kBytes, class T>
T *radix_sort(T *items, T *other, int64_t n) {
  int64_t counts[kBytes][256] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int b = 0; b < kBytes; ++b) ++counts[b][items[i].key >> (8 * b) & 255];
  for (int b = 0; b < kBytes; ++b) {
    int64_t *count = counts[b], start = 0;
    if (count[items[0].key >> (8 * b) & 255] == n) continue;
    for (int v = 0; v < 256; ++v) {
      const int64_t here = count[v];
      count[v] = start;
      start += here;
    }
    for (int64_t i = 0; i < n; ++i) other[count[items[i].key >> (8 * b) & 255]++] = items[i];
    T *swap = items;
    items = other;
    other = swap;
  }
  return items;
}

template <class E>
int32_t sort(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
             int64_t c1) {
  using U = typename E::Bits;
  using T = typename ItemOf<U>::type;
  using K = decltype(T::key);
  using I = decltype(T::index);
  const int64_t n = d[1], inner = d[2];
  if (static_cast<int64_t>(static_cast<I>(n)) != n) return NIR_UNSUPPORTED;
  const U flip = d[3] ? static_cast<U>(~U{0}) : U{0};
  T *first = static_cast<T *>(ctx->scratch), *second = first + n;
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t c = c0; c < c1; ++c) {
      const U *x = at<const U>(ptrs, 0) + r * n * inner + c;
      U *values = at<U>(ptrs, 1) + r * n * inner + c;
      int64_t *indices = at<int64_t>(ptrs, 2) + r * n * inner + c;
      for (int64_t i = 0; i < n; ++i)
        first[i] = {static_cast<K>(static_cast<U>(E::key(x[i * inner]) ^ flip)),
                    static_cast<I>(i)};
      const T *sorted = first;
      if (n <= kFew)
        insertion_sort(first, n);
      else
        sorted = radix_sort<sizeof(U)>(first, second, n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t from = static_cast<int64_t>(sorted[i].index);
        values[i * inner] = x[from * inner];
        indices[i * inner] = from;
      }
    }
  return finish(ctx, r0, r1, c0, c1);
}

// Restores the heap (the last in the order on top) below position i, whose item may be too early.
template <class T>
void sift_down(T *heap, int64_t k, int64_t i) {
  const T item = heap[i];
  for (int64_t child; (child = 2 * i + 1) < k; i = child) {
    if (child + 1 < k && before(heap[child], heap[child + 1])) ++child;
    if (!before(item, heap[child])) break;
    heap[i] = heap[child];
  }
  heap[i] = item;
}

template <class E>
int32_t top_k(nir_ctx *ctx, void *const *ptrs, const int64_t *d, int64_t r0, int64_t r1, int64_t c0,
              int64_t c1) {
  using U = typename E::Bits;
  using T = typename ItemOf<U>::type;
  using K = decltype(T::key);
  using I = decltype(T::index);
  const int64_t n = d[1], inner = d[2], k = d[4];
  if (k > n) {
    ctx->detail[0] = k - 1;
    ctx->detail[1] = n;
    return NIR_INDEX_OUT_OF_RANGE;
  }
  if (static_cast<int64_t>(static_cast<I>(n)) != n) return NIR_UNSUPPORTED;
  if (k == 0) return finish(ctx, r0, r1, c0, c1);
  const U flip = d[3] ? static_cast<U>(~U{0}) : U{0};
  T *heap = static_cast<T *>(ctx->scratch);
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t c = c0; c < c1; ++c) {
      const U *x = at<const U>(ptrs, 0) + r * n * inner + c;
      const auto item = [&](int64_t i) {
        return T{static_cast<K>(static_cast<U>(E::key(x[i * inner]) ^ flip)), static_cast<I>(i)};
      };
      for (int64_t i = 0; i < k; ++i) heap[i] = item(i);
      for (int64_t i = k / 2; i-- > 0;) sift_down(heap, k, i);
      // A later equal of the last one kept comes after it: keys alone decide.
      for (int64_t i = k; i < n; ++i) {
        const T next = item(i);
        if (next.key < heap[0].key) {
          heap[0] = next;
          sift_down(heap, k, 0);
        }
      }
      for (int64_t m = k - 1; m > 0; --m) {
        const T last = heap[0];
        heap[0] = heap[m];
        heap[m] = last;
        sift_down(heap, m, 0);
      }
      for (int64_t i = 0; i < k; ++i) {
        const int64_t from = static_cast<int64_t>(heap[i].index), to = (r * k + i) * inner + c;
        at<U>(ptrs, 1)[to] = x[from * inner];
        at<int64_t>(ptrs, 2)[to] = from;
      }
    }
  return finish(ctx, r0, r1, c0, c1);
}

}  // namespace
}  // namespace NIR_NS

#define DEFINE(dtype, ...)                                               \
  NIR_KERNEL(sort_##dtype) {                                             \
    using namespace NIR_NS;                                              \
    return sort<Element<__VA_ARGS__>>(ctx, ptrs, dims, r0, r1, c0, c1);  \
  }                                                                      \
  NIR_KERNEL(top_k_##dtype) {                                            \
    using namespace NIR_NS;                                              \
    return top_k<Element<__VA_ARGS__>>(ctx, ptrs, dims, r0, r1, c0, c1); \
  }
DEFINE(f32, uint32_t, kFloating, 0x7f800000)
DEFINE(f64, uint64_t, kFloating, 0x7ff0000000000000)
DEFINE(f16, uint16_t, kFloating, 0x7c00)
DEFINE(bf16, uint16_t, kFloating, 0x7f80)
DEFINE(i64, uint64_t, kSigned)
DEFINE(i32, uint32_t, kSigned)
DEFINE(i16, uint16_t, kSigned)
DEFINE(i8, uint8_t, kSigned)
DEFINE(u8, uint8_t, kUnsigned)
