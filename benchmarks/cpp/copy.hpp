// Copies by several threads: what the machine's memory can do, and every share is a share of.
#pragma once

#include "core/dtype.hpp"

namespace bnext::benchmarks {

// With memcpy, which decides by the size of its piece whether to go around the caches.
void copy_with_memcpy(void* to, const void* from, Index bytes, int threads);

// With stores that go around the caches and read nothing first, where the processor has them.
void copy_streaming(void* to, const void* from, Index bytes, int threads);

// Bytes per second, read and written, of the fastest of several copies in either way.
double copy_bandwidth(void* to, const void* from, Index bytes, int threads);

}  // namespace bnext::benchmarks
