// Position-independent code blobs: how generated kernels are stored, everywhere.
//
// A blob is a 64-byte header and one contiguous image: text, then read-only data. Every relocation
// has been applied already and is relative, so the image runs at any 64-byte aligned address. The
// same bytes serve the object cache, the .nirp package and this process.
//
// Header, little-endian (Python: struct "<8sIIIIQQQIIQ"):
//   offset size
//    0      8   magic "NIRBLOB\0"
//    8      4   version, 1
//   12      4   arch: 1 x86-64, 2 AArch64
//   16      4   ISA level: 0 plain, 1 avx2, 2 avx512, 3 neon
//   20      4   header size, 64
//   24      8   text size: bytes of code at the image's start, > 0
//   32      8   image size: text, padding and read-only data; the blob ends at 64 + image size
//   40      8   entry: offset of the kernel in the image, < text size
//   48      4   CRC-32 (zlib's) of the image
//   52      4   CRC-32 of header bytes 0..51
//   56      8   zero
#ifndef NIR_RUNTIME_BLOB_H
#define NIR_RUNTIME_BLOB_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nir_kernel.h"

namespace nir {

constexpr char kBlobMagic[8] = {'N', 'I', 'R', 'B', 'L', 'O', 'B', '\0'};
constexpr uint32_t kBlobVersion = 1;
constexpr size_t kBlobHeaderSize = 64;
constexpr uint64_t kBlobMaxImage = uint64_t{1} << 30;

enum Arch : uint32_t { kArchX86_64 = 1, kArchAArch64 = 2 };
enum IsaLevel : uint32_t { kIsaPlain = 0, kIsaAvx2 = 1, kIsaAvx512 = 2, kIsaNeon = 3 };

// The level's name ("avx512"), or nullptr.
const char *isa_name(uint32_t level);
// The level called `name`, or -1.
int isa_level(const std::string &name);
// The architecture that this library was built for.
Arch host_arch();

struct BlobView {
  const uint8_t *data = nullptr;
  size_t size = 0;
};

struct BlobInfo {
  uint32_t arch = 0;
  uint32_t isa = 0;
  uint64_t text_size = 0;
  uint64_t image_size = 0;
  uint64_t entry = 0;
};

// Checks a blob in full, checksums included; throws Error(kPackage) naming `what`.
BlobInfo check_blob(BlobView blob, const std::string &what);

class CodePages;  // one executable mapping, unmapped with its last user

struct LoadedKernel {
  nir_kernel_fn fn = nullptr;
  std::shared_ptr<CodePages> pages;  // keeps the code mapped
};

// Maps blobs of the level `isa` into executable memory (never writable and executable at once).
// Blobs that are mapped already are shared; the others share one new mapping.
std::vector<LoadedKernel> load_blobs(const std::vector<BlobView> &blobs,
                                     const std::vector<std::string> &names, uint32_t isa);

// Bytes of executable memory that this process holds for blobs.
size_t mapped_code_bytes();

}  // namespace nir

#endif  // NIR_RUNTIME_BLOB_H
