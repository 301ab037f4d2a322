// Teams of threads: regions, their barrier, and tasks that are shared out.
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

// Where the members of one region wait for each other: by looking for some microseconds, then
// asleep. OpenMP's own barriers look for milliseconds, which keeps the core from the very thread
// that is waited for where cores are few.
class Meeting {
public:
    explicit Meeting(RegionInUse& region) : region_(region) {}

    void start(int rank) {
        if (rank == 0) region_.begin_part();
    }

    // All that the members wrote before is seen by all after.
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

    // The end of a member's part. The first one waits here, where it can be measured, and finds the
    // others at the end of OpenMP's region when it comes there.
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

    // This member's share of [0, n): contiguous, so that a second pass finds what its first read.
    [[nodiscard]] Index share_begin(Index n) const { return n * rank / size; }
    [[nodiscard]] Index share_end(Index n) const { return n * (rank + 1) / size; }
};

// One region of OpenMP: member(rank, size) on each of at most `threads` threads.
template <class Member>
void run_region(int threads, const Member& member) {
#ifdef _OPENMP
    note_parallel_region();
    if (const Runtime* runtime = shared_runtime()) {  // what compilers make of the lines below
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

// Tasks 0..n-1, to each member its own run of neighbours, in order; who is through helps the
// others. Tasks that share lines, or that hardware prefetches for each other, so stay with one
// core: where two cores are far apart, taking every other task by turns cost up to 60 % (56x56
// planes, Zen 4).
class TaskShares {
public:
    TaskShares(Index n, int members)
        : n_(n), members_(members), next_(new Share[static_cast<std::size_t>(members)]) {
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
    Share& share(int m) { return next_[static_cast<std::size_t>(m)]; }

    Index n_;
    int members_;
    std::unique_ptr<Share[]> next_;
};

}  // namespace bnext::cpu
