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

// An OpenMP runtime by the entry points that GCC's code calls; those of LLVM and Intel have them
// too.
struct Runtime {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    void (*barrier)() = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;
};

// Lets regions run on the runtime of a library that the process has loaded, given by its path, and
// takes that one's default number of threads. False if the library has none, or is not loaded.
//
// Threads of a pool go on looking for work for milliseconds after a region, in case there is more.
// The threads of two pools, used in turns, so find their cores taken: a training step of ResNet-18
// took 2.8 times as long on two cores, and ReLU and a normalization by turns four times. With the
// other library's own runtime there is one pool. Usually there is only one anyway: two libraries
// that ask for "libgomp.so.1" get the same.
//
// From then on forks are noted as after a parallel region: that library may have had one.
bool share_openmp(const char* library);
const Runtime* shared_runtime();  // null: the one that bnext is linked with
const char* openmp_file();        // of the runtime in use, or null

struct Team {
    int rank = 0;
    int size = 1;
    const Runtime* runtime = nullptr;  // whose team this is; null: that bnext is linked with

    void barrier() const {
#ifdef _OPENMP
        if (runtime != nullptr) return runtime->barrier();
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

// What compilers make of a region, for a runtime that this code is not linked with.
template <class Body>
void parallel_on(const Runtime& runtime, int threads, const Body& body) {
    struct Shared {
        const Runtime& runtime;
        const Body& body;
    } shared{runtime, body};
    const auto member = [](void* data) {
        const Shared& mine = *static_cast<const Shared*>(data);
        mine.body(Team{mine.runtime.thread_num(), mine.runtime.num_threads(), &mine.runtime});
    };
    runtime.parallel(member, &shared, static_cast<unsigned>(threads), 0);
}

// Runs body(team) on each of at most `threads` members. body must not throw.
template <class Body>
void parallel(int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
        note_parallel_region();
        if (const Runtime* runtime = shared_runtime()) return parallel_on(*runtime, threads, body);
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
