// A pool of memory blocks for results. The first touch of fresh memory costs more than any kernel:
// each page is a fault, and the system clears it. So blocks are kept when their array dies, up to a
// limit, and large ones ask for huge pages, which are 512 times fewer faults.
//
// Blocks are of 8 sizes for each power of two, and each size has lists of its own: taking one costs
// the same however many are kept. Blocks below a huge page are cut from mappings that they share,
// since a process may have some 65,000 mappings only. What is not kept gives its memory back to the
// system; the addresses follow with the last block of a mapping, if the system takes them.
//
// Every function may be called from several threads at once, in a child of a fork, and until the
// very end of the process. None of them throws.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/pages.hpp"

namespace bnext::cpu {

// The pool is worth it from this size on, in bytes. A block of the pool costs a quarter of a
// microsecond, a twentieth of such a call; what it saves is five times the call's own time from 128
// KiB on, where malloc maps memory anew for each array that does not follow the death of another.
constexpr std::size_t kWorthPooling = std::size_t{64} << 10;

struct PoolFigures {
    std::size_t limit_bytes = 0;   // how much may be kept for later
    std::size_t cached_bytes = 0;  // how much is; memory that the system did not take included
    std::size_t in_use_bytes = 0;  // blocks of arrays that live
    std::uint64_t hits = 0;        // allocations that got a kept block
    std::uint64_t misses = 0;      // allocations that went to the system
};

// A block of at least `bytes`, not cleared, that begins on a page; one of kHugePage or more on a
// huge page. Null where there is no memory, also after everything kept was given back.
void* pool_allocate(std::size_t bytes);

// Takes back what pool_allocate gave: keeps it, if the limit allows, at the cost of those that have
// been kept the longest. Null is nothing.
void pool_release(void* block);

// The same block if `bytes` suit it, else another one with its contents. Null, and the old block
// stays as it is, where there is no memory.
void* pool_resize(void* block, std::size_t bytes);

void pool_empty_cache();
void pool_set_limit(std::size_t bytes);  // 0: keep nothing
PoolFigures pool_figures();

// 1 GiB, or an eighth of the memory that the process may have (machine, control groups) if that is
// less.
std::size_t pool_default_limit();

}  // namespace bnext::cpu
