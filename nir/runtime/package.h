// Reads .nirp packages: one memory-mapped file with program, code, weights and text.
// docs/package.md describes the format byte by byte; nir/runtime/package.py writes it.
#ifndef NIR_RUNTIME_PACKAGE_H
#define NIR_RUNTIME_PACKAGE_H

#include <string>
#include <vector>

#include "executor.h"

namespace nir {

constexpr unsigned char kPackageMagic[8] = {0x89, 'N', 'I', 'R', 'P', '\r', '\n', 0x1a};
constexpr uint32_t kPackageVersion = 1;
constexpr size_t kPackageHeader = 64;
constexpr size_t kPackageEntry = 32;
// Larger weights are not read through for their checksums unless that is asked for.
constexpr uint64_t kVerifyLimit = uint64_t{16} << 20;

enum SectionKind : uint32_t {
  kSectionProgram = 1,
  kSectionMetadata = 2,
  kSectionText = 3,
  kSectionConstant = 4,  // a: its number
  kSectionCode = 5,      // a: the kernel's number in the program, b: the ISA level
};

enum class Verify { kSmall, kAll };

struct Package {
  BlockRef file;  // the mapping; constants and views hold it too
  BlobView encoded;
  Program program;
  std::vector<TensorRef> constants;
  Codes codes;
  std::string metadata;
  std::string text;
};

// Maps and checks a package; throws Error(kPackage) for anything but a whole, undamaged one.
Package open_package(const std::string &path, Verify verify);

}  // namespace nir

#endif  // NIR_RUNTIME_PACKAGE_H
