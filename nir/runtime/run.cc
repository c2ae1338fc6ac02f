// Running: calls are shared out among threads; loops and branches say which calls, and move
// addresses.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>

#include "bound.h"
#include "thread_pool.h"

namespace nir {

namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// The failure with the lowest start, so that the message does not depend on timing.
struct Failure {
  std::atomic_flag failing = ATOMIC_FLAG_INIT;
  int64_t failed_at = -1;
  size_t call = 0;
  int32_t status = 0;
  int64_t detail[2] = {0, 0};

  void note(int64_t at, size_t of, int32_t code, const int64_t *why) {
    while (failing.test_and_set(std::memory_order_acquire)) {
    }
    if (failed_at < 0 || at < failed_at) {
      failed_at = at;
      call = of;
      status = code;
      detail[0] = why[0];
      detail[1] = why[1];
    }
    failing.clear(std::memory_order_release);
  }

  void raise() const {
    if (status) throw KernelError(status, call, detail[0], detail[1]);
  }
};

// Units that threads take in turns, large shares first and small ones at the end: whoever is slow
// or late holds up the others by one small share only.
struct Shares {
  int64_t units, threads, least;
  // What is left is cut into so many: a neighbour may stop a thread within any of them.
  int64_t shares = threads * (ThreadPool::instance().crowded() ? 16 : 2);
  std::atomic<int64_t> next{0};

  // Whether there is something left to do, from *from to *to.
  bool take(int64_t *from, int64_t *to) {
    *from = next.load(std::memory_order_relaxed);
    while (*from < units) {
      const int64_t left = units - *from;
      *to = *from + std::min(left, std::max(least, left / shares));
      if (next.compare_exchange_weak(*from, *to, std::memory_order_relaxed)) return true;
    }
    return false;
  }
};

// One call while threads share it.
struct Job {
  const BoundCall *call;
  void *const *pointers;
  const int64_t *dims;
  uint8_t *scratch;
  int64_t scratch_bytes;
  int64_t threads;
  Timeline *timeline;
  uint32_t number;  // of the call
  Shares shares{call->units, threads, least_units()};
  Failure failure{};

  // Units worth a claim. A short call is cut once for each thread, and so are a few units, or
  // pieces that repeat work, while nothing stops one of the threads.
  int64_t least_units() const {
    const bool crowded = ThreadPool::instance().crowded();
    int64_t pieces = round_up(call->pieces, threads);
    if (call->even)
      pieces = std::min(pieces, threads * (crowded ? 2 : 1));
    else if (!crowded && call->units <= 2 * threads)
      pieces = threads;
    return (call->units - 1) / pieces + 1;
  }

  void run_units(int64_t from, int64_t to, int thread) {
    const BoundCall &c = *call;
    nir_ctx ctx{scratch + scratch_bytes * thread,
                c.epilogue,
                pointers + c.epilogue_args,
                dims + c.epilogue_dims,
                {0, 0}};
    const int64_t extent = c.by_cols ? c.cols : c.rows;
    const int64_t begin = from * c.grain;
    const int64_t end = to == c.units ? extent : to * c.grain;
    const int32_t code = c.by_cols
                             ? c.fn(&ctx, pointers + c.args, dims + c.dims, 0, c.rows, begin, end)
                             : c.fn(&ctx, pointers + c.args, dims + c.dims, begin, end, 0, c.cols);
    if (code) failure.note(begin, number, code, ctx.detail);
  }

  void run_all() {
    const int64_t start = timeline ? now_ns() : 0;
    run_units(0, call->units, 0);
    if (timeline) note(0, start);
  }

  void share(int thread) {
    if (thread >= threads) return;  // the pool grew since the scratch was sized
    int64_t from, to;
    if (!shares.take(&from, &to)) return;
    const int64_t start = timeline ? now_ns() : 0;
    do run_units(from, to, thread);
    while (shares.take(&from, &to));
    if (timeline) note(thread, start);
  }

  void note(int thread, int64_t start) {
    timeline->threads[static_cast<size_t>(thread)].push_back({number, start, now_ns()});
  }
};

// Calls that take turns for a few lines, while threads share the lines of the last one.
struct BandJob {
  const ControlRecord &record;
  const BandSlots &slots;
  const BoundControl &bound;
  const BoundCall *calls;  // of all the program
  void *const *pointers;
  const int64_t *dims;
  uint8_t *scratch;
  int64_t scratch_bytes;
  int64_t threads;
  Timeline *timeline;
  // Each share computes again what lines before it have left: large shares.
  int64_t least = (bound.trips - 1) / (threads * (ThreadPool::instance().crowded() ? 8 : 2)) + 1;
  Shares shares{bound.trips, threads, least};
  Failure failure{};
  std::array<std::atomic<int64_t>, kMaxStages> spent{};

  struct Lines {
    int64_t first = 0, end = 0;
  };
  using Stages = std::array<Lines, kMaxStages>;

