// What every part of the runtime shares: typed errors, checksums, checked arithmetic.
#ifndef NIR_RUNTIME_COMMON_H
#define NIR_RUNTIME_COMMON_H

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace nir {

// Each kind is an exception of nir/errors.py.
enum class ErrorKind { kNir, kShape, kDType, kDevice, kStale, kUnsupported, kPackage, kMemory };

struct Error : std::runtime_error {
  Error(ErrorKind k, const std::string &message) : std::runtime_error(message), kind(k) {}
  ErrorKind kind;
};

// A kernel returned a nonzero status: the call's number leads to the op and the user's line.
struct KernelError : std::runtime_error {
  KernelError(int32_t s, size_t c, int64_t d0, int64_t d1)
      : std::runtime_error("kernel status " + std::to_string(s)),
        status(s),
        call(c),
        detail{d0, d1} {}
  int32_t status;
  size_t call;
  int64_t detail[2];
};

// CRC-32 as zlib computes it; `crc` continues an earlier one.
uint32_t crc32(const void *data, size_t size, uint32_t crc = 0);

// A mutex that a forked child finds free. Never destroyed, and a leaf: nothing is locked under it.
class ForkSafeMutex {
 public:
  ForkSafeMutex();
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

constexpr size_t kAlign = 64;

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_add_overflow(a, b, &out))
    throw Error(ErrorKind::kMemory, "a size overflows 64 bits");
  return out;
}

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_mul_overflow(a, b, &out))
    throw Error(ErrorKind::kMemory, "a size overflows 64 bits");
  return out;
}

inline int64_t floor_div(int64_t a, int64_t b) {
  const int64_t q = a / b;
  return q - (a % b != 0 && (a < 0) != (b < 0));
}

inline int64_t round_up(int64_t n, int64_t to = kAlign) {
  return checked_mul(floor_div(checked_add(n, to - 1), to), to);
}

}  // namespace nir

#endif  // NIR_RUNTIME_COMMON_H
