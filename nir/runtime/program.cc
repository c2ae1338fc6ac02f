#include "program.h"

#include <algorithm>
#include <cstring>

namespace nir {

const DTypeInfo kDTypes[kDTypeCount] = {
    {"f64", "float64", 8, "d", 2}, {"f32", "float32", 4, "f", 2},
    {"f16", "float16", 2, "e", 2}, {"bf16", "bfloat16", 2, nullptr, 4},
    {"i64", "int64", 8, "q", 0},   {"i32", "int32", 4, "i", 0},
    {"i16", "int16", 2, "h", 0},   {"i8", "int8", 1, "b", 0},
    {"u8", "uint8", 1, "B", 1},    {"bool", "bool", 1, "?", 6},
};

uint8_t dtype_code(const std::string &name) {
  for (uint8_t i = 0; i < kDTypeCount; ++i)
    if (name == kDTypes[i].name) return i;
  throw Error(ErrorKind::kDType, "no dtype is called '" + name + "'");
}

int64_t Poly::evaluate(const std::vector<int64_t> &symbols) const {
  int64_t stack[kPolyStack];
  int top = 0;
  for (const Step &s : steps) {
    switch (s.op) {
      case kPushConst:
        stack[top++] = s.value;
        continue;
      case kPushSymbol:
        stack[top++] = symbols[static_cast<size_t>(s.value)];
        continue;
      case kAdd:
        --top;
        stack[top - 1] = checked_add(stack[top - 1], stack[top]);
        continue;
      case kMul:
        --top;
        stack[top - 1] = checked_mul(stack[top - 1], stack[top]);
        continue;
      case kFloorDiv:
        --top;
        if (stack[top] <= 0)
          throw Error(ErrorKind::kShape, "a size is divided by " + std::to_string(stack[top]));
        stack[top - 1] = floor_div(stack[top - 1], stack[top]);
        continue;
    }
  }
  return stack[0];
}

namespace {

[[noreturn]] void damaged(const std::string &why) {
  throw Error(ErrorKind::kPackage, "damaged program: " + why);
}

// Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(const std::string &text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) { return static_cast<uint8_t>(k < text.size() ? text[k] : 0); };
    const uint8_t lead = byte(i);
    if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4) return false;
    const int more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    for (int k = 1; k <= more; ++k)
      if ((byte(i + static_cast<size_t>(k)) & 0xC0) != 0x80) return false;
    const uint8_t next = byte(i + 1);
    if ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next >= 0xA0) ||
        (lead == 0xF0 && next < 0x90) || (lead == 0xF4 && next >= 0x90))
      return false;
    i += static_cast<size_t>(more) + 1;
  }
  return true;
}

// A cursor that never reads past the end.
class Reader {
 public:
  Reader(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}

  template <class T>
  T get() {
    if (static_cast<size_t>(end_ - at_) < sizeof(T)) damaged("it ends early");
    T out;
    std::memcpy(&out, at_, sizeof(T));
    at_ += sizeof(T);
    return out;
  }
  uint8_t u8() { return get<uint8_t>(); }
  uint32_t u32() { return get<uint32_t>(); }
  uint64_t u64() { return get<uint64_t>(); }
  int64_t i64() { return get<int64_t>(); }

  // A count of records of at least `least` bytes each: bounded by what is left to read.
  uint32_t count(size_t least, const char *what) {
    const uint32_t n = u32();
    if (n > static_cast<size_t>(end_ - at_) / least) damaged(std::string("too many ") + what);
    return n;
  }
  // An index below `limit`.
  uint32_t index(size_t limit, const char *what) {
    const uint32_t i = u32();
    if (i >= limit)
      damaged(std::string(what) + " " + std::to_string(i) + " of " + std::to_string(limit));
    return i;
  }
  std::string text() {
    const uint32_t n = count(1, "bytes of text");
    std::string out(reinterpret_cast<const char *>(at_), n);
    at_ += n;
    if (!is_utf8(out)) damaged("a string is not UTF-8");
    return out;
  }
  bool done() const { return at_ == end_; }

