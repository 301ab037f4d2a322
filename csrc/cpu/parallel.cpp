#include "cpu/parallel.hpp"

#include <algorithm>
#include <mutex>

#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
#include <dlfcn.h>
#include <pthread.h>
#define BNEXT_POSIX 1
#endif

#define BNEXT_TEXT_(x) #x
#define BNEXT_TEXT(x) BNEXT_TEXT_(x)

namespace bnext::cpu {
namespace {

std::atomic<int> requested{0};
std::atomic<bool> forked_after_use{false};
std::once_flag watching;
std::atomic<const Runtime*> shared{nullptr};

#ifdef BNEXT_POSIX
template <class Function>
bool look_up(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
}

bool look_up(void* library, Runtime& runtime) {
    return look_up(library, "GOMP_parallel", runtime.parallel) &&
           look_up(library, "GOMP_barrier", runtime.barrier) &&
           look_up(library, "omp_get_thread_num", runtime.thread_num) &&
           look_up(library, "omp_get_num_threads", runtime.num_threads) &&
           look_up(library, "omp_get_max_threads", runtime.max_threads);
}
#endif

}  // namespace

void note_parallel_region() {
    std::call_once(watching, [] {
#ifdef BNEXT_POSIX
        pthread_atfork(nullptr, nullptr, [] { forked_after_use.store(true); });
#endif
    });
}

bool is_forked_child() { return forked_after_use.load(std::memory_order_relaxed); }

int num_threads() {
#ifdef _OPENMP
    if (is_forked_child()) return 1;
    const int n = requested.load(std::memory_order_relaxed);
    if (n > 0) return n;
    const Runtime* runtime = shared_runtime();
    return std::max(runtime != nullptr ? runtime->max_threads() : omp_get_max_threads(), 1);
#else
    return 1;
#endif
}

void set_num_threads(int n) { requested.store(n, std::memory_order_relaxed); }

const Runtime* shared_runtime() { return shared.load(std::memory_order_acquire); }

bool share_openmp(const char* library) {
#ifdef BNEXT_POSIX
    // Found by its path among what is loaded; symbols are looked for in whatever it depends on. It
    // stays open, so that the functions stay where they are.
    void* const opened = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (opened == nullptr) return false;
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    Runtime found;
    if (!look_up(opened, found)) return false;
    note_parallel_region();
    const Runtime* before = shared_runtime();
    int (*in_use)() = before != nullptr ? before->max_threads : &omp_get_max_threads;
    // Never freed: other threads may be in a region.
    if (found.max_threads != in_use) shared.store(new Runtime(found), std::memory_order_release);
    return true;
#else
    (void)library;
    return false;
#endif
}

const char* openmp_file() {
#ifdef BNEXT_POSIX
    const Runtime* runtime = shared_runtime();
    int (*function)() = runtime != nullptr ? runtime->max_threads : &omp_get_max_threads;
    Dl_info about;
    if (dladdr(reinterpret_cast<const void*>(function), &about) != 0) return about.dli_fname;
#endif
    return nullptr;
}

const char* openmp_version() {
#ifdef _OPENMP
    return BNEXT_TEXT(_OPENMP);
#else
    return nullptr;
#endif
}

}  // namespace bnext::cpu
