// RowPlan: how a pass over rows is launched, a function of the pass and the limits of the device.
#pragma once

#include "cuda/plan.hpp"
#include "cuda/row_table.hpp"

namespace bnext::cuda {

struct RowPlan {
    int unit = 1;  // values
    bool activated = false;
    Launch rows;         // over rows
    Launch columns;      // that sums a backward pass's columns; grid 0: `rows` does, if wanted
    Launch merge;        // of these sums; grid 0: not wanted
    RowArguments row{};  // without addresses
    Index workspace_bytes = 0;
};

// A pass over at least one row of at least one value.
RowPlan make_row_plan(const RowCall& call, const Limits& limits);

}  // namespace bnext::cuda
