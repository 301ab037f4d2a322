// Threads. The only file that includes omp.h; without OpenMP every team has one member.
#pragma once

#include <atomic>
#include <memory>

#include "core/dtype.hpp"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace bnext::cpu {

// How many threads a call may use: what set_num_threads said, else OpenMP's own default (which
// OMP_NUM_THREADS, threadpoolctl and the process's affinity decide). 1 in a child of a fork that
// came after the first parallel region: OpenMP's threads did not survive it, and waiting for them
// would never end.
int num_threads();
void set_num_threads(int n);  // 0: back to the default
bool is_forked_child();
const char* openmp_version();  // "201511", or null

struct Team {
    int rank = 0;
    int size = 1;

    void barrier() const {
#ifdef _OPENMP
        if (size > 1) {
#pragma omp barrier
        }
#endif
    }

    // This member's share of [0, n): contiguous, so that a second pass finds what its first read.
    [[nodiscard]] Index share_begin(Index n) const { return n * rank / size; }
    [[nodiscard]] Index share_end(Index n) const { return n * (rank + 1) / size; }
};

void note_parallel_region();

// Runs body(team) on each of at most `threads` members. body must not throw.
template <class Body>
void parallel(int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
        note_parallel_region();
#pragma omp parallel num_threads(threads)
        body(Team{omp_get_thread_num(), omp_get_num_threads()});
        return;
    }
#endif
    (void)threads;
    body(Team{});
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
