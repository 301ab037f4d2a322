// Plans of calls that were planned before. A training step makes the same calls again and again,
// and planning takes longer than all else that comes before their launches.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cuda/plan.hpp"

namespace bnext::cuda {

// A call whose operands all have one shape and the same strides, as operands_of orders them.
struct UniformCall {
    Operation operation{};
    DType dtype = DType::float32;
    Index channel_axis = 0;
    int device = 0;
    std::span<const Index> shape;
    AxisStrides strides;
    std::span<const std::uint64_t> addresses;
};

// Plans with the device's own limits, and the forced path if the operation has it. Throws as
// make_launch_plan does.
std::shared_ptr<const LaunchPlan> planned(const UniformCall& call);

// How many plans are kept, how many were made.
struct PlanFigures {
    std::size_t kept = 0;
    std::size_t made = 0;
};
PlanFigures plan_figures();
constexpr std::size_t kMostPlans = 1024;

// Plans anew from here on, and asks devices for their limits again.
void forget_plans();

// The path that plans take if their operation has it, by its name; returns the one before.
std::optional<std::string> force_path(std::optional<std::string> name);
std::optional<Path> forced_path(Operation operation);

}  // namespace bnext::cuda
