#include "common.h"

#include <pthread.h>

#include <array>
#include <cstring>

namespace nir {

namespace {

struct ForkList {
  std::mutex mutex;
  std::array<ForkSafeMutex *, 16> items{};
  size_t count = 0;
};

ForkList &fork_list() {
  static ForkList *list = new ForkList;
  return *list;
}

void for_each_mutex(void (*f)(ForkSafeMutex *)) {
  ForkList &list = fork_list();
  for (size_t i = 0; i < list.count; ++i) f(list.items[i]);
}

void before_fork() {
  fork_list().mutex.lock();
  for_each_mutex([](ForkSafeMutex *m) { m->lock(); });
}

void after_fork() {
  for_each_mutex([](ForkSafeMutex *m) { m->unlock(); });
  fork_list().mutex.unlock();
}

struct Crc32Tables {
  uint32_t t[8][256];
  Crc32Tables() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (c & 1 ? 0xEDB88320u : 0);
      t[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; ++i)
      for (int k = 1; k < 8; ++k) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255];
  }
};

}  // namespace

ForkSafeMutex::ForkSafeMutex() {
  ForkList &list = fork_list();
  std::lock_guard<std::mutex> lock(list.mutex);
  if (list.count == 0) pthread_atfork(before_fork, after_fork, after_fork);
  if (list.count == list.items.size()) throw std::logic_error("too many fork-safe mutexes");
  list.items[list.count++] = this;
}

uint32_t crc32(const void *data, size_t size, uint32_t crc) {
  static const Crc32Tables tables;
  const auto &t = tables.t;
  const uint8_t *p = static_cast<const uint8_t *>(data);
  uint32_t c = ~crc;
  // Eight bytes a step through eight tables: the lookups are independent of each other.
  for (; size >= 8; size -= 8, p += 8) {
    uint32_t low, high;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + 4, 4);
    low ^= c;
    c = t[7][low & 255] ^ t[6][(low >> 8) & 255] ^ t[5][(low >> 16) & 255] ^ t[4][low >> 24] ^
        t[3][high & 255] ^ t[2][(high >> 8) & 255] ^ t[1][(high >> 16) & 255] ^ t[0][high >> 24];
  }
  for (; size; --size) c = (c >> 8) ^ t[0][(c ^ *p++) & 255];
  return ~c;
}

}  // namespace nir