 private:
  const uint8_t *at_;
  const uint8_t *end_;
};

Poly read_poly(Reader &r, size_t symbols) {
  Poly poly;
  const uint32_t n = r.count(1, "steps of a polynomial");
  poly.steps.reserve(n);
  int depth = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint8_t op = r.u8();
    switch (op) {
      case kPushConst:
        poly.steps.push_back({kPushConst, r.i64()});
        ++depth;
        break;
      case kPushSymbol:
        poly.steps.push_back({kPushSymbol, r.index(symbols, "symbol")});
        ++depth;
        break;
      case kAdd:
      case kMul:
      case kFloorDiv:
        if (depth < 2) damaged("a polynomial takes what it does not have");
        poly.steps.push_back({static_cast<PolyOp>(op), 0});
        --depth;
        break;
      default:
        damaged("polynomial step " + std::to_string(op));
    }
    if (depth > kPolyStack) damaged("a polynomial is too deep");
  }
  if (depth != 1) damaged("a polynomial leaves " + std::to_string(depth) + " values");
  return poly;
}

class ProgramReader {
 public:
  ProgramReader(const uint8_t *data, size_t size) : r_(data, size) {}

  Program read() {
    read_strings();
    p_.name = string();
    const uint32_t symbols = r_.count(4, "symbols");
    for (uint32_t i = 0; i < symbols; ++i) p_.symbols.push_back(string());
    const uint32_t polys = r_.count(4, "polynomials");
    for (uint32_t i = 0; i < polys; ++i) p_.polys.push_back(read_poly(r_, symbols));
    read_types(p_.inputs, p_.input_names);
    read_types(p_.outputs, p_.output_names);
    read_solve();
    const uint32_t constants = r_.count(12, "constants");
    for (uint32_t i = 0; i < constants; ++i) {
      const uint64_t size = r_.u64();
      if (size > INT64_MAX) damaged("a constant's size");
      p_.constants.push_back({size, r_.u32()});
    }
    const uint32_t kernels = r_.count(5, "kernels");
    for (uint32_t i = 0; i < kernels; ++i) {
      KernelRecord k{string(), kBuiltin};
      const uint8_t source = r_.u8();
      if (source > kHost) damaged("kernel source " + std::to_string(source));
      k.source = static_cast<KernelSource>(source);
      p_.kernels.push_back(std::move(k));
    }
    read_buffers();
    read_calls();
    const uint32_t donations = r_.count(8, "donations");
    for (uint32_t i = 0; i < donations; ++i) {
      const uint32_t in = r_.index(p_.inputs.size(), "donated input");
      p_.donations.push_back({in, r_.index(p_.outputs.size(), "donated output")});
    }
    p_.arena = poly();
    read_controls();
    read_carries();
    if (!r_.done()) damaged("bytes are left over");
    check_scopes();
    return std::move(p_);
  }

 private:
  std::string string() { return strings_[r_.index(strings_.size(), "string")]; }
  PolyId poly() { return r_.index(p_.polys.size(), "polynomial"); }

  std::vector<PolyId> polys(const char *what) {
    std::vector<PolyId> out(r_.count(4, what));
    for (PolyId &d : out) d = poly();
    return out;
  }

  std::vector<uint32_t> args() {
    std::vector<uint32_t> out(r_.count(4, "arguments"));
    for (uint32_t &a : out) a = r_.index(p_.buffers.size(), "buffer");
    return out;
  }

  void read_strings() {
    const uint32_t n = r_.count(4, "strings");
    strings_.reserve(n);
    for (uint32_t i = 0; i < n; ++i) strings_.push_back(r_.text());
  }