  void share(int thread) {
    if (thread >= threads) return;  // the pool grew since the scratch was sized
    uint8_t *memory = scratch + scratch_bytes * thread;
    for (int64_t from, to; shares.take(&from, &to);) {
      Stages there{};  // nothing
      const int64_t height = record.stages.back().height;
      for (int64_t line = from, end; line < to; line = end) {
        end = std::min({to, line + record.lines, (line / height + 1) * height});
        const int32_t status = band({line, end}, memory, thread, &there);
        if (status) return;
      }
    }
  }

  // What lines of each stage are computed for `last` lines of the last one; `there` is what each
  // has left from the band before, which moves to where the new lines follow it.
  Stages lines_for(Lines last, uint8_t *memory, Stages *there) const {
    const size_t n = record.stages.size();
    Stages fresh{};
    fresh[n - 1] = last;
    const int64_t image = last.first / record.stages[n - 1].height;
    for (size_t s = n - 1; s-- > 0;) {
      const StageRecord &stage = record.stages[s], &reader = record.stages[s + 1];
      const Lines read = fresh[s + 1];
      if (read.first >= read.end) continue;
      const auto within = [&](int64_t line) {
        return image * stage.height + std::clamp<int64_t>(line, 0, stage.height);
      };
      const int64_t base = image * reader.height;
      const int64_t first = within((read.first - base) * reader.stride - reader.above);
      const int64_t end = std::max(
          first, within((read.end - 1 - base) * reader.stride - reader.above + reader.extent));
      Lines &have = (*there)[s];
      if (first >= have.first && end <= have.end) continue;
      uint8_t *at = memory + bound.offsets[s];
      fresh[s] = {first, end};
      if (first >= have.first && first < have.end) {
        fresh[s].first = have.end;
        std::memmove(at, at + (first - have.first) * stage.bytes,
                     static_cast<size_t>((have.end - first) * stage.bytes));
      }
      have = {first, end};
    }
    return fresh;
  }

  int32_t band(Lines last, uint8_t *memory, int thread, Stages *there) {
    const Stages fresh = lines_for(last, memory, there);
    void *own[kMaxBandSlots];
    std::copy(pointers + slots.first, pointers + slots.first + slots.count, own);
    for (const auto &l : slots.lines) {
      // Where line 0 of all images would lie.
      const int64_t before = (*there)[l.stage].first * record.stages[l.stage].bytes;
      own[l.slot] = reinterpret_cast<void *>(
          reinterpret_cast<uintptr_t>(memory + bound.offsets[l.stage]) -
          static_cast<uintptr_t>(before));
    }
    for (size_t s = 0; s < record.stages.size(); ++s) {
      const Lines lines = fresh[s];
      if (lines.first >= lines.end) continue;
      const BoundCall &c = calls[record.first + s];
      nir_ctx ctx{memory + bound.memory,
                  c.epilogue,
                  own + (c.epilogue ? c.epilogue_args - slots.first : 0),
                  dims + c.epilogue_dims,
                  {0, 0}};
      const int64_t start = timeline ? now_ns() : 0;
      const int64_t width = record.stages[s].width;
      const int32_t status = c.fn(&ctx, own + (c.args - slots.first), dims + c.dims,
                                  lines.first * width, lines.end * width, 0, c.cols);
      if (status) {
        failure.note(last.first, record.first + s, status, ctx.detail);
        return status;
      }
      if (timeline) {
        const int64_t end = now_ns();
        spent[s].fetch_add(end - start, std::memory_order_relaxed);
        timeline->threads[static_cast<size_t>(thread)].push_back(
            {static_cast<uint32_t>(record.first + s), start, end});
      }
    }
    return 0;
  }
};

}  // namespace

void Executable::Run::execute(Timeline *timeline) {
  FlushDenormals flush;
  Context &c = *context_;
  timeline_ = timeline;
  flush_ = &flush;
  // The scratch was sized for so many threads; a pool resized meanwhile must not use more.
  const auto room = static_cast<int64_t>(c.memory->capacity) - c.bound->arena;
  const int64_t pool = ThreadPool::instance().size();
  threads_ = c.bound->scratch ? std::min(pool, room / c.bound->scratch) : pool;
  if (timeline) {
    timeline->calls.assign(c.bound->calls.size(), {});
    timeline->threads.assign(static_cast<size_t>(threads_), {});
  }
  try {
    run_calls(0, c.bound->calls.size(), 0);
  } catch (...) {
    c.arena = nullptr;  // addresses may have moved with a loop: the next run makes them anew
    throw;
  }
}

// Calls first .. end - 1; `control` is the first control that begins there or later.
void Executable::Run::run_calls(size_t first, size_t end, size_t control) {
  const std::vector<ControlRecord> &controls = exe_.program_.controls;
  for (size_t i = first; i < end;) {
    if (control == controls.size() || controls[control].first != i) {
      run_call(i++);
      continue;
    }
    const ControlRecord &c = controls[control];
    const ControlPlan &plan = exe_.controls_[control];
    if (c.kind == kBands)
      run_bands(control);
    else if (c.kind != kBranch)
      run_loop(control);
    else if (*static_cast<const uint8_t *>(context_->pointers[plan.predicate]))
      run_calls(c.first, c.second, control + 1);
    else
      run_calls(c.second, c.end, plan.second);
    i = c.end;
    control = plan.next;
  }
}

