#include "pool.h"

#include <unistd.h>

#include <chrono>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#define DSV2_PAUSE() _mm_pause()
#else
#define DSV2_PAUSE() std::this_thread::yield()
#endif

namespace dsv2 {
namespace {

// Within a task others arrive within microseconds, unless the system took their core away. Giving up
// ours lets them arrive if they wait for this one; sleeping lets the system bring them here if they
// wait for another, which it does not for a core that is busy with waiting.
constexpr int kSpinsBeforeYield = 500;
constexpr int kYieldsBeforeSleep = 50;
// Between two layers Python needs some ten microseconds; between two steps a thread may sleep.
constexpr auto kIdle = std::chrono::microseconds(100);

// Returns the value of `state` as soon as it is another than `old`. Who changes it notifies.
template <class T>
T other_than(const std::atomic<T>& state, T old) {
  for (int spins = 0;; ++spins) {
    const T now = state.load(std::memory_order_acquire);
    if (now != old) return now;
    if (spins < kSpinsBeforeYield) {
      DSV2_PAUSE();
    } else if (spins < kSpinsBeforeYield + kYieldsBeforeSleep) {
      std::this_thread::yield();
    } else {
      state.wait(old, std::memory_order_acquire);
    }
  }
}

}  // namespace

void Team::barrier() {
  if (shared_.size == 1) return;
  const uint32_t phase = shared_.phase.load(std::memory_order_relaxed);
  if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == shared_.size) {
    shared_.arrived.store(0, std::memory_order_relaxed);
    // Not a store: it could still be on its way when notify_all looks whether anyone sleeps.
    shared_.phase.fetch_add(1, std::memory_order_seq_cst);
    shared_.phase.notify_all();
    return;
  }
  other_than(shared_.phase, phase);
}

Pool::Pool(int threads) : process_(getpid()) {
  shared_.size = threads;
  for (int member = 1; member < threads; ++member) {
    workers_.emplace_back([this, member] { work(member); });
  }
}

Pool::~Pool() {
  if (getpid() != process_) {
    // A fork has no such threads: to wait for them would be for ever, to let go of them an error.
    new std::vector<std::thread>(std::move(workers_));
    return;
  }
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run_task(Task task, void* context) {
  if (getpid() != process_) {
    throw std::runtime_error("threads do not survive a fork: this process has to load the model itself");
  }
  const std::lock_guard<std::mutex> lock(turn_);
  task_ = task;
  context_ = context;
  for (Team::Counter& counter : shared_.counters) counter.next.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  Team team(shared_, 0);
  task(context, team);
  for (int left = running_.load(std::memory_order_acquire); left != 0;) left = other_than(running_, left);
}

void Pool::work(int member) {
  uint32_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    uint32_t now;
    int spins = 0;
    while ((now = generation_.load(std::memory_order_acquire)) == seen) {
      DSV2_PAUSE();
      if (++spins % 64 == 0 && std::chrono::steady_clock::now() - start > kIdle) {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    seen = now;
    if (stop_.load()) return;
    Team team(shared_, member);
    task_(context_, team);
    running_.fetch_sub(1, std::memory_order_release);
    running_.notify_all();
  }
}

}  // namespace dsv2