  void read_types(std::vector<TypeRecord> &types, std::vector<std::string> &names) {
    const uint32_t n = r_.count(21, "types");
    for (uint32_t i = 0; i < n; ++i) {
      names.push_back(string());
      TypeRecord t;
      t.dtype = r_.u8();
      if (t.dtype >= kDTypeCount) damaged("dtype " + std::to_string(t.dtype));
      t.layout = string();
      t.device = string();
      t.shape = polys("dimensions");
      if (t.shape.size() > 64) damaged("a rank above 64");
      t.nbytes = poly();
      types.push_back(std::move(t));
    }
  }

  void read_solve() {
    const uint32_t n = r_.count(28, "solutions");
    std::vector<bool> solved(p_.symbols.size());
    for (uint32_t i = 0; i < n; ++i) {
      SolveStep s;
      s.symbol = r_.index(p_.symbols.size(), "symbol");
      s.input = r_.index(p_.inputs.size(), "input");
      s.axis = r_.index(p_.inputs[s.input].shape.size(), "axis");
      s.scale = r_.i64();
      s.offset = r_.i64();
      if (s.scale == 0) damaged("a symbol's scale is zero");
      solved[s.symbol] = true;
      p_.solve.push_back(s);
    }
    for (size_t i = 0; i < solved.size(); ++i)
      if (!solved[i]) damaged("nothing gives symbol " + p_.symbols[i]);
  }

  void read_buffers() {
    const uint32_t n = r_.count(17, "buffers");
    const size_t limits[] = {p_.inputs.size(), p_.outputs.size(), p_.constants.size()};
    for (uint32_t i = 0; i < n; ++i) {
      const uint8_t kind = r_.u8();
      if (kind > kLines) damaged("buffer kind " + std::to_string(kind));
      // The index of a carry or a call is checked when those are known.
      const uint32_t index = kind < kArena ? r_.index(limits[kind], "buffer index") : r_.u32();
      BufferRecord b{static_cast<BufferKind>(kind), index, poly(), poly(), {}};
      const uint32_t moves = r_.count(8, "moves");
      for (uint32_t k = 0; k < moves; ++k) {
        const uint32_t loop = r_.u32();
        b.moves.push_back({loop, poly()});
      }
      p_.buffers.push_back(std::move(b));
    }
  }

  void read_controls() {
    const uint32_t n = r_.count(17, "controls");
    std::vector<uint32_t> around;  // the controls that the next one may lie in
    for (uint32_t i = 0; i < n; ++i) {
      ControlRecord c{kCounted, false, 0, 0, 0, kNone, kNone, kNone};
      const uint8_t kind = r_.u8();
      if (kind > kBands) damaged("control kind " + std::to_string(kind));
      c.kind = static_cast<ControlKind>(kind);
      c.first = r_.u32();
      c.second = r_.u32();
      c.end = r_.u32();
      if (c.first >= c.end || c.end > p_.calls.size() || c.second < c.first || c.second > c.end)
        damaged("the calls of a control");
      if ((c.kind == kCounted || c.kind == kBands) && c.second != c.first)
        damaged("a control of one part has two");
      if (i && c.first < p_.controls.back().first) damaged("controls are not in order");
      if (c.kind == kCounted) {
        c.trips = poly();
        c.reverse = flag("a direction");
      } else if (c.kind == kWhile && flag("a limit")) {
        c.trips = poly();
      }
      if (c.kind == kBands)
        read_stages(c);
      else if (c.kind != kCounted)
        c.predicate = r_.index(p_.buffers.size(), "buffer");
      while (!around.empty() && p_.controls[around.back()].end <= c.first) around.pop_back();
      if (!around.empty()) {
        const ControlRecord &p = p_.controls[around.back()];
        if (c.end > (c.first < p.second ? p.second : p.end)) damaged("controls overlap");
        if (p.kind == kBands) damaged("a control in bands");
        c.parent = around.back();
      }
      around.push_back(i);
      if (around.size() > kMaxNesting) damaged("controls are nested too deep");
      p_.controls.push_back(c);
    }
  }

