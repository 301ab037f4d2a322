// A double backward pass, from addresses to what is enqueued on a stream.
#pragma once

#include "cuda/runtime.hpp"
#include "cuda/twice_table.hpp"

namespace bnext::cuda {

// The launches of a call, those with grid 0 left out, and the places in its workspace, in bytes.
struct TwicePlan {
    int unit = 1;  // values
    Problem problem;
    std::array<Strides, kMaxOperands> strides{};
    Launch pilots, reduce, finish, apply;
    Index partials_at = 0, rows_at = 0, workspace_bytes = 0;  // pilots come first
};

// Throws Error of the kind layout where the arrays have to be copied first.
TwicePlan make_twice_plan(const TwiceCall& call, const Limits& limits);

// `workspace` has the plan's bytes. Throws runtime::Error with the launch's name.
void launch_twice(const TwicePlan& plan, const TwiceCall& call, void* workspace);

}  // namespace bnext::cuda
