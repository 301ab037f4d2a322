// Registers a benchmark for each operation, shape, layout, dtype and runtime.
#pragma once

#include <span>

namespace bnext::cpu {
struct KernelTable;
}

namespace bnext::benchmarks {

// The kernels of one instruction set, on a number of threads.
struct Runtime {
    const cpu::KernelTable* table;
    int threads;
    bool with_copies;  // once, since copies are the same for every table
};

void register_operations(std::span<const Runtime> runtimes);

}  // namespace bnext::benchmarks
