// A Program as the executor reads it, and the reader of its binary form.
//
// The encoding is written by nir/runtime/encode.py (which documents it field by field). Nothing in
// it is trusted: every index, count, size and bytecode is checked while reading, so that a damaged
// program is an Error and never a crash.
#ifndef NIR_RUNTIME_PROGRAM_H
#define NIR_RUNTIME_PROGRAM_H

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace nir {

constexpr char kProgramMagic[8] = {'N', 'I', 'R', 'P', 'R', 'O', 'G', '\0'};
constexpr uint32_t kProgramVersion = 4;

enum PolyOp : uint8_t { kPushConst = 0, kPushSymbol = 1, kAdd = 2, kMul = 3, kFloorDiv = 4 };
constexpr int kPolyStack = 32;

// An integer expression over the symbols, in postfix; `stack` proves that it fits kPolyStack.
struct Poly {
  struct Step {
    PolyOp op;
    int64_t value;  // the constant, or the symbol's number
  };
  std::vector<Step> steps;

  bool is_constant() const { return steps.size() == 1 && steps[0].op == kPushConst; }
  // Throws Error(kMemory) on overflow and Error(kShape) on division by a size of zero.
  int64_t evaluate(const std::vector<int64_t> &symbols) const;
};

using PolyId = uint32_t;  // index into Program::polys

enum DTypeCode : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  kDTypeCount
};
struct DTypeInfo {
  const char *name;
  const char *numpy;
  uint8_t itemsize;
  const char *format;  // of the buffer protocol; nullptr: it has none
  uint8_t dlpack_code;
};
extern const DTypeInfo kDTypes[kDTypeCount];
// The code of the dtype called `name`; throws Error(kDType).
uint8_t dtype_code(const std::string &name);

struct TypeRecord {
  uint8_t dtype = 0;
  std::string layout;
  std::string device;
  std::vector<PolyId> shape;
  PolyId nbytes = 0;
};

// Before and after: what a step of a loop reads and writes of a carry. Lines: what a call in bands
// leaves for the next one.
enum BufferKind : uint8_t {
  kInput = 0,
  kOutput = 1,
  kConst = 2,
  kArena = 3,
  kBefore = 4,
  kAfter = 5,
  kLines = 6
};

// The buffer lies `stride` bytes further on for each element of loop `loop`.
struct MoveRecord {
  uint32_t loop;
  PolyId stride;
};

struct BufferRecord {
  BufferKind kind;
  uint32_t index;
  PolyId offset;
  PolyId nbytes;
  std::vector<MoveRecord> moves;
};

// value = (size of axis `axis` of input `input` - offset) / scale
struct SolveStep {
  uint32_t symbol;
  uint32_t input;
  uint32_t axis;
  int64_t scale;
  int64_t offset;
};

enum KernelSource : uint8_t { kBuiltin = 0, kGenerated = 1, kHost = 2 };

struct KernelRecord {
  std::string name;
  KernelSource source;
};

struct LocationRecord {
  std::string file;
  uint32_t line;
  bool backward;
};

struct CallRecord {
  uint32_t kernel;
  std::vector<uint32_t> args;
  std::vector<PolyId> dims;
  PolyId rows, cols;
  int64_t row_grain, col_grain;
  bool even = false;  // each piece repeats work
  PolyId scratch, work;
  bool has_epilogue = false;
  uint32_t epilogue_kernel = 0;
  std::vector<uint32_t> epilogue_args;
  std::vector<PolyId> epilogue_dims;
  std::string op;
  std::vector<LocationRecord> locs;
  PolyId flops, traffic, live;  // for profiles
};

enum ControlKind : uint8_t { kCounted = 0, kWhile = 1, kBranch = 2, kBands = 3 };
constexpr uint32_t kNone = UINT32_MAX;
// Controls within controls; a run keeps a frame of the C++ stack for each.
constexpr uint32_t kMaxNesting = 64;

// A call in bands. Its rows are lines of `width`, `height` lines an image; a line reads `extent`
// lines of what the call before it leaves, from `stride` times its own number less `above` on. Of
// its result `kept` lines of `bytes` each are there at a time, but for the last call's.
struct StageRecord {
  int64_t height, width, stride, above, extent, kept, bytes;
};
// Each number of a stage, so that no product of two and a sum overflow.
constexpr int64_t kMaxStage = INT32_MAX;
// Arguments of all the calls in bands: a thread has a copy of them on its stack.
constexpr uint32_t kMaxBandSlots = 128;
constexpr uint32_t kMaxStages = 8;

// Calls first .. end - 1 are repeated, or one of their two parts is chosen, or they take turns for
// `lines` lines of the last one; `second` begins the other part. Controls lie in the order of their
// first calls, outer before inner.
struct ControlRecord {
  ControlKind kind;
  bool reverse;
  uint32_t first, second, end;
  PolyId trips;        // kNone: no limit
  uint32_t predicate;  // a buffer of one byte; kNone for a counted loop
  uint32_t parent;     // the control around it; kNone
  int64_t lines = 0;
  std::vector<StageRecord> stages = {};
};

struct CarryRecord {
  uint32_t loop;
  uint32_t init, result, spare;  // buffers
  PolyId nbytes;
};

struct ConstantRecord {
  uint64_t size;
  uint32_t crc;
};

struct DonationRecord {
  uint32_t input;
  uint32_t output;
};

struct Program {
  std::string name;
  std::vector<std::string> symbols;
  std::vector<Poly> polys;
  std::vector<TypeRecord> inputs, outputs;
  std::vector<std::string> input_names, output_names;
  std::vector<SolveStep> solve;
  std::vector<ConstantRecord> constants;
  std::vector<BufferRecord> buffers;
  std::vector<KernelRecord> kernels;
  std::vector<CallRecord> calls;
  std::vector<DonationRecord> donations;
  PolyId arena = 0;
  std::vector<ControlRecord> controls;
  std::vector<CarryRecord> carries;

  // Whether control `outer` is `control` or one around it.
  bool within(uint32_t control, uint32_t outer) const {
    while (control != kNone && control != outer) control = controls[control].parent;
    return control == outer;
  }
};

// Reads and checks an encoded program; throws Error(kPackage).
Program read_program(const uint8_t *data, size_t size);

}  // namespace nir

#endif  // NIR_RUNTIME_PROGRAM_H
