#include "thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <new>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nir {

namespace {

constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr uint64_t kEntered = kOpen - 1;
constexpr int kGenerationShift = 17;
constexpr int kMaxThreads = 1024;
// Long enough to bridge the gap between two calls of a run, short enough not to be a burden.
constexpr auto kSpin = std::chrono::microseconds(30);
// Between two looks at a worker that is waited for.
constexpr timespec kLookAgain{0, 200 * 1000};
// Jobs that are cut finely after a worker was kept off its core.
constexpr int kCrowdedJobs = 200;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void futex_wait(std::atomic<uint32_t> *word, uint32_t expected, const timespec *most = nullptr) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAIT_PRIVATE, expected, most,
          nullptr, 0);
}

void futex_wake(std::atomic<uint32_t> *word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAKE_PRIVATE, count, nullptr,
          nullptr, 0);
}

// Spins until `ready` or for kSpin; says whether it is ready.
template <class Ready>
bool spin(bool allowed, Ready ready) {
  if (ready()) return true;
  if (!allowed) return false;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

std::vector<int> affinity() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int c = 0; c < CPU_SETSIZE; ++c)
      if (CPU_ISSET(c, &set)) cpus.push_back(c);
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

void pin(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread, sizeof(set), &set);
}

int wanted_threads() {
  const char *text = std::getenv("NIR_NUM_THREADS");
  if (!text || !*text) return static_cast<int>(affinity().size());
  char *end = nullptr;
  errno = 0;
  const long n = std::strtol(text, &end, 10);
  if (errno || *end || n < 1 || n > kMaxThreads)
    throw Error(ErrorKind::kNir, std::string("NIR_NUM_THREADS: expected a number from 1 to ") +
                                     std::to_string(kMaxThreads) + ", got '" + text + "'");
  return static_cast<int>(n);
}

}  // namespace

namespace {

#if defined(__x86_64__)
constexpr uint64_t kFlush = 0x8040;  // FTZ and DAZ
uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;  // FZ
uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
#endif

}  // namespace

FlushDenormals::FlushDenormals() : saved_(float_mode()) { resume(); }
FlushDenormals::~FlushDenormals() { suspend(); }
void FlushDenormals::suspend() const { set_float_mode(saved_); }
void FlushDenormals::resume() const { set_float_mode(saved_ | kFlush); }

ThreadPool &ThreadPool::instance() {
  // Never destroyed: workers may outlive static destructors.
  static ThreadPool *pool = [] {
    auto *made = new ThreadPool;
    pthread_atfork(nullptr, nullptr, child_after_fork);
    return made;
  }();
  return *pool;
}

// Only the forking thread lives on in a child: the pool begins anew there, with the same size.
void ThreadPool::child_after_fork() {
  ThreadPool &pool = instance();
  const int size = pool.size_.load();
  new (&pool) ThreadPool;  // the workers' records are leaked: their threads do not exist here
  pool.size_.store(size);
}

int ThreadPool::size() {
  int n = size_.load(std::memory_order_relaxed);
  if (n == 0) {
    n = wanted_threads();
    size_.store(n, std::memory_order_relaxed);
  }
  return n;
}

