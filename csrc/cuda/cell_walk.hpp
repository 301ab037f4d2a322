// The arrays of a call as plans see them: batch normalization's as a Problem; the arrays of
// norms of cells as a Problem whose channels are the cells of all examples, since to the kernels a
// cell is a channel.
#pragma once

#include "core/cell_problem.hpp"
#include "cuda/partition.hpp"
#include "cuda/table.hpp"

namespace bnext::cuda {

struct Described {
    Description description;
    CellWalk cells;
};

// Of a call with groups, `collect_stats` sums whole slabs where these are one piece of memory each.
Described described(const KernelCall& call);

// The examples, cells and slabs of a call with groups.
CellDescription cells_of(const KernelCall& call);

}  // namespace bnext::cuda