void Executable::Run::run_loop(size_t control) {
  const ControlRecord &c = exe_.program_.controls[control];
  const ControlPlan &plan = exe_.controls_[control];
  const Bound &bound = *context_->bound;
  const BoundControl &b = bound.controls[control];
  void **pointers = context_->pointers.data();
  const int64_t *strides = bound.strides.data() + b.strides;
  const auto move = [&](int64_t elements) {
    for (size_t k = 0; k < plan.moving.size(); ++k) {
      void *&p = pointers[plan.moving[k]];
      p = static_cast<uint8_t *>(p) + elements * strides[k];
    }
  };
  // Whether step `t` writes the result or the spare. The last step of a counted loop writes the
  // result; where the last is not known, it may have to be copied there.
  const auto to_result = [&](int64_t t) {
    return (c.kind == kCounted ? b.trips - 1 - t : t) % 2 == 0;
  };
  const auto written = [&](const ControlPlan::CarryPlan &carry, int64_t t) {
    return pointers[t < 0 ? carry.init : to_result(t) ? carry.result : carry.spare];
  };
  const auto follow = [&](const std::vector<uint32_t> &slots, void *to) {
    for (uint32_t s : slots) pointers[s] = static_cast<uint8_t *>(to) + bound.slot_offsets[s];
  };

  const int64_t direction = c.reverse ? -1 : 1;
  const bool moves = c.kind == kCounted && b.trips > 0;
  if (moves && c.reverse) move(b.trips - 1);
  int64_t t = 0;
  for (; t < b.trips; ++t) {
    for (const auto &carry : plan.carries) {
      follow(carry.before, written(carry, t - 1));
      follow(carry.after, written(carry, t));
    }
    if (c.kind == kWhile) {
      run_calls(c.first, c.second, control + 1);
      if (!*static_cast<const uint8_t *>(pointers[plan.predicate])) break;
    }
    run_calls(c.second, c.end, c.kind == kWhile ? plan.second : control + 1);
    if (moves) move(direction);
  }
  // Back to where the first element lies: a loop around this one finds its addresses as they were.
  if (moves) move(c.reverse ? 1 : -b.trips);
  for (size_t k = 0; k < plan.carries.size(); ++k) {
    void *last = written(plan.carries[k], t - 1);
    void *result = pointers[plan.carries[k].result];
    const auto bytes = static_cast<size_t>(bound.carry_bytes[b.carries + k]);
    if (last != result && bytes) std::memmove(result, last, bytes);
  }
}

void Executable::Run::run_bands(size_t control) {
  Context &c = *context_;
  const Bound &bound = *c.bound;
  const ControlRecord &record = exe_.program_.controls[control];
  const int64_t start = timeline_ ? now_ns() : 0;
  BandJob job{record,
              exe_.controls_[control].bands,
              bound.controls[control],
              bound.calls.data(),
              c.pointers.data(),
              bound.dims.data(),
              c.scratch,
              bound.scratch,
              threads_,
              timeline_};
  bool parallel = false;
  for (uint32_t i = record.first; i < record.end; ++i) parallel |= bound.calls[i].parallel;
  if (parallel && threads_ > 1)
    ThreadPool::instance().run(
        [](void *j, int thread) { static_cast<BandJob *>(j)->share(thread); }, &job);
  else
    job.share(0);
  job.failure.raise();
  if (!timeline_) return;
  // The time of all of them, in the proportion of what each took on the threads.
  const int64_t whole = now_ns() - start;
  int64_t sum = 1;
  for (const auto &s : job.spent) sum += s.load();
  for (uint32_t i = record.first; i < record.end; ++i) {
    const double part = static_cast<double>(job.spent[i - record.first].load()) /
                        static_cast<double>(sum);
    timeline_->calls[i].nanoseconds += static_cast<int64_t>(part * static_cast<double>(whole));
    ++timeline_->calls[i].count;
  }
}

void Executable::Run::run_call(size_t i) {
  Context &c = *context_;
  const Bound &bound = *c.bound;
  const BoundCall &call = bound.calls[i];
  const int64_t start = timeline_ ? now_ns() : 0;
  if (call.units > 0) {
    if (call.host) flush_->suspend();
    Job job{&call,        c.pointers.data(), bound.dims.data(), c.scratch,
            bound.scratch, threads_,          timeline_,         static_cast<uint32_t>(i)};
    if (call.parallel && threads_ > 1)
      ThreadPool::instance().run(
          [](void *j, int thread) { static_cast<Job *>(j)->share(thread); }, &job);
    else
      job.run_all();
    if (call.host) flush_->resume();
    job.failure.raise();
  }
  if (timeline_) {
    timeline_->calls[i].nanoseconds += now_ns() - start;
    ++timeline_->calls[i].count;
  }
}

}  // namespace nir
