// A cache of plans. Training steps repeat the same calls, and planning takes longer than all other
// work before a launch.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cuda/plan.hpp"

namespace bnext::cuda {

// The limits of a device, asked for once.
Limits kept_limits(int device);

// The plan for the limits of the device, with the forced path if the operation has it. Throws as
// make_launch_plan does.
std::shared_ptr<const LaunchPlan> planned(const KernelCall& call);

// The plan for a caller whose workspace has so many bytes: a launch takes no more, even if the
// device refuses its blocks. Where planned()'s does not fit, two kernels. Throws as it does, and if
// these do not fit either.
std::shared_ptr<const LaunchPlan> planned_within(const KernelCall& call, Index room);

// The number of plans that are kept, and that were made.
struct PlanFigures {
    std::size_t kept = 0;
    std::size_t made = 0;
};
PlanFigures plan_figures();
constexpr std::size_t kMostPlans = 1024;

// Forgets all plans, and the limits of devices.
void forget_plans();

// Forces a path, by its name, on operations that have it; returns the path forced before.
std::optional<std::string> force_path(std::optional<std::string> name);
std::optional<Path> forced_path(Operation operation);

}  // namespace bnext::cuda
