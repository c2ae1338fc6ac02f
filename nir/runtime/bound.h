// What an Executable keeps of a program once its sizes are known, and what one run uses.
#ifndef NIR_RUNTIME_BOUND_H
#define NIR_RUNTIME_BOUND_H

#include "executor.h"

namespace nir {

struct BoundCall {
  nir_kernel_fn fn;
  nir_kernel_fn epilogue;
  uint32_t args, epilogue_args;  // first slot
  uint32_t dims, epilogue_dims;  // first dim
  int64_t rows, cols;
  int64_t grain;  // of the axis that is split
  int64_t units;  // grains of that axis
  int64_t pieces;  // into which it is worth cutting
  bool by_cols;
  bool even;
  bool parallel;
  bool host;
};

// The slots of the calls in bands, and which of these, counted from the first, follow the lines of
// which stage.
struct BandSlots {
  struct Follows {
    uint32_t slot, stage;
  };
  uint32_t first = 0, count = 0;
  std::vector<Follows> lines;
};

// What a control does with arguments of calls, by slot: a slot is one argument of one call, or one
// buffer that a control itself needs.
struct Executable::ControlPlan {
  struct CarryPlan {
    uint32_t init, result, spare;         // slots
    std::vector<uint32_t> before, after;  // slots that follow the carry
  };
  size_t next;    // the control after this one and those in it
  size_t second;  // the first control in the second part
  uint32_t predicate;                // a slot, or kNone
  std::vector<uint32_t> moving;      // slots that go on with each element
  std::vector<PolyId> strides;       // of each of them
  std::vector<CarryPlan> carries;
  BandSlots bands;
};

struct BoundControl {
  int64_t trips;     // of a counted loop, or the most of another; of bands, the lines of all images
  uint32_t strides;  // the first of the moving slots' strides
  uint32_t carries;  // the first of the carries' sizes
  int64_t memory = 0;              // of bands: bytes of the stages' lines, for each thread
  std::array<int64_t, kMaxStages> offsets{};  // of each stage's lines in them
};

// Everything that the symbols' values decide.
struct Executable::Bound {
  std::vector<int64_t> symbols;
  std::vector<int64_t> dims;
  std::vector<BoundCall> calls;
  std::vector<int64_t> slot_offsets;
  std::vector<BoundControl> controls;
  std::vector<int64_t> strides;
  std::vector<int64_t> carry_bytes;
  std::vector<int64_t> input_sizes;  // of all axes of all inputs
  std::vector<int64_t> output_bytes;
  std::vector<std::vector<int64_t>> output_shapes;
  int64_t arena = 0;
  int64_t scratch = 0;  // for each thread
};

// What one run uses: pointers and symbols live here, so that runs allocate nothing.
struct Context {
  std::vector<int64_t> symbols;
  std::vector<void *> pointers;
  std::shared_ptr<const Executable::Bound> bound;
  BlockRef memory;
  uint8_t *arena = nullptr;  // what the pointers were made for
  uint8_t *scratch = nullptr;
};

}  // namespace nir

#endif  // NIR_RUNTIME_BOUND_H
