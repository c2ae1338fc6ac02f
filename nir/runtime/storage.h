// Storage: a tensor in memory as Python sees it.
#ifndef NIR_RUNTIME_STORAGE_H
#define NIR_RUNTIME_STORAGE_H

#include <pybind11/pybind11.h>

#include "executor.h"

namespace nir {

// Every view (numpy's, DLPack's, another Storage) holds a reference to the block, so that a run
// knows whether it may overwrite it. A donated Storage is stale: its block is gone.
struct Storage {
  TensorRef tensor;
  bool readonly = false;

  // The tensor; throws Error(kStale) after a donation.
  const TensorRef &live() const;
  int64_t elements() const;
};

void bind_storage(pybind11::module_ &m);

}  // namespace nir

#endif  // NIR_RUNTIME_STORAGE_H
