#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>

namespace nir {

namespace {

// Eight classes between two powers of two: at most an eighth of a block is not asked for.
constexpr int kSteps = 8;
constexpr int kClasses = 48 * kSteps;
constexpr size_t kHugeFrom = size_t{4} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

size_t class_bytes(int c) {
  const size_t base = size_t{64 * kSteps} << (c / kSteps);
  return base + base / kSteps * static_cast<size_t>(c % kSteps);
}

// The smallest class that holds `size` bytes: all are multiples of 64.
int class_of(size_t size) {
  int octave = 0;
  while (octave < 47 && (size_t{64 * kSteps} << (octave + 1)) <= size) ++octave;
  for (int c = octave * kSteps; c < kClasses; ++c)
    if (class_bytes(c) >= size) return c;
  throw Error(ErrorKind::kMemory, "cannot allocate " + std::to_string(size) + " bytes");
}

struct Pool {
  ForkSafeMutex mutex;
  Block *free[kClasses] = {};
  size_t live = 0, cached = 0, peak_live = 0, allocations = 0;
  size_t asked = 0, peak_asked = 0;
  int cursor = 0;

  void use(Block *b, size_t size) {
    live += b->capacity;
    peak_live = std::max(peak_live, live);
    b->asked = size;
    asked += size;
    peak_asked = std::max(peak_asked, asked);
  }
  // What may wait for reuse: as much as was ever in use at once, and some.
  size_t limit() const { return std::max(peak_live, size_t{256} << 20); }
};

Pool &pool() {
  // Never destroyed: blocks may outlive static destructors.
  static Pool *p = new Pool;
  return *p;
}

// A new block, or null.
Block *allocate(int c) {
  const size_t size = class_bytes(c);
  const size_t align = size >= kHugeFrom ? kHugePage : kAlign;
  void *memory = nullptr;
  if (posix_memalign(&memory, align, size) != 0) return nullptr;
  // Huge pages: fewer faults on first touch and fewer TLB misses after.
  if (size >= kHugeFrom) madvise(memory, size & ~(kHugePage - 1), MADV_HUGEPAGE);
  Block *b = new (std::nothrow) Block;
  if (!b) {
    std::free(memory);
    return nullptr;
  }
  b->data = static_cast<uint8_t *>(memory);
  b->capacity = size;
  b->size_class = c;
  return b;
}

void destroy(Block *b) {
  std::free(b->data);
  delete b;
}

}  // namespace

BlockRef acquire_block(size_t size) {
  const int c = class_of(std::max<size_t>(size, 1));
  Pool &p = pool();
  Block *b;
  {
    std::lock_guard<ForkSafeMutex> lock(p.mutex);
    b = p.free[c];
    if (b) {
      p.free[c] = b->next;
      p.cached -= b->capacity;
      p.use(b, size);
      b->refs.store(1, std::memory_order_relaxed);
      return BlockRef(b);
    }
  }
  b = allocate(c);
  if (!b) {
    // What waits for reuse may be all that is missing.
    trim_memory();
    b = allocate(c);
  }
  if (!b) throw Error(ErrorKind::kMemory, "cannot allocate " + std::to_string(size) + " bytes");
  std::lock_guard<ForkSafeMutex> lock(p.mutex);
  ++p.allocations;
  p.use(b, size);
  return BlockRef(b);
}

BlockRef foreign_block(void *data, size_t size, void (*release)(void *), void *owner) {
  Block *b = new Block;
  b->data = static_cast<uint8_t *>(data);
  b->capacity = size;
  b->release = release;
  b->owner = owner;
  return BlockRef(b);
}

void BlockRef::reset() {
  Block *b = std::exchange(block_, nullptr);
  if (!b || b->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (!b->pooled()) {
    if (b->release) b->release(b->owner);
    delete b;
    return;
  }
  Pool &p = pool();
  Block *dropped = nullptr;
  {
    std::lock_guard<ForkSafeMutex> lock(p.mutex);
    p.live -= b->capacity;
    p.asked -= b->asked;
    p.cached += b->capacity;
    b->next = p.free[b->size_class];
    p.free[b->size_class] = b;
    // Over the limit: classes give up blocks in turn, so that none hoards.
    for (int tried = 0; p.cached > p.limit() && tried < kClasses;
         p.cursor = (p.cursor + 1) % kClasses) {
      Block *&head = p.free[p.cursor];
      if (!head) {
        ++tried;
        continue;
      }
      tried = 0;
      Block *out = head;
      head = out->next;
      p.cached -= out->capacity;
      out->next = dropped;
      dropped = out;
    }
  }
  while (dropped) destroy(std::exchange(dropped, dropped->next));
}

MemoryStats memory_stats() {
  Pool &p = pool();
  std::lock_guard<ForkSafeMutex> lock(p.mutex);
  return {p.live, p.cached, p.allocations, p.asked, p.peak_asked};
}

void reset_peak_memory() {
  Pool &p = pool();
  std::lock_guard<ForkSafeMutex> lock(p.mutex);
  p.peak_asked = p.asked;
}

void trim_memory() {
  Pool &p = pool();
  Block *dropped = nullptr;
  {
    std::lock_guard<ForkSafeMutex> lock(p.mutex);
    for (Block *&head : p.free) {
      while (Block *b = head) {
        head = b->next;
        b->next = dropped;
        dropped = b;
      }
    }
    p.cached = 0;
  }
  while (dropped) destroy(std::exchange(dropped, dropped->next));
}

}  // namespace nir
