// Which kernel each launch of an operation runs.
#pragma once

#include <optional>

#include "cuda/instances.hpp"
#include "cuda/plan.hpp"

namespace bnext::cuda {

enum class Role { fused, first, second };  // both phases, or the first or the second launch

const char* name_of(Phase phase);
Role first_role(const LaunchPlan& plan);  // of plan.first
// Of the plain kernels; none: both.
std::optional<Phase> phase_of(Operation operation, Role role);
// Whether a launch runs a kernel with an activation.
bool is_activated(const LaunchPlan& plan, Role role);
Kernel kernel_of(const LaunchPlan& plan, int unit, Role role);

}  // namespace bnext::cuda