  void read_stages(ControlRecord &c) {
    const auto number = [&](int64_t least, const char *what) {
      const int64_t n = r_.i64();
      if (n < least || n > kMaxStage) damaged(what);
      return n;
    };
    c.lines = number(1, "the lines of bands");
    const uint32_t n = r_.count(56, "stages");
    if (n != c.end - c.first || n < 2 || n > kMaxStages) damaged("the calls of bands");
    size_t slots = 0;
    for (uint32_t i = 0; i < n; ++i) {
      StageRecord s;
      s.height = number(1, "the height of a stage");
      s.width = number(1, "the width of a stage");
      s.stride = number(1, "the stride of a stage");
      s.above = number(0, "the padding of a stage");
      s.extent = number(1, "the extent of a stage");
      s.kept = number(0, "the lines of a stage");
      s.bytes = number(0, "the bytes of a line");
      c.stages.push_back(s);
      const CallRecord &call = p_.calls[c.first + i];
      slots += call.args.size() + call.epilogue_args.size();
      if (p_.kernels[call.kernel].source == kHost) damaged("a host function in bands");
    }
    if (slots > kMaxBandSlots) damaged("the arguments of bands");
    // Each stage but the last keeps what a band of the next one reads.
    int64_t need = std::min(c.lines, c.stages.back().height);
    for (uint32_t i = n - 1; i-- > 0;) {
      const StageRecord &next = c.stages[i + 1];
      need = std::min(c.stages[i].height, (need - 1) * next.stride + next.extent);
      if (c.stages[i].kept < need) damaged("a stage keeps too few lines");
    }
  }

  void read_carries() {
    const uint32_t n = r_.count(20, "carries");
    for (uint32_t i = 0; i < n; ++i) {
      CarryRecord c{};
      c.loop = r_.index(p_.controls.size(), "loop");
      if (p_.controls[c.loop].kind != kCounted && p_.controls[c.loop].kind != kWhile)
        damaged("a carry of what is no loop");
      for (uint32_t *b : {&c.init, &c.result, &c.spare}) *b = r_.index(p_.buffers.size(), "buffer");
      c.nbytes = poly();
      p_.carries.push_back(c);
    }
  }

  // Buffers that move with a loop, or are carries of it, are used in that loop only.
  void check_scopes() {
    for (const BufferRecord &b : p_.buffers) {
      const bool carried = b.kind == kBefore || b.kind == kAfter;
      if (carried && b.index >= p_.carries.size()) damaged("a carry that is not there");
      if (b.kind == kLines && (b.index >= p_.calls.size() || !b.moves.empty()))
        damaged("lines of no call");
      for (size_t k = 0; k < b.moves.size(); ++k) {
        const uint32_t loop = b.moves[k].loop;
        if (loop >= p_.controls.size() || p_.controls[loop].kind != kCounted)
          damaged("a buffer moves with no loop");
        // A carry's address is set by its loop: only loops within that one may move it.
        const uint32_t own = carried ? p_.carries[b.index].loop : kNone;
        if (carried && (loop == own || !p_.within(loop, own))) damaged("a carry moves");
        for (size_t j = 0; j < k; ++j)
          if (b.moves[j].loop == loop) damaged("a buffer moves twice with one loop");
      }
    }
    size_t next = 0;
    uint32_t around = kNone;
    for (size_t i = 0; i < p_.calls.size(); ++i) {
      while (around != kNone && p_.controls[around].end <= i) around = p_.controls[around].parent;
      while (next < p_.controls.size() && p_.controls[next].first == i)
        around = static_cast<uint32_t>(next++);
      for (const auto *args : {&p_.calls[i].args, &p_.calls[i].epilogue_args})
        for (uint32_t b : *args) {
          check_scope(b, around);
          check_lines(b, static_cast<uint32_t>(i), around);
        }
    }
    for (uint32_t i = 0; i < p_.controls.size(); ++i) {
      const ControlRecord &c = p_.controls[i];
      if (c.predicate == kNone) continue;
      check_scope(c.predicate, c.kind == kWhile ? i : c.parent);
      check_lines(c.predicate, kNone, kNone);
    }
    for (const CarryRecord &c : p_.carries)
      for (uint32_t b : {c.init, c.result, c.spare}) {
        check_scope(b, p_.controls[c.loop].parent);
        check_lines(b, kNone, kNone);
      }
  }

