#include "cuda/kernel_choice.hpp"

namespace bnext::cuda {

const char* name_of(Phase phase) {
    constexpr std::array kNames{"collect_stats", "apply_norm", "backward_reduce", "backward_apply"};
    return kNames[static_cast<std::size_t>(phase)];
}

Role first_role(const LaunchPlan& plan) {
    const bool parted = plan.path == Path::two_kernels || plan.path == Path::one_phase;
    return parted ? Role::first : Role::fused;
}

std::optional<Phase> phase_of(Operation operation, Role role) {
    if (role == Role::fused) return {};
    switch (operation) {
        case Operation::forward:
            return role == Role::first ? Phase::collect_stats : Phase::apply_norm;
        case Operation::backward:
            return role == Role::first ? Phase::backward_reduce : Phase::backward_apply;
        // The statistics are constants: dx = dy * weight * rstd, which is apply_norm of dy.
        case Operation::backward_fixed:
            return role == Role::first ? Phase::backward_reduce : Phase::apply_norm;
        case Operation::normalize: return Phase::apply_norm;
        case Operation::collect_stats: return Phase::collect_stats;
        case Operation::backward_reduce: return Phase::backward_reduce;
        case Operation::backward_apply: return Phase::backward_apply;
    }
    return {};
}

bool is_activated(const LaunchPlan& plan, Role role) {
    const bool sums_alone = role == Role::first && plan.path == Path::two_kernels;
    return plan.besides.at(plan.operation, sums_alone);
}

Kernel kernel_of(const LaunchPlan& plan, int unit, Role role) {
    const Operation operation = plan.operation;
    const Problem& problem = plan.problem;
    const std::optional<Phase> phase = phase_of(operation, role);
    const Pass pass = operation < Operation::backward ? Pass::forward : Pass::backward;
    Kernel kernel = nullptr;
    with_dtype(problem.dtype, [&](auto type) {
        using T = decltype(type);
        if (is_activated(plan, role)) {
            kernel = activated_kernel<T>(pass, problem.layout, unit);
        } else if (phase) {
            kernel = phase_kernel<T>(*phase, problem.layout, unit);
        } else if (operation == Operation::forward) {
            kernel = fused_forward<T>(problem.layout, unit);
        } else {
            kernel = fused_backward<T>(problem.layout, unit);
        }
    });
    return kernel;
}

}  // namespace bnext::cuda
