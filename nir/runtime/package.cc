#include "package.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace nir {

namespace {

struct Section {
  uint32_t kind, a, b, crc;
  uint64_t offset, size;
};
static_assert(sizeof(Section) == kPackageEntry, "the table's entries are 32 bytes");

class PackageReader {
 public:
  PackageReader(const std::string &path, Verify verify) : path_(path), verify_(verify) {}

  Package read() {
    map();
    read_header();
    read_sections();
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const std::string &why) const {
    throw Error(ErrorKind::kPackage, path_ + ": " + why);
  }

  void map() {
    const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(std::strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      close(fd);
      fail("it is not a file");
    }
    const auto size = static_cast<size_t>(info.st_size);
    if (size < kPackageHeader) {
      close(fd);
      fail("it is not a nir package: it has " + std::to_string(size) + " bytes");
    }
    void *at = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (at == MAP_FAILED) fail("it cannot be mapped");
    struct Mapping {
      void *at;
      size_t size;
    };
    out_.file = foreign_block(
        at, size,
        [](void *owner) {
          auto *m = static_cast<Mapping *>(owner);
          munmap(m->at, m->size);
          delete m;
        },
        new Mapping{at, size});
    data_ = static_cast<const uint8_t *>(at);
    size_ = size;
  }

  template <class T>
  T at(size_t offset) const {
    T value;
    std::memcpy(&value, data_ + offset, sizeof(T));
    return value;
  }

  void read_header() {
    if (std::memcmp(data_, kPackageMagic, 8)) fail("it is not a nir package");
    const auto version = at<uint32_t>(8);
    if (version != kPackageVersion)
      fail("package version " + std::to_string(version) + "; this nir reads version " +
           std::to_string(kPackageVersion));
    if (crc32(data_, 60) != at<uint32_t>(60)) fail("damaged: header checksum");
    if (at<uint64_t>(16) != size_)
      fail("damaged: it has " + std::to_string(size_) + " bytes, its header says " +
           std::to_string(at<uint64_t>(16)));
    for (size_t i = 28; i < 60; ++i)
      if (data_[i]) fail("damaged: header");
    const auto count = at<uint32_t>(12);
    if (count > (size_ - kPackageHeader) / kPackageEntry) fail("damaged: too many sections");
    const size_t table = count * kPackageEntry;
    if (crc32(data_ + kPackageHeader, table) != at<uint32_t>(24)) fail("damaged: section table");
    sections_.resize(count);
    if (count) std::memcpy(sections_.data(), data_ + kPackageHeader, table);
    // Sections follow each other: none overlaps another or the table.
    uint64_t end = kPackageHeader + table;
    for (const Section &s : sections_) {
      if (s.offset % kAlign || s.offset < end || s.offset > size_ || s.size > size_ - s.offset)
        fail("damaged: a section lies outside the file");
      end = s.offset + s.size;
    }
  }

  void check(const Section &s) const {
    if (crc32(data_ + s.offset, s.size) != s.crc)
      fail("damaged: checksum of section " + std::to_string(&s - sections_.data()));
  }

  const Section &only(SectionKind kind, const char *what) const {
    const Section *found = nullptr;
    for (const Section &s : sections_) {
      if (s.kind != kind) continue;
      if (found) fail(std::string("damaged: two sections hold the ") + what);
      found = &s;
    }
    if (!found) fail(std::string("damaged: no section holds the ") + what);
    check(*found);
    return *found;
  }

  std::string text_of(const Section &s) const {
    return std::string(reinterpret_cast<const char *>(data_ + s.offset), s.size);
  }

  void read_sections() {
    const Section &program = only(kSectionProgram, "program");
    out_.encoded = {data_ + program.offset, program.size};
    try {
      out_.program = read_program(out_.encoded.data, out_.encoded.size);
    } catch (const Error &e) {
      fail(e.what());
    }
    out_.metadata = text_of(only(kSectionMetadata, "metadata"));
    out_.text = text_of(only(kSectionText, "IR text"));
    for (const KernelRecord &k : out_.program.kernels)
      if (k.source == kHost) fail("it calls " + k.name + ", a function of another process");

    uint64_t weights = 0;
    for (const Section &s : sections_)
      if (s.kind == kSectionConstant) weights += s.size;
    const bool verified = verify_ == Verify::kAll || weights <= kVerifyLimit;
    out_.constants.resize(out_.program.constants.size());
    for (const Section &s : sections_) {
      switch (s.kind) {
        case kSectionProgram:
        case kSectionMetadata:
        case kSectionText:
          break;
        case kSectionConstant:
          if (verified) check(s);
          read_constant(s);
          break;
        case kSectionCode:
          check(s);
          read_code(s);
          break;
        default:
          fail("damaged: section kind " + std::to_string(s.kind));
      }
    }
    for (const TensorRef &c : out_.constants)
      if (!c.block) fail("damaged: a constant is missing");
  }

  void read_constant(const Section &s) {
    if (s.a >= out_.constants.size() || s.b) fail("damaged: a constant that the program lacks");
    const ConstantRecord &record = out_.program.constants[s.a];
    TensorRef &t = out_.constants[s.a];
    if (t.block || record.size != s.size || record.crc != s.crc)
      fail("damaged: constant " + std::to_string(s.a) + " is not the program's");
    t.block = out_.file;
    t.data = const_cast<uint8_t *>(data_ + s.offset);
    t.dtype = kU8;
    t.rank = 1;
    t.shape[0] = static_cast<int64_t>(s.size);
  }

  void read_code(const Section &s) {
    const auto &kernels = out_.program.kernels;
    if (s.a >= kernels.size() || kernels[s.a].source != kGenerated || !isa_name(s.b))
      fail("damaged: code that the program lacks");
    const BlobView blob{data_ + s.offset, s.size};
    if (!out_.codes[kernels[s.a].name].emplace(s.b, blob).second)
      fail("damaged: two sections hold the same code");
    check_blob(blob, kernels[s.a].name);
  }

  std::string path_;
  Verify verify_;
  Package out_;
  const uint8_t *data_ = nullptr;
  size_t size_ = 0;
  std::vector<Section> sections_;
};

}  // namespace

Package open_package(const std::string &path, Verify verify) {
  return PackageReader(path, verify).read();
}

}  // namespace nir
