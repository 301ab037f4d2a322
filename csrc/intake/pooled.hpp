// NumPy arrays whose memory is bnext's: from the pool (cpu/pool.hpp), and below kWorthPooling from
// the blocks for small results (cpu/small_blocks.hpp).
//
// An array that owns its data has a "handler", by which NumPy resizes and frees them (NEP 49). So
// the arrays are ordinary in every respect: they can be resized, and are counted by tracemalloc.
// The block returns when the last view is gone, in any thread.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace bnext::intake {

// Memory for a new array; gives it back unless an array took it over.
class ArrayMemory {
public:
    explicit ArrayMemory(std::size_t bytes);
    ~ArrayMemory();
    ArrayMemory(const ArrayMemory&) = delete;
    ArrayMemory& operator=(const ArrayMemory&) = delete;

    // Null for sizes whose blocks NumPy keeps by itself, and where there is no memory.
    [[nodiscard]] void* data() const { return data_; }
    // To an array over all of it, which owns it then.
    void give_to(pybind11::handle array);

private:
    std::size_t bytes_;
    void* data_ = nullptr;
};

// Makes the handlers; at import, so that no later call can fail.
void prepare_pool();

}  // namespace bnext::intake
