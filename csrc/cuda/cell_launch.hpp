// Norms of cells on a GPU: the launches of a call with groups.
#pragma once

#include "cuda/table.hpp"

namespace bnext::cuda {

// Enqueues a forward or a backward pass. Takes a workspace from the caller, and gives up where
// there is none, which the caller knows. Throws as plans and launches do.
void run_cells(const KernelCall& call);

}  // namespace bnext::cuda
