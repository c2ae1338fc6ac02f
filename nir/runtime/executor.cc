#include "executor.h"

#include <algorithm>
#include <cstdlib>

#include "bound.h"
#include "registry.h"
#include "thread_pool.h"

namespace nir {

namespace {

constexpr size_t kBoundLimit = 32;
// What a piece should be at least, in work. Of a product some 70 us: each piece of a product packs
// for itself. Loops have nothing to begin.
constexpr int64_t kPieceWork = 1 << 20, kPieceOfLoop = 16 << 10;

// Guards the lists of bound shapes and idle contexts of all executables; held for a few pointers.
ForkSafeMutex &lists_mutex() {
  static ForkSafeMutex *m = new ForkSafeMutex;
  return *m;
}

}  // namespace

std::string describe(const TensorRef &t) {
  std::string out = std::string(kDTypes[t.dtype].name) + "[";
  for (uint8_t i = 0; i < t.rank; ++i) out += (i ? "," : "") + std::to_string(t.shape[i]);
  out += "]";
  return t.layout.empty() ? out : out + "{" + t.layout + "}";
}

// ---- construction -------------------------------------------------------------------------------

Executable::Executable(Program program, std::vector<TensorRef> constants, const Codes &codes,
                       const Hosts &hosts, const std::string &isa)
    : program_(std::move(program)), constants_(std::move(constants)) {
  if (constants_.size() != program_.constants.size())
    throw Error(ErrorKind::kPackage, "expected " + std::to_string(program_.constants.size()) +
                                         " constants, got " + std::to_string(constants_.size()));
  for (size_t i = 0; i < constants_.size(); ++i)
    if (constants_[i].block->capacity < program_.constants[i].size)
      throw Error(ErrorKind::kPackage, "constant " + std::to_string(i) + " is too short");
  for (const auto *types : {&program_.inputs, &program_.outputs})
    for (const TypeRecord &t : *types) {
      if (t.shape.size() > kMaxRank)
        throw Error(ErrorKind::kShape, "a tensor of rank " + std::to_string(t.shape.size()) +
                                           "; the limit is " + std::to_string(kMaxRank));
      if (t.device != "cpu") throw Error(ErrorKind::kDevice, "no device '" + t.device + "'");
    }
  resolve_kernels(codes, hosts, isa);
  for (const CallRecord &c : program_.calls) {
    for (const auto *args : {&c.args, &c.epilogue_args})
      slot_buffers_.insert(slot_buffers_.end(), args->begin(), args->end());
  }
  plan_controls();
  slots_ = slot_buffers_.size();
  for (uint32_t s = 0; s < slots_; ++s) {
    switch (program_.buffers[slot_buffers_[s]].kind) {
      case kArena:
        arena_slots_.push_back(s);
        break;
      case kConst:
        const_slots_.push_back(s);
        break;
      case kInput:
      case kOutput:
        moving_slots_.push_back(s);
        break;
      case kBefore:
      case kAfter:
      case kLines:
        break;  // the control sets them
    }
  }
}

// Which slots each control sets.
void Executable::plan_controls() {
  const std::vector<ControlRecord> &controls = program_.controls;
  const auto slot = [&](uint32_t buffer) {
    slot_buffers_.push_back(buffer);
    return static_cast<uint32_t>(slot_buffers_.size() - 1);
  };
  for (size_t i = 0; i < controls.size(); ++i) {
    const ControlRecord &c = controls[i];
    ControlPlan plan{};
    plan.next = i + 1;
    while (plan.next < controls.size() && program_.within(controls[plan.next].parent, i))
      ++plan.next;
    plan.second = i + 1;
    while (plan.second < plan.next && controls[plan.second].first < c.second) ++plan.second;
    plan.predicate = c.predicate == kNone ? kNone : slot(c.predicate);
    controls_.push_back(std::move(plan));
  }
  std::vector<uint32_t> first_slots;  // of each call
  uint32_t next_slot = 0;
  for (const CallRecord &c : program_.calls) {
    first_slots.push_back(next_slot);
    next_slot += static_cast<uint32_t>(c.args.size() + c.epilogue_args.size());
  }
  first_slots.push_back(next_slot);
  for (size_t i = 0; i < controls.size(); ++i) {
    if (controls[i].kind != kBands) continue;
    BandSlots &bands = controls_[i].bands;
    bands.first = first_slots[controls[i].first];
    bands.count = first_slots[controls[i].end] - bands.first;
    for (uint32_t s = 0; s < bands.count; ++s) {
      const BufferRecord &b = program_.buffers[slot_buffers_[bands.first + s]];
      if (b.kind == kLines) bands.lines.push_back({s, b.index - controls[i].first});
    }
  }
  std::vector<size_t> at;  // the place of each carry among those of its loop
  for (const CarryRecord &c : program_.carries) {
    auto &carries = controls_[c.loop].carries;
    at.push_back(carries.size());
    carries.push_back({slot(c.init), slot(c.result), slot(c.spare), {}, {}});
  }
  for (uint32_t s = 0; s < slot_buffers_.size(); ++s) {
    const BufferRecord &b = program_.buffers[slot_buffers_[s]];
    for (const MoveRecord &m : b.moves) {
      controls_[m.loop].moving.push_back(s);
      controls_[m.loop].strides.push_back(m.stride);
    }
    if (b.kind == kBefore || b.kind == kAfter) {
      auto &carry = controls_[program_.carries[b.index].loop].carries[at[b.index]];
      (b.kind == kBefore ? carry.before : carry.after).push_back(s);
    }
  }
}

Executable::~Executable() {
  for (Context *c : idle_) delete c;
}

uint32_t Executable::choose_isa(const Codes &codes, const std::string &isa) const {
  std::string forced = isa;
  if (const char *env = std::getenv("NIR_ISA"); forced.empty() && env) forced = env;
  if (!forced.empty()) {
    const int level = isa_level(forced);
    if (level < 0) throw Error(ErrorKind::kUnsupported, "no ISA level is called '" + forced + "'");
    if (!nir_has_isa(forced.c_str()))
      throw Error(ErrorKind::kUnsupported, "this CPU does not run ISA level " + forced);
    return static_cast<uint32_t>(level);
  }
  for (int i = 0; const char *name = nir_isa_name(i); ++i) {
    const int level = isa_level(name);
    if (level < 0 || !nir_has_isa(name)) continue;
    const bool complete = std::all_of(codes.begin(), codes.end(), [&](const auto &code) {
      return code.second.count(static_cast<uint32_t>(level)) > 0;
    });
    if (complete) return static_cast<uint32_t>(level);
  }
  throw Error(ErrorKind::kUnsupported,
              program_.name + ": its code is for no ISA level that this CPU runs");
}

void Executable::resolve_kernels(const Codes &codes, const Hosts &hosts, const std::string &isa) {
  isa_ = choose_isa(codes, isa);
  const std::string level = isa_name(isa_);
  std::vector<BlobView> blobs;
  std::vector<std::string> names;
  std::vector<size_t> targets;
  kernels_.resize(program_.kernels.size());
  for (size_t k = 0; k < kernels_.size(); ++k) {
    const KernelRecord &record = program_.kernels[k];
    switch (record.source) {
      case kBuiltin:
        kernels_[k].fn = nir_find_kernel(record.name.c_str(), level.c_str());
        break;
      case kHost: {
        auto it = hosts.find(record.name);
        if (it != hosts.end()) kernels_[k].fn = it->second;
        break;
      }
      case kGenerated: {
        auto code = codes.find(record.name);
        if (code == codes.end() || !code->second.count(isa_)) break;
        blobs.push_back(code->second.at(isa_));
        names.push_back(record.name);
        targets.push_back(k);
        continue;
      }
    }
    if (!kernels_[k].fn)
      throw Error(ErrorKind::kUnsupported,
                  program_.name + ": no kernel " + record.name + " for ISA level " + level);
  }
  if (targets.size() < static_cast<size_t>(std::count_if(
                           program_.kernels.begin(), program_.kernels.end(),
                           [](const KernelRecord &r) { return r.source == kGenerated; })))
    throw Error(ErrorKind::kUnsupported,
                program_.name + ": a generated kernel has no code for ISA level " + level);
  const std::vector<LoadedKernel> loaded = load_blobs(blobs, names, isa_);
  for (size_t i = 0; i < loaded.size(); ++i) kernels_[targets[i]] = loaded[i];
}

// ---- binding ------------------------------------------------------------------------------------

namespace {

std::string poly_text(const Program &p, const Poly &poly) {
  // Readable enough for the forms that occur in input types; others show their postfix.
  std::vector<std::string> stack;
  for (const Poly::Step &s : poly.steps) {
    if (s.op == kPushConst) {
      stack.push_back(std::to_string(s.value));
    } else if (s.op == kPushSymbol) {
      stack.push_back(p.symbols[static_cast<size_t>(s.value)]);
    } else {
      const std::string b = stack.back();
      stack.pop_back();
      const std::string a = stack.back();
      stack.pop_back();
      if (s.op == kAdd)
        stack.push_back(b[0] == '-' ? a + b : a + "+" + b);
      else
        stack.push_back(a + (s.op == kMul ? "*" : "//") +
                        (b.find_first_of("+-*/") == std::string::npos ? b : "(" + b + ")"));
    }
  }
  return stack[0];
}

std::string type_text(const Program &p, const TypeRecord &t) {
  std::string out = std::string(kDTypes[t.dtype].name) + "[";
  for (size_t i = 0; i < t.shape.size(); ++i)
    out += (i ? "," : "") + poly_text(p, p.polys[t.shape[i]]);
  out += "]";
  return t.layout.empty() ? out : out + "{" + t.layout + "}";
}

}  // namespace

void Executable::refuse(const std::vector<TensorRef> &inputs, size_t input, const std::string &why,
                        ErrorKind kind) const {
  throw Error(kind, program_.name + ": input " + std::to_string(input) + " (%" +
                        program_.input_names[input] + "): expected " +
                        type_text(program_, program_.inputs[input]) + ", got " +
                        describe(inputs[input]) + why);
}

// Dtypes, layouts and ranks, then the symbols' values.
void Executable::solve(const std::vector<TensorRef> &inputs, std::vector<int64_t> *symbols) const {
  if (inputs.size() != program_.inputs.size())
    throw Error(ErrorKind::kShape, program_.name + ": expected " +
                                       std::to_string(program_.inputs.size()) + " inputs, got " +
                                       std::to_string(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TypeRecord &want = program_.inputs[i];
    const TensorRef &got = inputs[i];
    if (!got.block)
      throw Error(ErrorKind::kStale, program_.name + ": input " + std::to_string(i) + " (%" +
                                         program_.input_names[i] +
                                         "): its buffer was donated to an earlier run");
    if (got.dtype != want.dtype) refuse(inputs, i, "", ErrorKind::kDType);
    if (got.rank != want.shape.size() || got.layout != want.layout) refuse(inputs, i, "");
  }
  symbols->assign(program_.symbols.size(), 0);
  for (const SolveStep &s : program_.solve) {
    const int64_t size = inputs[s.input].shape[s.axis];
    const int64_t scaled = checked_add(size, -s.offset);
    if (scaled % s.scale != 0 || scaled / s.scale < 0)
      refuse(inputs, s.input,
             ": axis " + std::to_string(s.axis) + " is " + std::to_string(size) + ", and no " +
                 program_.symbols[s.symbol] + " >= 0 gives that");
    (*symbols)[s.symbol] = scaled / s.scale;
  }
}

void Executable::check_inputs(const std::vector<TensorRef> &inputs,
                              const std::vector<int64_t> &symbols) const {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TypeRecord &want = program_.inputs[i];
    for (size_t axis = 0; axis < want.shape.size(); ++axis) {
      const Poly &poly = program_.polys[want.shape[axis]];
      const int64_t expected = poly.evaluate(symbols);
      if (expected == inputs[i].shape[axis]) continue;
      std::string why = ": axis " + std::to_string(axis) + " is " +
                        std::to_string(inputs[i].shape[axis]) + ", expected " +
                        std::to_string(expected);
      for (const SolveStep &s : program_.solve) {
        const bool occurs =
            std::any_of(poly.steps.begin(), poly.steps.end(), [&](const auto &step) {
              return step.op == kPushSymbol && step.value == static_cast<int64_t>(s.symbol);
            });
        if (occurs)
          why += ", since " + program_.symbols[s.symbol] + " is " +
                 std::to_string(symbols[s.symbol]) + " by input " + std::to_string(s.input) +
                 " (%" + program_.input_names[s.input] + ")";
      }
      refuse(inputs, i, why);
    }
  }
}

std::shared_ptr<const Executable::Bound> Executable::evaluate(
    const std::vector<int64_t> &symbols) const {
  auto bound = std::make_shared<Bound>();
  bound->symbols = symbols;
  std::vector<int64_t> values(program_.polys.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = program_.polys[i].evaluate(symbols);
  const auto size_of = [&](PolyId id, const char *what) {
    if (values[id] < 0)
      throw Error(ErrorKind::kShape, program_.name + ": " + what + " is " +
                                         poly_text(program_, program_.polys[id]) + " = " +
                                         std::to_string(values[id]));
    return values[id];
  };

  for (const TypeRecord &t : program_.inputs)
    for (PolyId d : t.shape) bound->input_sizes.push_back(values[d]);
  for (const TypeRecord &t : program_.outputs) {
    std::vector<int64_t> shape;
    for (PolyId d : t.shape) shape.push_back(size_of(d, "the size of an output"));
    bound->output_shapes.push_back(std::move(shape));
    bound->output_bytes.push_back(size_of(t.nbytes, "the size of an output"));
  }
  bound->arena = round_up(size_of(program_.arena, "the arena"));

  std::vector<int64_t> carry_bytes;
  for (const CarryRecord &c : program_.carries)
    carry_bytes.push_back(size_of(c.nbytes, "the size of a carry"));
  for (size_t i = 0; i < controls_.size(); ++i) {
    const ControlRecord &c = program_.controls[i];
    bound->controls.push_back({c.trips == kNone ? INT64_MAX : size_of(c.trips, "a trip count"),
                               static_cast<uint32_t>(bound->strides.size()),
                               static_cast<uint32_t>(bound->carry_bytes.size())});
    for (PolyId stride : controls_[i].strides)
      bound->strides.push_back(size_of(stride, "the stride of a buffer"));
    for (size_t k = 0; k < program_.carries.size(); ++k)
      if (program_.carries[k].loop == i) bound->carry_bytes.push_back(carry_bytes[k]);
  }

  std::vector<int64_t> offsets;
  for (size_t i = 0; i < program_.buffers.size(); ++i) {
    const BufferRecord &b = program_.buffers[i];
    int64_t offset = size_of(b.offset, "the offset of a buffer");
    int64_t limit = 0;
    switch (b.kind) {
      case kInput:
        limit = size_of(program_.inputs[b.index].nbytes, "the size of an input");
        break;
      case kOutput:
        limit = bound->output_bytes[b.index];
        break;
      case kConst:
        limit = static_cast<int64_t>(program_.constants[b.index].size);
        break;
      case kArena:
        offset = round_up(offset);
        limit = bound->arena;
        break;
      case kBefore:
      case kAfter:
        limit = carry_bytes[b.index];
        break;
      case kLines:
        offset = round_up(offset);
        limit = values[program_.calls[b.index].scratch];
        break;
    }
    int64_t end = checked_add(offset, size_of(b.nbytes, "the size of a buffer"));
    bool used = true;
    for (const MoveRecord &m : b.moves) {
      // With its last element, and there is none in a loop of no steps.
      const int64_t trips = bound->controls[m.loop].trips;
      used = used && trips > 0;
      end = checked_add(end, checked_mul(std::max<int64_t>(trips - 1, 0), values[m.stride]));
    }
    if (used && end > limit)
      throw Error(ErrorKind::kShape, program_.name + ": buffer " + std::to_string(i) + " ends at " +
                                         std::to_string(end) + " of " + std::to_string(limit) +
                                         " bytes");
    offsets.push_back(offset);
  }
  const auto holds = [&](uint32_t buffer, int64_t bytes, const char *what) {
    if (values[program_.buffers[buffer].nbytes] < bytes)
      throw Error(ErrorKind::kShape, program_.name + ": buffer " + std::to_string(buffer) +
                                         " is too small for " + what);
  };
  for (size_t k = 0; k < program_.carries.size(); ++k)
    for (uint32_t b :
         {program_.carries[k].init, program_.carries[k].result, program_.carries[k].spare})
      holds(b, carry_bytes[k], "a carry");
  for (const ControlRecord &c : program_.controls)
    if (c.predicate != kNone) holds(c.predicate, 1, "a predicate");
  for (size_t i = 0; i < controls_.size(); ++i)
    if (program_.controls[i].kind == kBands) bind_bands(i, values, offsets, &bound->controls[i]);
  bound->slot_offsets.reserve(slots_);
  for (uint32_t b : slot_buffers_) bound->slot_offsets.push_back(offsets[b]);

  uint32_t slot = 0;
  const auto append_dims = [&](const std::vector<PolyId> &ids) {
    const auto at = static_cast<uint32_t>(bound->dims.size());
    for (PolyId d : ids) bound->dims.push_back(values[d]);
    return at;
  };
  for (const CallRecord &c : program_.calls) {
    BoundCall call{};
    call.fn = kernels_[c.kernel].fn;
    call.args = slot;
    slot += static_cast<uint32_t>(c.args.size());
    call.dims = append_dims(c.dims);
    if (c.has_epilogue) {
      call.epilogue = kernels_[c.epilogue_kernel].fn;
      call.epilogue_args = slot;
      slot += static_cast<uint32_t>(c.epilogue_args.size());
      call.epilogue_dims = append_dims(c.epilogue_dims);
    }
    call.rows = size_of(c.rows, "the rows of a call");
    call.cols = size_of(c.cols, "the columns of a call");
    bound->scratch =
        std::max(bound->scratch, round_up(size_of(c.scratch, "the scratch of a call")));
    const auto units = [](int64_t n, int64_t grain) { return n / grain + (n % grain != 0); };
    const int64_t row_units = units(call.rows, c.row_grain);
    const int64_t col_units = c.col_grain ? units(call.cols, c.col_grain) : 1;
    // By columns where rows are too few to share out, and where columns are so many that whatever
    // belongs to them (the weights of a product) should be read by one thread only.
    call.by_cols = (col_units > row_units && row_units < 2 * ThreadPool::instance().size()) ||
                   col_units > kManyColumns * row_units;
    call.grain = call.by_cols ? c.col_grain : c.row_grain;
    call.units = call.by_cols ? col_units : row_units;
    call.even = c.even;
    const int64_t work = values[c.work];
    call.host = program_.kernels[c.kernel].source == kHost;
    call.parallel = call.units > 1 && work >= kSerialWork && !call.host;
    const bool loop = program_.kernels[c.kernel].source == kGenerated;
    call.pieces = std::max<int64_t>(1, work / (loop ? kPieceOfLoop : kPieceWork));
    // Nothing to compute: no element of the iteration space.
    if (call.rows == 0 || call.cols == 0) call.units = 0;
    bound->calls.push_back(call);
  }
  return bound;
}

// How many lines there are, and where those of each stage lie.
void Executable::bind_bands(size_t control, const std::vector<int64_t> &values,
                            const std::vector<int64_t> &offsets, BoundControl *bound) const {
  const ControlRecord &c = program_.controls[control];
  const auto refuse = [&](const char *why) {
    throw Error(ErrorKind::kShape, program_.name + ": bands: " + why);
  };
  int64_t images = -1;
  for (size_t s = 0; s < c.stages.size(); ++s) {
    const StageRecord &stage = c.stages[s];
    const int64_t rows = values[program_.calls[c.first + s].rows];
    const int64_t of_image = stage.height * stage.width;
    if (rows % of_image || (images >= 0 && rows / of_image != images))
      refuse("the rows of their calls do not fit together");
    images = rows / of_image;
  }
  bound->trips = checked_mul(images, c.stages.back().height);
  for (size_t k = 0; k < program_.buffers.size(); ++k) {
    const BufferRecord &b = program_.buffers[k];
    if (b.kind != kLines || b.index < c.first || b.index >= c.end) continue;
    const StageRecord &stage = c.stages[b.index - c.first];
    if (values[b.nbytes] < stage.kept * stage.bytes) refuse("a buffer is too small for its lines");
    bound->offsets[b.index - c.first] = offsets[k];
    bound->memory = std::max(bound->memory, round_up(offsets[k] + values[b.nbytes]));
  }
  // What their kernels take lies behind the lines.
  for (uint32_t i = c.first; i < c.end; ++i)
    if (values[program_.calls[i].scratch] < bound->memory) refuse("too little scratch");
}

std::shared_ptr<const Executable::Bound> Executable::bind(const std::vector<TensorRef> &inputs,
                                                          const std::vector<int64_t> &symbols) {
  {
    std::lock_guard<ForkSafeMutex> lock(lists_mutex());
    for (size_t i = 0; i < bounds_.size(); ++i) {
      if (bounds_[i]->symbols != symbols) continue;
      std::rotate(bounds_.begin(), bounds_.begin() + static_cast<ptrdiff_t>(i),
                  bounds_.begin() + static_cast<ptrdiff_t>(i) + 1);
      return bounds_[0];
    }
  }
  check_inputs(inputs, symbols);
  std::shared_ptr<const Bound> bound = evaluate(symbols);
  std::lock_guard<ForkSafeMutex> lock(lists_mutex());
  bounds_.insert(bounds_.begin(), bound);
  if (bounds_.size() > kBoundLimit) bounds_.pop_back();
  return bound;
}

Context *Executable::take_context() {
  {
    std::lock_guard<ForkSafeMutex> lock(lists_mutex());
    if (!idle_.empty()) {
      Context *c = idle_.back();
      idle_.pop_back();
      return c;
    }
  }
  auto c = std::make_unique<Context>();
  c->pointers.resize(slots_);
  return c.release();
}

void Executable::return_context(Context *context) {
  context->memory.reset();
  std::lock_guard<ForkSafeMutex> lock(lists_mutex());
  idle_.push_back(context);
}

Executable::Run::Run(Executable &exe, std::vector<TensorRef> &inputs,
                     const std::vector<uint8_t> &donated, std::vector<TensorRef> &outputs)
    : exe_(exe), context_(exe.take_context()) {
  Context &c = *context_;
  try {
    exe.solve(inputs, &c.symbols);
    if (!c.bound || c.bound->symbols != c.symbols) {
      c.bound = exe.bind(inputs, c.symbols);
      c.arena = nullptr;
    }
    const Bound &bound = *c.bound;
    const int64_t *expected = bound.input_sizes.data();
    for (const TensorRef &in : inputs) {
      // The slow check finds out what to say.
      if (!std::equal(in.shape.begin(), in.shape.begin() + in.rank, expected))
        exe.check_inputs(inputs, c.symbols);
      expected += in.rank;
    }

    const auto threads = static_cast<int64_t>(ThreadPool::instance().size());
    const int64_t bytes = checked_add(bound.arena, checked_mul(bound.scratch, threads));
    c.memory = acquire_block(static_cast<size_t>(bytes));

    const Program &p = exe.program_;
    outputs.resize(p.outputs.size());
    for (TensorRef &out : outputs) out.block.reset();
    for (const DonationRecord &d : p.donations) {
      TensorRef &in = inputs[d.input];
      TensorRef &out = outputs[d.output];
      const auto need = static_cast<size_t>(bound.output_bytes[d.output]);
      // Two references: the owner's, who offers it, and this run's. A third is somebody's view.
      const bool ours = donated[d.input] && in.block && !out.block && in.block->pooled() &&
                        in.block->refs.load(std::memory_order_acquire) == 2 &&
                        in.data == in.block->data && in.block->capacity >= need;
      if (ours) {
        out.block = std::move(in.block);
        out.data = out.block->data;
      }
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      TensorRef &out = outputs[i];
      if (!out.block) {
        out.block = acquire_block(static_cast<size_t>(bound.output_bytes[i]));
        out.data = out.block->data;
      }
      out.dtype = p.outputs[i].dtype;
      out.layout = p.outputs[i].layout;
      out.rank = static_cast<uint8_t>(bound.output_shapes[i].size());
      std::copy(bound.output_shapes[i].begin(), bound.output_shapes[i].end(), out.shape.begin());
    }

    const auto place = [&](uint32_t slot, uint8_t *base) {
      c.pointers[slot] = base + bound.slot_offsets[slot];
    };
    if (c.arena != c.memory->data) {
      c.arena = c.memory->data;
      for (uint32_t s : exe.arena_slots_) place(s, c.arena);
      for (uint32_t s : exe.const_slots_)
        place(s, exe.constants_[p.buffers[exe.slot_buffers_[s]].index].data);
    }
    c.scratch = c.arena + bound.arena;
    for (uint32_t s : exe.moving_slots_) {
      const BufferRecord &b = p.buffers[exe.slot_buffers_[s]];
      place(s, b.kind == kInput ? inputs[b.index].data : outputs[b.index].data);
    }
  } catch (...) {
    exe.return_context(context_);
    throw;
  }
}

Executable::Run::~Run() { exe_.return_context(context_); }

bool Executable::touches_output(uint32_t output, size_t last) const {
  const auto is_it = [&](uint32_t b) {
    return program_.buffers[b].kind == kOutput && program_.buffers[b].index == output;
  };
  // An earlier step of a loop may have called what stands behind the call that failed.
  for (const ControlRecord &c : program_.controls)
    if (c.first <= last && last < c.end) last = c.end - 1;
  for (const CarryRecord &c : program_.carries)
    if (program_.controls[c.loop].first <= last && (is_it(c.result) || is_it(c.spare))) return true;
  for (size_t i = 0; i <= last && i < program_.calls.size(); ++i)
    for (const auto *args : {&program_.calls[i].args, &program_.calls[i].epilogue_args})
      if (std::any_of(args->begin(), args->end(), is_it)) return true;
  return false;
}

}  // namespace nir
