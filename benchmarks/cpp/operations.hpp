// Registers a benchmark for each operation, shape, layout, dtype and number of threads.
#pragma once

#include <vector>

namespace bnext::benchmarks {

void register_operations(const std::vector<int>& threads);

}  // namespace bnext::benchmarks