  // Lines are for the call that leaves them and for the next one, both in the same bands.
  void check_lines(uint32_t buffer, uint32_t call, uint32_t control) {
    const BufferRecord &b = p_.buffers[buffer];
    if (b.kind != kLines) return;
    const bool near = call != kNone && (b.index == call || b.index + 1 == call);
    if (!near || control == kNone || p_.controls[control].kind != kBands ||
        b.index < p_.controls[control].first || b.index + 1 >= p_.controls[control].end)
      damaged("lines are used outside their bands");
  }

  void check_scope(uint32_t buffer, uint32_t control) {
    const BufferRecord &b = p_.buffers[buffer];
    const bool carried = b.kind == kBefore || b.kind == kAfter;
    bool inside = !carried || p_.within(control, p_.carries[b.index].loop);
    for (const MoveRecord &m : b.moves) inside = inside && p_.within(control, m.loop);
    if (!inside) damaged("a buffer is used outside its loop");
  }

  bool flag(const char *what) {
    const uint8_t v = r_.u8();
    if (v > 1) damaged(what);
    return v;
  }

  void read_calls() {
    const uint32_t n = r_.count(53, "calls");
    p_.calls.reserve(n);
    for (uint32_t i = 0; i < n; ++i) {
      CallRecord c;
      c.kernel = r_.index(p_.kernels.size(), "kernel");
      c.args = args();
      c.dims = polys("dims");
      c.rows = poly();
      c.cols = poly();
      c.row_grain = r_.i64();
      c.col_grain = r_.i64();
      if (c.row_grain < 1 || c.col_grain < 0) damaged("a grain");
      c.even = flag("an even call");
      c.scratch = poly();
      c.work = poly();
      c.has_epilogue = flag("an epilogue flag");
      if (c.has_epilogue) {
        c.epilogue_kernel = r_.index(p_.kernels.size(), "kernel");
        c.epilogue_args = args();
        c.epilogue_dims = polys("dims");
      }
      c.op = string();
      const uint32_t locs = r_.count(13, "locations");
      for (uint32_t k = 0; k < locs; ++k) {
        LocationRecord loc{string(), r_.u32(), false};
        loc.backward = flag("the flag of a location");
        r_.u32();  // its share: for profiles only
        c.locs.push_back(std::move(loc));
      }
      c.flops = poly();
      c.traffic = poly();
      c.live = poly();
      p_.calls.push_back(std::move(c));
    }
  }

  Reader r_;
  Program p_;
  std::vector<std::string> strings_;
};

}  // namespace

Program read_program(const uint8_t *data, size_t size) {
  Reader header(data, size);
  if (size < 24) damaged("it ends early");
  if (std::memcmp(data, kProgramMagic, 8)) damaged("it does not begin as a program does");
  header.u64();
  const uint32_t version = header.u32();
  if (version != kProgramVersion)
    throw Error(ErrorKind::kPackage, "program version " + std::to_string(version) +
                                         "; this nir reads version " +
                                         std::to_string(kProgramVersion));
  const uint32_t crc = header.u32();
  if (header.u64() != size) damaged("its size is not what its header says");
  if (crc32(data + 24, size - 24) != crc) damaged("checksum");
  return ProgramReader(data + 24, size - 24).read();
}

}  // namespace nir
