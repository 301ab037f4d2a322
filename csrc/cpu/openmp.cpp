#include "cpu/openmp.hpp"

#include <atomic>
#include <cstring>
#include <mutex>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
#include <dlfcn.h>
#include <pthread.h>
#define BNEXT_POSIX 1
#endif
#if defined(BNEXT_POSIX) && defined(__linux__) && defined(__GLIBC__)
#include <link.h>

#include <fstream>
#include <limits>
#define BNEXT_GLIBC 1
#endif

#define BNEXT_TEXT_(x) #x
#define BNEXT_TEXT(x) BNEXT_TEXT_(x)

namespace bnext::cpu {
namespace {

std::atomic<const Runtime*> shared{nullptr};
std::atomic<bool> used{false};    // bnext has run a region
std::atomic<bool> forked{false};  // this process may lack threads of its parent

#ifdef BNEXT_POSIX
template <class Function>
bool look_up(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
}

bool look_up(void* library, Runtime& runtime) {
    return look_up(library, "GOMP_parallel", runtime.parallel) &&
           look_up(library, "omp_get_thread_num", runtime.thread_num) &&
           look_up(library, "omp_get_num_threads", runtime.num_threads) &&
           look_up(library, "omp_get_max_threads", runtime.max_threads);
}

#endif

#ifdef _OPENMP
auto max_threads_in_use() {
    const Runtime* runtime = shared_runtime();
    return runtime != nullptr ? runtime->max_threads : &omp_get_max_threads;
}
#endif

#ifdef BNEXT_POSIX
const void* address_in_runtime() { return reinterpret_cast<const void*>(max_threads_in_use()); }
#endif

#ifdef BNEXT_GLIBC
// Calls f(name) for the names with a tag in the dynamic section of a loaded library: DT_SONAME, its
// own; DT_NEEDED, of the libraries that it needs.
template <class F>
void for_each_name(const dl_phdr_info& library, ElfW(Sxword) tag, const F& f) {
    const ElfW(Dyn)* entries = nullptr;
    for (int i = 0; i < library.dlpi_phnum; ++i) {
        const auto& header = library.dlpi_phdr[i];
        if (header.p_type != PT_DYNAMIC) continue;
        entries = reinterpret_cast<const ElfW(Dyn)*>(library.dlpi_addr + header.p_vaddr);
    }
    const char* names = nullptr;
    for (auto entry = entries; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
        // An address, made by the loader; an offset in the kernel's own library (vdso).
        const ElfW(Addr) place = entry->d_un.d_ptr;
        if (entry->d_tag == DT_STRTAB && place >= library.dlpi_addr) {
            names = reinterpret_cast<const char*>(place);
        }
    }
    for (auto entry = entries; names != nullptr && entry->d_tag != DT_NULL; ++entry) {
        if (entry->d_tag == tag) f(names + entry->d_un.d_val);
    }
}

bool contains(const dl_phdr_info& library, const void* address) {
    const auto place = reinterpret_cast<ElfW(Addr)>(address);
    for (int i = 0; i < library.dlpi_phnum; ++i) {
        const auto& header = library.dlpi_phdr[i];
        const ElfW(Addr) begin = library.dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD && place >= begin && place < begin + header.p_memsz) {
            return true;
        }
    }
    return false;
}

template <class F>
void for_each_library(F&& f) {
    dl_iterate_phdr(
        [](dl_phdr_info* library, std::size_t, void* data) {
            (*static_cast<std::remove_reference_t<F>*>(data))(*library);
            return 0;
        },
        &f);
}

// Whether any library but this one needs the runtime in use.
bool others_use_runtime() {
    const char* runtime = nullptr;
    for_each_library([&](const dl_phdr_info& library) {
        if (!contains(library, address_in_runtime())) return;
        for_each_name(library, DT_SONAME, [&](const char* name) { runtime = name; });
    });
    if (runtime == nullptr) return true;  // to be on the safe side
    bool found = false;
    for_each_library([&](const dl_phdr_info& library) {
        if (contains(library, reinterpret_cast<const void*>(&others_use_runtime))) return;
        for_each_name(library, DT_NEEDED,
                      [&](const char* name) { found = found || std::strcmp(name, runtime) == 0; });
    });
    return found;
}

// Whether this process was forked and runs the program of its parent: PF_FORKNOEXEC.
bool forked_without_exec() {
    std::ifstream stat("/proc/self/stat");
    stat.ignore(std::numeric_limits<std::streamsize>::max(), ')');  // the program's name
    std::string field;
    for (int i = 3; i < 9; ++i) stat >> field;
    unsigned long flags = 0;
    return static_cast<bool>(stat >> flags) && (flags & 0x40u) != 0;
}
#elif defined(BNEXT_POSIX)
bool others_use_runtime() { return true; }
bool forked_without_exec() { return false; }
#endif

#ifdef BNEXT_POSIX
std::atomic<bool> lacks_threads{false};  // whether the child of the current fork will

// Since loading: forks before bnext's first region matter too.
const bool watching = [] {
    if (forked_without_exec() && others_use_runtime()) forked.store(true);
    pthread_atfork([] { lacks_threads.store(used.load() || others_use_runtime()); }, nullptr,
                   [] {
                       if (lacks_threads.load()) forked.store(true);
                   });
    return true;
}();
#endif

}  // namespace

void note_parallel_region() {
    if (!used.load(std::memory_order_relaxed)) used.store(true);
}

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

const Runtime* shared_runtime() { return shared.load(std::memory_order_acquire); }

int openmp_max_threads() {
#ifdef _OPENMP
    return max_threads_in_use()();
#else
    return 1;
#endif
}

bool share_openmp(const char* library) {
#ifdef BNEXT_POSIX
    // Opens a library that is already loaded; symbols are looked up in all its dependencies too. It
    // stays open, so that the functions stay loaded.
    void* const opened = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (opened == nullptr) return false;
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    Runtime found;
    if (!look_up(opened, found)) return false;
    if (found.max_threads != max_threads_in_use()) {
        // Never freed: other threads may be in a region.
        shared.store(new Runtime(found), std::memory_order_release);
    }
    return true;
#else
    (void)library;
    return false;
#endif
}

const char* openmp_file() {
#ifdef BNEXT_POSIX
    Dl_info about;
    if (dladdr(address_in_runtime(), &about) != 0) return about.dli_fname;
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
