#include "cuda/launch.hpp"

#include "core/errors.hpp"
#include "cuda/instances.hpp"

namespace bnext::cuda {
namespace {

Operand operand(const LaunchPlan& plan, std::size_t number, void* data) {
    const Strides& s = plan.strides[number];
    const bool planar = plan.problem.layout == Layout::planar;
    return {data, s.outer, s.channel, planar ? plan.first.cut.unit : s.inner};
}

Arguments arguments_of(const LaunchPlan& plan, const Addresses& at, const Scalars& scalars) {
    Arguments a{};
    a.weight = at.weight;
    a.bias = at.bias;
    a.mean = at.mean;
    a.var = at.var;
    a.running_mean = at.running_mean;
    a.running_var = at.running_var;
    a.batches = at.batches;
    a.statistics = at.statistics;
    a.sums = at.sums;
    a.dweight = at.dweight;
    a.dbias = at.dbias;
    a.eps = scalars.eps;
    a.momentum = scalars.momentum;
    a.correction = scalars.correction;
    a.count = scalars.count > 0 ? scalars.count : static_cast<double>(plan.problem.count());
    a.source = Statistics::saved;
    auto* const workspace = static_cast<unsigned char*>(at.workspace);
    if (plan.counters_bytes > 0) {
        a.counters = reinterpret_cast<unsigned*>(workspace);
        a.partials = reinterpret_cast<double*>(workspace + plan.partials_at);
        a.totals = reinterpret_cast<double*>(workspace + plan.totals_at);
    }
    return a;
}

template <class T>
Kernel first_kernel(const LaunchPlan& plan) {
    const Layout layout = plan.problem.layout;
    const bool fused = plan.path != Path::two_kernels;
    switch (plan.operation) {
        case Operation::forward:
            return fused ? fused_forward<T>(layout, plan.first.cut.unit)
                         : phase_kernel<T>(Phase::collect_stats, layout, plan.first.cut.unit);
        case Operation::backward:
            return fused ? fused_backward<T>(layout, plan.first.cut.unit)
                         : phase_kernel<T>(Phase::backward_reduce, layout, plan.first.cut.unit);
        case Operation::collect_stats:
            return phase_kernel<T>(Phase::collect_stats, layout, plan.first.cut.unit);
        case Operation::normalize:
            return phase_kernel<T>(Phase::apply_norm, layout, plan.first.cut.unit);
        case Operation::backward_fixed:
        case Operation::backward_reduce:
            return phase_kernel<T>(Phase::backward_reduce, layout, plan.first.cut.unit);
        case Operation::backward_apply:
            return phase_kernel<T>(Phase::backward_apply, layout, plan.first.cut.unit);
    }
    return nullptr;
}

void require(const void* address, const char* name) {
    BNEXT_CHECK(address != nullptr, name, ": expected an address, got none");
}

void check_addresses(const LaunchPlan& plan, const Addresses& at) {
    require(at.x, "x");
    const bool backward = plan.operation >= Operation::backward;
    if (backward) require(at.dy, "dy");
    const bool writes_dx = backward && plan.operation != Operation::backward_reduce;
    if (writes_dx) require(at.dx, "dx");
    if (plan.operation == Operation::forward || plan.operation == Operation::normalize) {
        require(at.y, "y");
    }
    if (plan.operation == Operation::normalize) {
        require(at.mean, "mean");
        require(at.var, "var");
    } else {
        require(at.statistics, "statistics");
    }
    if (plan.operation == Operation::backward || plan.operation == Operation::backward_fixed) {
        require(at.dweight, "dweight");
        require(at.dbias, "dbias");
    }
    if (plan.operation == Operation::backward_reduce ||
        plan.operation == Operation::backward_apply) {
        require(at.sums, "sums");
    }
    BNEXT_CHECK((at.running_mean == nullptr) == (at.running_var == nullptr),
                "running_var: expected it with running_mean, and neither without the other");
    if (plan.workspace_bytes > 0) require(at.workspace, "workspace");
}

template <class T>
void launch_typed(const LaunchPlan& plan, const Addresses& at, const Scalars& scalars,
                  runtime::Stream stream) {
    Arguments a = arguments_of(plan, at, scalars);
    const bool forward = plan.operation < Operation::backward;
    a.x = operand(plan, 0, at.x);
    if (forward) {
        if (at.y != nullptr) a.out = operand(plan, 1, at.y);
    } else {
        a.dy = operand(plan, 1, at.dy);
        if (at.dx != nullptr) a.out = operand(plan, 2, at.dx);
    }
    if (plan.operation == Operation::normalize) {
        a.source = scalars.wide_statistics ? Statistics::wide : Statistics::given;
    }
    const bool sums_between = plan.path == Path::two_kernels && !forward;
    if (sums_between) {
        a.sums =
            reinterpret_cast<double*>(static_cast<unsigned char*>(at.workspace) + plan.sums_at);
    }
    if (plan.counters_bytes > 0) runtime::zero(a.counters, plan.counters_bytes, stream);
    a.cut = plan.first.cut;
    a.kept = plan.first.kept;
    a.slots = plan.first.slots;
    a.shares = plan.first.shares;
    a.exchange = plan.first.exchange;
    runtime::run(first_kernel<T>(plan), plan.first, a, stream);
    if (plan.second.grid == 0) return;

    a.cut = plan.second.cut;
    a.kept = 0;
    a.slots = plan.second.slots;
    a.exchange = Exchange::none;
    Phase phase = forward ? Phase::apply_norm : Phase::backward_apply;
    if (plan.operation == Operation::backward_fixed) {
        // The statistics are constants: dx = dy * weight * rstd, which is apply_norm of dy.
        phase = Phase::apply_norm;
        a.x = a.dy;
        a.bias = nullptr;
        a.source = Statistics::absent;
    }
    runtime::run(phase_kernel<T>(phase, plan.problem.layout, plan.first.cut.unit), plan.second, a,
                 stream);
}

}  // namespace

void launch(const LaunchPlan& plan, const Addresses& addresses, const Scalars& scalars, int device,
            runtime::Stream stream) {
    check_addresses(plan, addresses);
    const runtime::CurrentDevice current(device);
    with_dtype(plan.problem.dtype,
               [&](auto type) { launch_typed<decltype(type)>(plan, addresses, scalars, stream); });
}

}  // namespace bnext::cuda
