// Memory for results below kWorthPooling, and for what describes them. malloc merges a freed block
// of a few KiB with its neighbours, and cuts it off again for the next call: some 700 instructions
// of the 20,000 of a call on (64, 20). These blocks are kept, up to 1 MiB of them, in one list for
// each KiB of size.
//
// Every function may be called from several threads at once, until the end of the process. None
// throws or waits: a thread that finds the lists in use takes the way of malloc and free.
#pragma once

#include <cstddef>

namespace bnext::cpu {

// A block of at least `bytes`, not cleared, that begins on a cache line. Null where there is no
// memory.
void* small_allocate(std::size_t bytes);

// Takes back a block of small_allocate. Does nothing for null.
void small_release(void* block);

// Another block with the contents of this one, as far as they fit. Null, and the old block is
// unchanged, where there is no memory.
void* small_resize(void* block, std::size_t bytes);

void small_empty_cache();

}  // namespace bnext::cpu
