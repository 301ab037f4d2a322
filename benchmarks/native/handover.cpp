// How far two threads are from each other: what it takes to hand a word from one to the other.
#include <atomic>
#include <chrono>

#include "cpu/parallel.hpp"

// Seconds for one of `times` hand-overs there and back, halved; 0 where there is only one thread.
extern "C" __attribute__((visibility("default"))) double handover_seconds(int times) {
    using Clock = std::chrono::steady_clock;
    alignas(64) std::atomic<int> word{0};
    double seconds = 0.0;
    bnext::cpu::parallel(2, 0, [&](const bnext::cpu::Team& team) {
        if (team.size < 2) return;
        team.barrier();
        const auto begin = Clock::now();
        for (int i = 0; i < times; ++i) {
            const int mine = 2 * i + team.rank;
            while (word.load(std::memory_order_acquire) != mine) {
            }
            word.store(mine + 1, std::memory_order_release);
        }
        const std::chrono::duration<double> took = Clock::now() - begin;
        if (team.rank == 0) seconds = took.count() / (2.0 * times);
    });
    return seconds;
}
