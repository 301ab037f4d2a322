// RowPlan: how a pass over rows is launched, a function of the pass and the limits of the device.
#pragma once

#include "cuda/plan.hpp"
#include "cuda/row_table.hpp"

namespace bnext::cuda {

struct RowPlan {
    int unit = 1;  // values
    bool activated = false;
    Launch rows;         // over rows
    Launch merge;        // of a backward pass's sums; grid 0: not wanted
    RowArguments row{};  // without addresses
    // Places in the workspace, in bytes.
    Index sums_at = 0;  // of blocks without room for them; 0: none
    Index workspace_bytes = 0;
};

// A pass over at least one row of at least one value.
RowPlan make_row_plan(const RowCall& call, const Limits& limits);

}  // namespace bnext::cuda
