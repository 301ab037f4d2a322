// The copies of cpp/copy.cpp for Python: a shared library that ctypes opens.
#include "../cpp/copy.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void copy_with_memcpy(void* to, const void* from, bnext::Index bytes, int threads) {
    bnext::benchmarks::copy_with_memcpy(to, from, bytes, threads);
}

EXPORT void copy_streaming(void* to, const void* from, bnext::Index bytes, int threads) {
    bnext::benchmarks::copy_streaming(to, from, bytes, threads);
}
