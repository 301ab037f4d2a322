// NumPy arrays whose memory comes from the pool (cpu/pool.hpp).
//
// NumPy asks a "handler" for the memory of each new array, keeps the handler with the array, and
// gives the memory back through it (NEP 49). The arrays are ordinary in every respect: they own
// their data, can be resized, and are counted by tracemalloc. The block returns to the pool when
// the last view is gone, in any thread.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace bnext::intake {

// While it lives, new arrays of this thread get their memory from the pool, if `bytes` reach
// kWorthPooling: below it NumPy's own allocator is as fast or faster.
class FromPool {
public:
    explicit FromPool(std::size_t bytes);
    ~FromPool();
    FromPool(const FromPool&) = delete;
    FromPool& operator=(const FromPool&) = delete;

private:
    pybind11::object before_;  // the handler to restore; null: unchanged
};

// Looks up NumPy's functions and makes the handler; at import, so that no later call can fail.
void prepare_pool();

}  // namespace bnext::intake
