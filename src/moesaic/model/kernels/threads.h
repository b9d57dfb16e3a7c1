// How the threads of a decoder step meet, stay apart and share work.

#pragma once
#include <sched.h>

#include <atomic>

#include "bf16.h"

// Spins: stages last microseconds.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++) {
            if (spins > 20000) sched_yield();
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }

  private:
    const int threads_;
    std::atomic<int> arrived_{0}, turn_{0};
};

// Helpers stay on processors of their own, where the threads take the whole machine. Else the system wakes a helper
// next to the thread that waits for it, and both share a processor for milliseconds. The first thread stays free: it
// is the caller's.
static inline void stay_apart(int thread, int threads) {
#if defined(__linux__)
    static thread_local bool done = false;
    if (done || thread == 0) return;
    done = true;
    cpu_set_t allowed, own;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != threads) return;
    CPU_ZERO(&own);
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && seen++ == thread) CPU_SET(cpu, &own);
    sched_setaffinity(0, sizeof own, &own);
#endif
}

struct Range {
    Int from, to;
};
static inline Range share(Int total, int thread, int threads) { return {total * thread / threads, total * (thread + 1) / threads}; }
