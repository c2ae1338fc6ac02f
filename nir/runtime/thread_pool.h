// The pool that runs kernels: one worker for each further core of the process's affinity set.
#ifndef NIR_RUNTIME_THREAD_POOL_H
#define NIR_RUNTIME_THREAD_POOL_H

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common.h"

namespace nir {

// Below this much work (bytes moved, or flops / 8) a second thread costs more than it brings.
constexpr int64_t kSerialWork = 64 << 10;
// Units of columns for each unit of rows from which a call is cut by columns.
constexpr int64_t kManyColumns = 8;

// Flushes denormals to zero, in operands and results, on this thread; restores on destruction.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals &) = delete;
  FlushDenormals &operator=(const FlushDenormals &) = delete;

  // Functions of the host run with its own mode.
  void suspend() const;
  void resume() const;

 private:
  uint64_t saved_;
};

// One job at a time: a caller that finds the pool busy works alone, which is right when other
// threads compute already. The caller always takes part, and waits only for workers that began;
// one that a neighbour keeps off its core meanwhile goes on where the caller would sleep.
class ThreadPool {
 public:
  using Task = void (*)(void *arg, int thread);

  static ThreadPool &instance();

  // Threads that a job may use, the caller included (NIR_NUM_THREADS, else the affinity set's
  // size).
  int size();
  // Waits for the job in progress, ends the workers and lets the next job start others.
  void resize(int threads);

  // Calls task(arg, t) on the caller (t = 0) and on workers (0 < t < size()); returns when every
  // call has ended. Task must share out the work itself, so that one caller can do all of it.
  void run(Task task, void *arg);
  // Whether a neighbour kept a worker off its core lately: small shares lose less then.
  bool crowded() const { return crowded_.load(std::memory_order_relaxed) > 0; }

 private:
  struct Worker {
    pthread_t thread{};
    int cpu = -1;
    int index = 0;
    std::atomic<bool> working{false};
    int64_t seen = -1;  // its processor time when the caller looked last
    int64_t processor_time() const;
  };

  ThreadPool() = default;
  void start();
  void stop();
  void make_room_for_caller();
  void await(uint32_t entered);
  void worker_main(Worker &self);
  static void *worker_entry(void *worker);
  static void child_after_fork();

  std::atomic<int> size_{0};  // 0: not yet known
  std::atomic<bool> busy_{false};
  bool started_ = false;
  bool pinned_ = false;
  int free_cpu_ = -1;  // the core left to the caller
  std::vector<std::unique_ptr<Worker>> workers_;

  Task task_ = nullptr;
  void *arg_ = nullptr;
  // Generation in the high bits, then "open", then how many workers entered.
  std::atomic<uint64_t> gate_{0};
  std::atomic<uint32_t> left_{0};
  std::atomic<uint32_t> signal_{0};  // what sleeping workers wait on
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<uint32_t> caller_sleeps_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int> crowded_{0};  // jobs for which it is taken to last
};

}  // namespace nir

#endif  // NIR_RUNTIME_THREAD_POOL_H
