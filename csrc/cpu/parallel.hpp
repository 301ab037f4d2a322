// Teams of threads: regions, their barrier, and the distribution of tasks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "core/dtype.hpp"
#include "core/float_mode.hpp"
#include "cpu/openmp.hpp"
#include "cpu/team_size.hpp"
#include "cpu/waiting.hpp"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace bnext::cpu {

// The barrier of one region: members poll for some microseconds, then sleep. OpenMP's own barriers
// poll for milliseconds; where cores are few, that keeps the core from the thread that is awaited.
class Meeting {
public:
    explicit Meeting(RegionInUse& region) : region_(region) {}

    void start(int rank) {
        if (rank == 0) region_.begin_part();
    }

    // Writes of all members before the barrier are visible to all members after it.
    void barrier(int rank, int size) {
        const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived_.store(0, std::memory_order_relaxed);
            generation_.store(generation + 1, std::memory_order_release);
            generation_.notify_all();
            return;
        }
        wait(rank, generation_, generation);
    }

    // The end of a member's part. The first member waits for the others here, where the wait is
    // measured, and not at the end of OpenMP's region.
    void finish(int rank, int size) {
        if (rank != 0) {
            if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == size - 1) {
                all_finished_.store(1, std::memory_order_release);
                all_finished_.notify_one();
            }
            return;
        }
        region_.end_part();
        wait(rank, all_finished_, 0);
        region_.end();
    }

private:
    void wait(int rank, std::atomic<std::uint32_t>& value, std::uint32_t old) {
        const Nanoseconds waited = wait_while(value, old);
        if (rank == 0) region_.add_wait(waited);
    }

    RegionInUse& region_;
    alignas(64) std::atomic<int> arrived_{0};
    std::atomic<int> finished_{0};
    alignas(64) std::atomic<std::uint32_t> generation_{0};
    std::atomic<std::uint32_t> all_finished_{0};
};

struct Team {
    int rank = 0;
    int size = 1;
    Meeting* meeting = nullptr;

    void barrier() const {
        if (size > 1) meeting->barrier(rank, size);
    }

    // This member's share of [0, n): contiguous, so that the second phase finds the first phase's
    // data in a cache.
    [[nodiscard]] Index share_begin(Index n) const { return n * rank / size; }
    [[nodiscard]] Index share_end(Index n) const { return n * (rank + 1) / size; }
};

// One region of OpenMP: member(rank, size) on each of at most `threads` threads.
template <class Member>
void run_region(int threads, const Member& member) {
#ifdef _OPENMP
    note_parallel_region();
    if (const Runtime* runtime = shared_runtime()) {  // as compilers translate the lines below
        struct Shared {
            const Runtime& runtime;
            const Member& member;
        } shared{*runtime, member};
        runtime->parallel(
            [](void* data) {
                const Shared& mine = *static_cast<const Shared*>(data);
                mine.member(mine.runtime.thread_num(), mine.runtime.num_threads());
            },
            &shared, static_cast<unsigned>(threads), 0);
        return;
    }
#pragma omp parallel num_threads(threads)
    member(omp_get_thread_num(), omp_get_num_threads());
#else
    (void)threads;
    member(0, 1);
#endif
}

// Runs body(team) on each of at most `threads` members, over arrays of so many bytes. body must not
// throw.
template <class Body>
void parallel(int threads, Index bytes, const Body& body) {
    if (threads <= 1) {
        const FloatMode mode;
        if (!is_tried(bytes)) return body(Team{});
        RegionInUse region(1, bytes);
        region.begin_part();
        body(Team{});
        region.end_part();
        return region.end();
    }
    RegionInUse region(threads, bytes);
    Meeting meeting(region);
    run_region(threads, [&](int rank, int size) {
        const FloatMode mode;
        meeting.start(rank);
        body(Team{rank, size, &meeting});
        if (size > 1) meeting.finish(rank, size);
    });
}

// Tasks 0..n-1. Each member has its own run of neighbouring tasks, in order; a member whose run is
// done steals from the others. Tasks that share lines, or prefetch for each other in hardware, thus
// stay on one core: where two cores are far apart, tasks dealt out by turns cost up to 60 % (56x56
// planes, Zen 4).
class TaskShares {
public:
    TaskShares(Index n, int members)
        : n_(n),
          members_(members),
          many_(members > 1 ? new Share[static_cast<std::size_t>(members)] : nullptr) {
        for (int m = 0; m < members; ++m) share(m).next.store(begin(m), std::memory_order_relaxed);
    }

    bool take(int rank, Index& task) {
        for (int k = 0; k < members_; ++k) {
            const int m = (rank + k) % members_;
            if (share(m).next.load(std::memory_order_relaxed) >= begin(m + 1)) continue;
            task = share(m).next.fetch_add(1, std::memory_order_relaxed);
            if (task < begin(m + 1)) return true;
        }
        return false;
    }

private:
    struct alignas(64) Share {  // a line of its own
        std::atomic<Index> next{0};
    };

    [[nodiscard]] Index begin(int m) const { return n_ * m / members_; }
    Share& share(int m) { return many_ ? many_[static_cast<std::size_t>(m)] : only_; }

    Index n_;
    int members_;
    Share only_;  // small calls have one member: to allocate its share takes as long as their sums
    std::unique_ptr<Share[]> many_;
};

}  // namespace bnext::cpu
