// The OpenMP runtime that regions run on. Without OpenMP every team has one member. Only this file,
// openmp.cpp and parallel.hpp know of OpenMP.
#pragma once

namespace bnext::cpu {

// The entry points of an OpenMP runtime that GCC's code calls; the runtimes of LLVM and Intel have
// them too.
struct Runtime {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;
};

// Lets regions run on the runtime of a loaded library, given by its path, and takes the default
// number of threads from there. False if the library has no runtime, or is not loaded.
//
// The threads of a runtime poll for more work for milliseconds after a region. If two runtimes are
// used by turns, each finds its cores taken by the other: a training step of ResNet-18 took 2.8
// times as long on two cores, and ReLU and a normalization by turns four times. On the other
// library's runtime there is one set of threads. Usually there is one anyway: two libraries that
// ask for "libgomp.so.1" share it.
bool share_openmp(const char* library);
const Runtime* shared_runtime();  // null: the runtime that bnext is linked with
const char* openmp_file();        // of the runtime in use, or null
const char* openmp_version();     // "201511", or null

// OpenMP's own default: OMP_NUM_THREADS, threadpoolctl, the processors at the start; 1 without
// OpenMP.
int openmp_max_threads();

// Whether this process was forked, and may lack OpenMP threads of its parent: they do not survive a
// fork, and the runtime waits for them for ever. True after a fork if bnext had run regions, or if
// another library uses the same runtime, since bnext does not see its regions.
bool is_forked_child();
void note_parallel_region();

}  // namespace bnext::cpu
