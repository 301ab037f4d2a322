// Copies by several threads: the speed of the machine's memory, the unit of every share.
#pragma once

#include "core/dtype.hpp"

#define BNEXT_FOR_CTYPES extern "C" __attribute__((visibility("default")))

namespace bnext::benchmarks {

// With memcpy, which bypasses the caches depending on the size of a piece.
BNEXT_FOR_CTYPES void copy_with_memcpy(void* to, const void* from, Index bytes, int threads);

// With stores that bypass the caches and read nothing first, where the processor has them.
BNEXT_FOR_CTYPES void copy_streaming(void* to, const void* from, Index bytes, int threads);

// Bytes per second, read and written, of the fastest of several copies of both kinds.
double copy_bandwidth(void* to, const void* from, Index bytes, int threads);

}  // namespace bnext::benchmarks
