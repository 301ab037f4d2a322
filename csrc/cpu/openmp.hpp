// The OpenMP runtime that regions run on. Without OpenMP there is none, and every team has one
// member. This file, openmp.cpp and parallel.hpp are the only ones that know of OpenMP.
#pragma once

namespace bnext::cpu {

// An OpenMP runtime by the entry points that GCC's code calls; the runtimes of LLVM and Intel have
// them too.
struct Runtime {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;
};

// Lets regions run on the runtime of a library that the process has loaded, given by its path, and
// takes the default number of threads from there. False if the library has none, or is not loaded.
//
// Threads of a pool go on looking for work for milliseconds after a region, in case there is more.
// The threads of two pools, used in turns, so find their cores taken: a training step of ResNet-18
// took 2.8 times as long on two cores, and ReLU and a normalization by turns four times. With the
// other library's own runtime there is one pool. Usually there is only one anyway: two libraries
// that ask for "libgomp.so.1" get the same.
bool share_openmp(const char* library);
const Runtime* shared_runtime();  // null: the runtime that bnext is linked with
const char* openmp_file();        // of the runtime in use, or null
const char* openmp_version();     // "201511", or null

// OpenMP's own default: OMP_NUM_THREADS, threadpoolctl, the processors at the start. 1 without.
int openmp_max_threads();

// Whether this process was forked from one whose OpenMP threads it may lack. They do not survive a
// fork, and the runtime waits for them for ever. Known: regions of bnext before the fork, and
// another library that uses the same runtime, whose regions bnext does not see.
bool is_forked_child();
void note_parallel_region();

}  // namespace bnext::cpu
