// One pass over rows, from addresses to what is enqueued on a stream.
#pragma once

#include "cuda/row_plan.hpp"
#include "cuda/runtime.hpp"

namespace bnext::cuda {

// `workspace` has the plan's bytes. Throws runtime::Error with the launch's name.
void launch_rows(const RowPlan& plan, const RowCall& call, void* workspace);

}  // namespace bnext::cuda
