// A pool of memory blocks for results. The first touch of fresh memory costs more than any kernel:
// each page is a fault, and the system clears it. Blocks are therefore kept when their array dies,
// up to a limit, and large ones ask for huge pages, which make 512 times fewer faults.
//
// Blocks have 8 sizes for each power of two, and each size has its own lists: taking a block costs
// the same however many are kept. Blocks below a huge page share mappings, since a process may have
// only some 65,000. Blocks beyond the limit give their memory back to the system; their addresses
// follow with the last block of a mapping, unless the system refuses.
//
// Every function may be called from several threads at once, in a child of a fork, and until the
// end of the process. None throws.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/pages.hpp"

namespace bnext::cpu {

// The pool pays from this size on, in bytes. A block costs a quarter of a microsecond, a twentieth
// of such a call. From 128 KiB on it saves five times the call's own time, since malloc maps fresh
// memory for each array that does not follow the death of another.
constexpr std::size_t kWorthPooling = std::size_t{64} << 10;

struct PoolFigures {
    std::size_t limit_bytes = 0;   // that may be kept
    std::size_t cached_bytes = 0;  // that are kept, with memory that the system refused
    std::size_t in_use_bytes = 0;  // in live arrays
    std::uint64_t hits = 0;        // allocations that got a kept block
    std::uint64_t misses = 0;      // allocations that went to the system
};

// A block of at least `bytes`, not cleared, that begins on a page; from kHugePage on, on a huge
// page. Null where there is no memory, even after all kept blocks were given back.
void* pool_allocate(std::size_t bytes);

// Takes back a block of pool_allocate, and keeps it if the limit allows, in place of the blocks
// that have been kept the longest. Does nothing for null.
void pool_release(void* block);

// The same block if its size suits `bytes`, else another block with its contents. Null, and the old
// block is unchanged, where there is no memory.
void* pool_resize(void* block, std::size_t bytes);

void pool_empty_cache();
void pool_set_limit(std::size_t bytes);  // 0: keep nothing
PoolFigures pool_figures();

// The lesser of 1 GiB and an eighth of the memory that the machine and the control groups grant.
std::size_t pool_default_limit();

}  // namespace bnext::cpu
