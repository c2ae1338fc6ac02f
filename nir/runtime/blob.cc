#include "blob.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>

#include "common.h"

namespace nir {

namespace {

const char *const kIsaNames[] = {"plain", "avx2", "avx512", "neon"};
constexpr uint32_t kIsaCount = sizeof(kIsaNames) / sizeof(kIsaNames[0]);

template <class T>
T field(const uint8_t *header, size_t offset) {
  T out;
  std::memcpy(&out, header + offset, sizeof(T));
  return out;
}

std::atomic<size_t> g_mapped{0};

}  // namespace

const char *isa_name(uint32_t level) { return level < kIsaCount ? kIsaNames[level] : nullptr; }

int isa_level(const std::string &name) {
  for (uint32_t i = 0; i < kIsaCount; ++i)
    if (name == kIsaNames[i]) return static_cast<int>(i);
  return -1;
}

Arch host_arch() {
#if defined(__aarch64__)
  return kArchAArch64;
#else
  return kArchX86_64;
#endif
}

BlobInfo check_blob(BlobView blob, const std::string &what) {
  const auto fail = [&](const std::string &why) {
    throw Error(ErrorKind::kPackage, "code of " + what + ": " + why);
  };
  const uint8_t *h = blob.data;
  if (blob.size < kBlobHeaderSize) fail("it ends early");
  if (std::memcmp(h, kBlobMagic, sizeof(kBlobMagic))) fail("it does not begin as a blob does");
  if (field<uint32_t>(h, 8) != kBlobVersion)
    fail("version " + std::to_string(field<uint32_t>(h, 8)) + "; this nir reads version " +
         std::to_string(kBlobVersion));
  if (crc32(h, 52) != field<uint32_t>(h, 52)) fail("header checksum");
  const BlobInfo info{field<uint32_t>(h, 12), field<uint32_t>(h, 16), field<uint64_t>(h, 24),
                      field<uint64_t>(h, 32), field<uint64_t>(h, 40)};
  if (field<uint32_t>(h, 20) != kBlobHeaderSize || field<uint64_t>(h, 56) != 0) fail("header");
  if (!isa_name(info.isa)) fail("ISA level " + std::to_string(info.isa));
  if (info.image_size > kBlobMaxImage || info.image_size != blob.size - kBlobHeaderSize)
    fail("its size is not what its header says");
  if (info.text_size == 0 || info.text_size > info.image_size || info.entry >= info.text_size)
    fail("its entry lies outside its text");
  if (crc32(h + kBlobHeaderSize, info.image_size) != field<uint32_t>(h, 48)) fail("checksum");
  return info;
}

class CodePages {
 public:
  explicit CodePages(size_t size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_ = (size + page - 1) / page * page;
    base_ = static_cast<uint8_t *>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw Error(ErrorKind::kMemory, "cannot map memory for code");
    g_mapped += size_;
  }
  ~CodePages() {
    munmap(base_, size_);
    g_mapped -= size_;
  }
  CodePages(const CodePages &) = delete;
  CodePages &operator=(const CodePages &) = delete;

  void seal() {
    if (mprotect(base_, size_, PROT_READ | PROT_EXEC) != 0)
      throw Error(ErrorKind::kMemory, "the system does not let memory become executable");
    __builtin___clear_cache(reinterpret_cast<char *>(base_),
                            reinterpret_cast<char *>(base_ + size_));
  }
  uint8_t *base() const { return base_; }

 private:
  uint8_t *base_;
  size_t size_;
};

namespace {

struct Mapped {
  std::weak_ptr<CodePages> pages;
  const uint8_t *image;
  size_t size;
  uint64_t entry;
};

// Images in memory by checksum. A leaf lock: nothing else is taken under it.
ForkSafeMutex &registry_mutex() {
  static ForkSafeMutex *m = new ForkSafeMutex;
  return *m;
}
std::multimap<uint32_t, Mapped> &registry() {
  static auto *r = new std::multimap<uint32_t, Mapped>;
  return *r;
}

nir_kernel_fn function_at(const uint8_t *address) {
  nir_kernel_fn fn;
  static_assert(sizeof(fn) == sizeof(address), "code and data pointers differ");
  std::memcpy(&fn, &address, sizeof(fn));
  return fn;
}

// Drops entries whose pages are gone whenever the table has doubled.
void sweep() {
  static size_t next = 256;
  if (registry().size() < next) return;
  for (auto it = registry().begin(); it != registry().end();)
    it = it->second.pages.expired() ? registry().erase(it) : std::next(it);
  next = 256 + 2 * registry().size();
}

// The image if it is mapped already. Forgets entries whose pages are gone.
bool find_mapped(uint32_t crc, const uint8_t *image, const BlobInfo &info, LoadedKernel *out) {
  auto [it, end] = registry().equal_range(crc);
  while (it != end) {
    std::shared_ptr<CodePages> pages = it->second.pages.lock();
    if (!pages) {
      it = registry().erase(it);
      continue;
    }
    const Mapped &m = it->second;
    if (m.size == info.image_size && m.entry == info.entry &&
        !std::memcmp(m.image, image, m.size)) {
      *out = {function_at(m.image + m.entry), std::move(pages)};
      return true;
    }
    ++it;
  }
  return false;
}

}  // namespace

std::vector<LoadedKernel> load_blobs(const std::vector<BlobView> &blobs,
                                     const std::vector<std::string> &names, uint32_t isa) {
  std::vector<BlobInfo> infos;
  for (size_t i = 0; i < blobs.size(); ++i) {
    infos.push_back(check_blob(blobs[i], names[i]));
    if (infos[i].arch != host_arch())
      throw Error(ErrorKind::kPackage, "code of " + names[i] + ": it is for another architecture");
    if (infos[i].isa != isa)
      throw Error(ErrorKind::kPackage, "code of " + names[i] + ": it is for " +
                                           isa_name(infos[i].isa) + ", not " + isa_name(isa));
  }
  std::vector<LoadedKernel> out(blobs.size());
  std::vector<size_t> offsets(blobs.size());
  std::lock_guard<ForkSafeMutex> lock(registry_mutex());
  sweep();
  size_t total = 0;
  for (size_t i = 0; i < blobs.size(); ++i) {
    const uint8_t *image = blobs[i].data + kBlobHeaderSize;
    if (find_mapped(field<uint32_t>(blobs[i].data, 48), image, infos[i], &out[i])) continue;
    offsets[i] = total;
    total += (infos[i].image_size + kAlign - 1) / kAlign * kAlign;
  }
  if (total == 0) return out;
  auto pages = std::make_shared<CodePages>(total);
  for (size_t i = 0; i < blobs.size(); ++i)
    if (!out[i].fn)
      std::memcpy(pages->base() + offsets[i], blobs[i].data + kBlobHeaderSize, infos[i].image_size);
  pages->seal();
  for (size_t i = 0; i < blobs.size(); ++i) {
    if (out[i].fn) continue;
    const uint8_t *image = pages->base() + offsets[i];
    out[i] = {function_at(image + infos[i].entry), pages};
    registry().emplace(field<uint32_t>(blobs[i].data, 48),
                       Mapped{pages, image, infos[i].image_size, infos[i].entry});
  }
  return out;
}

size_t mapped_code_bytes() { return g_mapped; }

}  // namespace nir
