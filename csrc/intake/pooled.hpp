// NumPy arrays whose memory is bnext's: from the pool (cpu/pool.hpp), and below kWorthPooling from
// the blocks for small results (cpu/small_blocks.hpp).
//
// An array that owns its data has a "handler", by which NumPy resizes and frees them (NEP 49). So
// the arrays are ordinary in every respect: they can be resized, and are counted by tracemalloc.
// The block returns when the last view is gone, in any thread.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>

namespace bnext::intake {

// Memory for a new array, which gives it back unless the array takes it over. Null for sizes whose
// blocks NumPy keeps by itself, and where there is no memory.
using ArrayMemory = std::unique_ptr<void, void (*)(void*)>;
ArrayMemory memory_for(std::size_t bytes);
// To an array over all of it, which owns it then.
void give(ArrayMemory memory, std::size_t bytes, pybind11::handle array);

// Makes the handlers; at import, so that no later call can fail.
void prepare_pool();

}  // namespace bnext::intake
