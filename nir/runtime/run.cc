// Running: calls are shared out among threads; loops and branches say which calls, and move
// addresses.
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
  const bool crowded = ThreadPool::instance().crowded();
  // What is left is cut into so many shares: a neighbour may stop a thread within any of them.
  const int64_t shares = threads * (crowded ? 16 : 2);
  const int64_t least = least_units();
  std::atomic<int64_t> next{0};
  // The failure with the lowest start, so that the message does not depend on timing.
  std::atomic_flag failing = ATOMIC_FLAG_INIT;
  int64_t failed_at = -1;
  int32_t status = 0;
  int64_t detail[2] = {0, 0};

  // Units worth a claim: a short call is cut once for each thread, and so are a few units while
  // nothing stops one of the threads.
  int64_t least_units() const {
    const int64_t pieces = round_up(call->pieces, threads);
    const bool few = !crowded && call->units <= 2 * threads;
    return (call->units - 1) / (few ? threads : pieces) + 1;
  }

  void fail(int64_t at, int32_t code, const int64_t *why) {
    while (failing.test_and_set(std::memory_order_acquire)) {
    }
    if (failed_at < 0 || at < failed_at) {
      failed_at = at;
      status = code;
      detail[0] = why[0];
      detail[1] = why[1];
    }
    failing.clear(std::memory_order_release);
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
    if (code) fail(begin, code, ctx.detail);
  }

  void run_all() {
    const int64_t start = timeline ? now_ns() : 0;
    run_units(0, call->units, 0);
    if (timeline) note(0, start);
  }

  // Takes a share of what is left, large at first and small at the end: whoever is slow or late
  // holds up the others by one small piece only.
  void share(int thread) {
    if (thread >= threads) return;  // the pool grew since the scratch was sized
    int64_t from = next.load(std::memory_order_relaxed);
    if (from >= call->units) return;
    const int64_t start = timeline ? now_ns() : 0;
    while (from < call->units) {
      const int64_t left = call->units - from;
      const int64_t take = std::min(left, std::max(least, left / shares));
      if (next.compare_exchange_weak(from, from + take, std::memory_order_relaxed)) {
        run_units(from, from + take, thread);
        from = next.load(std::memory_order_relaxed);
      }
    }
    if (timeline) note(thread, start);
  }

  void note(int thread, int64_t start) {
    timeline->threads[static_cast<size_t>(thread)].push_back({number, start, now_ns()});
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
    if (c.kind != kBranch)
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
    if (job.status) throw KernelError(job.status, i, job.detail[0], job.detail[1]);
  }
  if (timeline_) {
    timeline_->calls[i].nanoseconds += now_ns() - start;
    ++timeline_->calls[i].count;
  }
}

}  // namespace nir
