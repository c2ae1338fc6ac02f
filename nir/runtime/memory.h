// Reference-counted aligned memory, and the pool that recycles it.
#ifndef NIR_RUNTIME_MEMORY_H
#define NIR_RUNTIME_MEMORY_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "common.h"

namespace nir {

// One piece of memory, 64-byte aligned. Pooled blocks return to the pool with their last reference;
// foreign ones (numpy's, a mapped file's) call `release`.
struct Block {
  std::atomic<int64_t> refs{1};
  uint8_t *data = nullptr;
  size_t capacity = 0;
  size_t asked = 0;         // of a pooled one: what its holder needs of it
  int32_t size_class = -1;  // -1: foreign
  Block *next = nullptr;    // in the pool's list
  void (*release)(void *) = nullptr;
  void *owner = nullptr;

  bool pooled() const { return size_class >= 0; }
};

// A counted reference to a Block.
class BlockRef {
 public:
  BlockRef() = default;
  explicit BlockRef(Block *adopted) : block_(adopted) {}
  BlockRef(const BlockRef &other) : block_(other.block_) {
    if (block_) block_->refs.fetch_add(1, std::memory_order_relaxed);
  }
  BlockRef(BlockRef &&other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  BlockRef &operator=(BlockRef other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~BlockRef() { reset(); }

  void reset();
  Block *get() const { return block_; }
  Block *operator->() const { return block_; }
  explicit operator bool() const { return block_ != nullptr; }

 private:
  Block *block_ = nullptr;
};

// A block of at least `size` bytes, not cleared; throws Error(kMemory).
BlockRef acquire_block(size_t size);

// A reference to memory of someone else; `release(owner)` is called after the last use.
BlockRef foreign_block(void *data, size_t size, void (*release)(void *), void *owner);

struct MemoryStats {
  size_t live_bytes;    // in blocks that are referenced
  size_t cached_bytes;  // in blocks that wait for their next use
  size_t allocations;   // blocks ever taken from the system
  size_t asked_bytes;   // of live blocks what their holders asked for
  size_t peak_bytes;    // the most of that at once, since the last reset
};
MemoryStats memory_stats();
// The peak counts from now on.
void reset_peak_memory();

// Gives the cached blocks back to the system.
void trim_memory();

}  // namespace nir

#endif  // NIR_RUNTIME_MEMORY_H
