// The DLPack data structures (an ABI shared by array libraries), as far as CPU tensors need them.
#ifndef NIR_RUNTIME_DLPACK_H
#define NIR_RUNTIME_DLPACK_H

#include <cstdint>

namespace nir {

struct DLDevice {
  int32_t type;  // 1: the CPU
  int32_t id;
};

struct DLDataType {
  uint8_t code;  // 0 int, 1 unsigned, 2 float, 4 bfloat, 6 bool
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;  // in elements; null: dense
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void *manager_ctx;
  void (*deleter)(DLManagedTensor *);
};

struct DLPackVersion {
  uint32_t major;
  uint32_t minor;
};

constexpr uint64_t kDLPackReadOnly = 1;

struct DLManagedTensorVersioned {
  DLPackVersion version;
  void *manager_ctx;
  void (*deleter)(DLManagedTensorVersioned *);
  uint64_t flags;
  DLTensor dl_tensor;
};

}  // namespace nir

#endif  // NIR_RUNTIME_DLPACK_H
