#include "cpu/parallel.hpp"

#include <algorithm>
#include <mutex>

#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
#include <pthread.h>
#define BNEXT_WATCH_FORKS 1
#endif

#define BNEXT_TEXT_(x) #x
#define BNEXT_TEXT(x) BNEXT_TEXT_(x)

namespace bnext::cpu {
namespace {

std::atomic<int> requested{0};
std::atomic<bool> forked_after_use{false};
std::once_flag watching;

}  // namespace

void note_parallel_region() {
    std::call_once(watching, [] {
#ifdef BNEXT_WATCH_FORKS
        pthread_atfork(nullptr, nullptr, [] { forked_after_use.store(true); });
#endif
    });
}

bool is_forked_child() { return forked_after_use.load(std::memory_order_relaxed); }

int num_threads() {
#ifdef _OPENMP
    if (is_forked_child()) return 1;
    const int n = requested.load(std::memory_order_relaxed);
    return n > 0 ? n : std::max(omp_get_max_threads(), 1);
#else
    return 1;
#endif
}

void set_num_threads(int n) { requested.store(n, std::memory_order_relaxed); }

const char* openmp_version() {
#ifdef _OPENMP
    return BNEXT_TEXT(_OPENMP);
#else
    return nullptr;
#endif
}

}  // namespace bnext::cpu
