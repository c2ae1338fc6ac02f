// Runs programs: binds inputs, evaluates sizes once for each set of shapes, calls kernels.
#ifndef NIR_RUNTIME_EXECUTOR_H
#define NIR_RUNTIME_EXECUTOR_H

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "blob.h"
#include "memory.h"
#include "nir_kernel.h"
#include "program.h"

namespace nir {

constexpr size_t kMaxRank = 16;

// A dense tensor in memory: what a run takes and gives.
struct TensorRef {
  BlockRef block;
  uint8_t *data = nullptr;
  uint8_t dtype = kF32;
  uint8_t rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::string layout;  // "" or a name short enough not to allocate
};

// Code of a generated kernel, by ISA level.
using Codes = std::map<std::string, std::map<uint32_t, BlobView>>;
using Hosts = std::map<std::string, nir_kernel_fn>;

// What a run that is measured notes.
struct Timeline {
  struct Piece {  // the share of one thread in one call
    uint32_t call;
    int64_t start, end;  // nanoseconds of the steady clock
  };
  struct Total {
    int64_t nanoseconds = 0;
    int64_t count = 0;
  };
  std::vector<Total> calls;
  std::vector<std::vector<Piece>> threads;
};

class Executable {
 public:
  // `constants` hold the program's constants in order, 64-byte aligned. `isa` forces a level; ""
  // takes NIR_ISA, else the best level for which every generated kernel has code.
  Executable(Program program, std::vector<TensorRef> constants, const Codes &codes,
             const Hosts &hosts, const std::string &isa);
  ~Executable();
  Executable(const Executable &) = delete;
  Executable &operator=(const Executable &) = delete;

  // One run's bound state, taken from a pool of them: runs on several threads do not meet.
  class Run {
   public:
    // Checks the inputs against the program's types, solves the symbols, and makes the outputs.
    // `donated[i]` offers input i: if the run holds the last reference to its block, an output
    // takes it over and inputs[i].block is empty afterwards.
    Run(Executable &exe, std::vector<TensorRef> &inputs, const std::vector<uint8_t> &donated,
        std::vector<TensorRef> &outputs);
    ~Run();
    Run(const Run &) = delete;
    Run &operator=(const Run &) = delete;

    // Calls the kernels; touches no Python, takes no lock but the thread pool's, allocates nothing.
    // Only a run with a `timeline` notes times, and allocates for them. Throws KernelError.
    void execute(Timeline *timeline = nullptr);

   private:
    friend class Executable;
    void run_calls(size_t first, size_t end, size_t control);
    void run_call(size_t i);
    void run_loop(size_t control);
    void run_bands(size_t control);
    Executable &exe_;
    struct Context *context_;
    const class FlushDenormals *flush_ = nullptr;
    Timeline *timeline_ = nullptr;
    int64_t threads_ = 1;
  };

  const Program &program() const { return program_; }
  const std::vector<TensorRef> &constants() const { return constants_; }
  // Whether a call up to number `last` takes output `output` as an argument.
  bool touches_output(uint32_t output, size_t last) const;
  const char *isa() const { return isa_name(isa_); }

 private:
  struct Bound;
  struct ControlPlan;
  friend struct Context;

  void plan_controls();
  void resolve_kernels(const Codes &codes, const Hosts &hosts, const std::string &isa);
  uint32_t choose_isa(const Codes &codes, const std::string &isa) const;
  void solve(const std::vector<TensorRef> &inputs, std::vector<int64_t> *symbols) const;
  void check_inputs(const std::vector<TensorRef> &inputs,
                    const std::vector<int64_t> &symbols) const;
  [[noreturn]] void refuse(const std::vector<TensorRef> &inputs, size_t input,
                           const std::string &why, ErrorKind kind = ErrorKind::kShape) const;
  std::shared_ptr<const Bound> bind(const std::vector<TensorRef> &inputs,
                                    const std::vector<int64_t> &symbols);
  std::shared_ptr<const Bound> evaluate(const std::vector<int64_t> &symbols) const;
  void bind_bands(size_t control, const std::vector<int64_t> &values,
                  const std::vector<int64_t> &offsets, struct BoundControl *bound) const;
  Context *take_context();
  void return_context(Context *context);

  Program program_;
  std::vector<TensorRef> constants_;
  std::vector<LoadedKernel> kernels_;
  uint32_t isa_ = 0;
  std::vector<ControlPlan> controls_;
  size_t slots_ = 0;  // kernel arguments of all calls, and what controls need
  std::vector<uint32_t> slot_buffers_;
  std::vector<uint32_t> moving_slots_;  // of inputs and outputs: they change with every run
  std::vector<uint32_t> arena_slots_;
  std::vector<uint32_t> const_slots_;
  std::vector<std::shared_ptr<const Bound>> bounds_;  // most recently used first
  std::vector<Context *> idle_;
};

// "f32[8,784]"
std::string describe(const TensorRef &t);

}  // namespace nir

#endif  // NIR_RUNTIME_EXECUTOR_H