void ThreadPool::resize(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw Error(ErrorKind::kNir, "number of threads: expected 1 to " + std::to_string(kMaxThreads) +
                                     ", got " + std::to_string(threads));
  while (busy_.exchange(true, std::memory_order_acquire)) sched_yield();
  stop();
  size_.store(threads, std::memory_order_relaxed);
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::start() {
  const std::vector<int> cpus = affinity();
  const int n = size();
  pinned_ = n <= static_cast<int>(cpus.size());
  free_cpu_ = sched_getcpu();
  bool mine_known = false;
  for (int c : cpus) mine_known |= c == free_cpu_;
  if (!mine_known) free_cpu_ = cpus[0];
  workers_.clear();
  for (int i = 1; i < n; ++i) workers_.push_back(std::make_unique<Worker>());
  sigset_t all, old;
  sigfillset(&all);
  // Signals belong to the host's threads.
  pthread_sigmask(SIG_SETMASK, &all, &old);
  size_t next = 0;
  int made = 0;
  for (auto &w : workers_) {
    w->index = made + 1;
    if (pinned_) {
      while (cpus[next] == free_cpu_) ++next;
      w->cpu = cpus[next++];
    }
    if (pthread_create(&w->thread, nullptr, worker_entry, w.get()) != 0) break;
    if (pinned_) pin(w->thread, w->cpu);
    ++made;
  }
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  // Fewer threads than wished for is slower, not wrong.
  workers_.resize(static_cast<size_t>(made));
  started_ = true;
}

void ThreadPool::stop() {
  if (!started_) return;
  stopping_.store(true);
  signal_.fetch_add(1);
  futex_wake(&signal_, INT_MAX);
  for (auto &w : workers_) pthread_join(w->thread, nullptr);
  workers_.clear();
  stopping_.store(false);
  started_ = false;
}

// Two threads on one core would turn microseconds into time slices: the worker whose core the
// caller is on moves to the core that the caller had.
void ThreadPool::make_room_for_caller() {
  const int cpu = sched_getcpu();
  if (!pinned_ || cpu == free_cpu_) return;
  for (auto &w : workers_) {
    if (w->cpu != cpu) continue;
    w->cpu = free_cpu_;
    free_cpu_ = cpu;
    pin(w->thread, w->cpu);
    return;
  }
}

void ThreadPool::run(Task task, void *arg) {
  if (size() == 1 || busy_.exchange(true, std::memory_order_acquire)) {
    task(arg, 0);
    return;
  }
  if (!started_) start();
  make_room_for_caller();
  if (int n = crowded_.load(std::memory_order_relaxed))
    crowded_.store(n - 1, std::memory_order_relaxed);
  task_ = task;
  arg_ = arg;
  left_.store(0, std::memory_order_relaxed);
  caller_sleeps_.store(0, std::memory_order_relaxed);
  const uint64_t generation = (gate_.load(std::memory_order_relaxed) >> kGenerationShift) + 1;
  gate_.store(generation << kGenerationShift | kOpen, std::memory_order_release);
  signal_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) futex_wake(&signal_, INT_MAX);

  task(arg, 0);

  // Who has not entered by now stays out.
  const auto entered =
      static_cast<uint32_t>(gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & kEntered);
  await(entered);
  busy_.store(false, std::memory_order_release);
}

// The scheduler may let a neighbour run for longer than a call takes: whom it keeps waiting is
// looked for again and again, and goes on where the caller sleeps.
void ThreadPool::await(uint32_t entered) {
  const auto all_left = [&] { return left_.load(std::memory_order_acquire) == entered; };
  if (spin(pinned_, all_left)) return;
  caller_sleeps_.store(1, std::memory_order_seq_cst);
  Worker *moved = nullptr;
  for (uint32_t n; (n = left_.load(std::memory_order_seq_cst)) != entered;) {
    if (pinned_ && !moved) {
      for (auto &w : workers_) w->seen = w->working.load() ? w->processor_time() : -1;
      if (spin(true, all_left)) break;
      for (auto &w : workers_)
        if (w->seen >= 0 && w->working.load() && w->seen == w->processor_time()) moved = w.get();
      if (moved) {
        pin(moved->thread, sched_getcpu());
        crowded_.store(kCrowdedJobs, std::memory_order_relaxed);
      }
    }
    futex_wait(&left_, n, moved ? nullptr : &kLookAgain);
  }
  if (moved) pin(moved->thread, moved->cpu);
}

// Nanoseconds for which the worker has run; -1 if unknown.
int64_t ThreadPool::Worker::processor_time() const {
  clockid_t clock;
  timespec t;
  if (pthread_getcpuclockid(thread, &clock) || clock_gettime(clock, &t)) return -1;
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

void *ThreadPool::worker_entry(void *worker) {
  instance().worker_main(*static_cast<Worker *>(worker));
  return nullptr;
}

void ThreadPool::worker_main(Worker &self) {
  FlushDenormals flush;
  uint64_t done = 0;  // the generation that this worker took part in last
  for (;;) {
    const uint32_t signal = signal_.load(std::memory_order_seq_cst);
    if (stopping_.load()) return;
    uint64_t gate = gate_.load(std::memory_order_acquire);
    while ((gate & kOpen) && (gate >> kGenerationShift) != done) {
      if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) continue;
      done = gate >> kGenerationShift;
      self.working.store(true, std::memory_order_relaxed);
      task_(arg_, self.index);
      self.working.store(false, std::memory_order_relaxed);
      left_.fetch_add(1, std::memory_order_seq_cst);
      if (caller_sleeps_.load(std::memory_order_seq_cst)) futex_wake(&left_, 1);
      break;
    }
    if (spin(pinned_, [&] { return signal_.load(std::memory_order_acquire) != signal; })) continue;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    if (signal_.load(std::memory_order_seq_cst) == signal) futex_wait(&signal_, signal);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace nir
