// Which kernel each launch of an operation runs.
#pragma once

#include <optional>

#include "cuda/instances.hpp"
#include "cuda/plan.hpp"

namespace bnext::cuda {

enum class Role { fused, first, second };  // both phases, or the first or the second launch

const char* name_of(Phase phase);
Role first_role(const LaunchPlan& plan);                        // of plan.first
std::optional<Phase> phase_of(Operation operation, Role role);  // none: both
Kernel kernel_of(Operation operation, const Problem& problem, int unit, Role role);

}  // namespace bnext::cuda
