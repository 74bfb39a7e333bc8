// The threads of the kernels: one team that runs a function together, and sleeps when there is nothing
// to do but wait.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace dsv2 {

// What a function that runs on the whole team sees: who it is, loops whose parts are dealt out as
// threads ask for them, and barriers. Every member must make the same sequence of calls.
class Team {
 public:
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };
  static constexpr int kCounters = 64;

  struct Shared {
    int size = 1;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
    Counter counters[kCounters];
  };

  Team(Shared& shared, int member) : shared_(shared), member_(member) {}

  int member() const { return member_; }
  int size() const { return shared_.size; }

  // Calls body(first, last) for parts of [0, count), `grain` at a time, then waits for everyone.
  template <class Body>
  void each(int64_t count, int64_t grain, const Body& body) {
    if (shared_.size == 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    std::atomic<int64_t>& counter = next_counter();
    for (;;) {
      const int64_t first = counter.fetch_add(grain, std::memory_order_relaxed);
      if (first >= count) break;
      body(first, first + grain < count ? first + grain : count);
    }
    barrier();
  }

  // Calls body(i, next) for i in [0, count) and the i that this thread gets after it, `count` if none:
  // what that reads can be asked for early. Threads with few parts each take them one by one and do
  // not know.
  template <class Body>
  void each_with_next(int64_t count, const Body& body) {
    if (shared_.size == 1) {
      for (int64_t i = 0; i < count; ++i) body(i, i + 1);
      return;
    }
    if (count < kManyParts * shared_.size) {
      each(count, 1, [&](int64_t first, int64_t) { body(first, count); });
      return;
    }
    std::atomic<int64_t>& counter = next_counter();
    int64_t own = counter.fetch_add(1, std::memory_order_relaxed);
    while (own < count) {
      const int64_t next = counter.fetch_add(1, std::memory_order_relaxed);
      body(own, next < count ? next : count);
      own = next;
    }
    barrier();
  }

  void barrier();

 private:
  static constexpr int kManyParts = 8;  // for each thread

  // Of the loop that begins: what is dealt out of it so far.
  std::atomic<int64_t>& next_counter() {
    const int use = loop_++;
    // The counter half a turn ahead was last used behind a barrier that all have passed.
    shared_.counters[(use + kCounters / 2) % kCounters].next.store(0, std::memory_order_relaxed);
    return shared_.counters[use % kCounters].next;
  }

  Shared& shared_;
  int member_;
  int loop_ = 0;
};

class Pool {
 public:
  using Task = void (*)(void*, Team&);

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(team) on every thread, the caller's among them; calls from several threads queue. Throws
  // std::runtime_error in a fork of the process that made the pool.
  template <class Body>
  void run(const Body& body) {
    run_task([](void* context, Team& team) { (*static_cast<const Body*>(context))(team); },
             const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void run_task(Task task, void* context);
  void work(int member);

  const int process_;
  std::mutex turn_;  // one task at a time
  Team::Shared shared_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace dsv2
