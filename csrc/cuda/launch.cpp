#include "cuda/launch.hpp"

#include <array>
#include <memory>

#include "core/error.hpp"
#include "cuda/kernel_choice.hpp"
#include "cuda/plan_cache.hpp"
#include "cuda/residency.hpp"
#include "cuda/tuning.hpp"

namespace bnext::cuda {
namespace {

Arguments arguments_of(const LaunchPlan& plan, const Addresses& at, const Scalars& scalars) {
    Arguments a{};
    a.weight = at.weight;
    a.bias = at.bias;
    a.mean = at.mean;
    a.var = at.var;
    a.running_mean = at.running_mean;
    a.running_var = at.running_var;
    a.num_batches_tracked = at.num_batches_tracked;
    a.statistics = at.statistics;
    a.sums = at.sums;
    a.dweight = at.dweight;
    a.dbias = at.dbias;
    a.eps = scalars.eps;
    a.momentum = scalars.momentum;
    a.correction = scalars.correction;
    a.count = scalars.count > 0 ? scalars.count : static_cast<double>(plan.problem.count());
    a.source = Statistics::saved;
    a.fused = {static_cast<Activation>(scalars.activation), scalars.negative_slope,
               plan.besides.residual};
    a.of_z = at.of_z;
    auto* const workspace = static_cast<unsigned char*>(at.workspace);
    if (plan.counters_bytes > 0) {
        a.counters = reinterpret_cast<unsigned*>(workspace);
        a.partials = reinterpret_cast<Sums*>(workspace + plan.counters_bytes);
        a.totals = reinterpret_cast<Sums*>(workspace + plan.totals_at);
    }
    return a;
}

// Whether the statistics of a normalization are given, and not saved ones.
bool is_given(const LaunchPlan& plan, const Addresses& at) {
    return plan.operation == Operation::normalize &&
           (at.mean != nullptr || at.var != nullptr || at.statistics == nullptr);
}

void check_addresses(const LaunchPlan& plan, const Addresses& at) {
    const auto is = [&](auto... one_of) { return ((plan.operation == one_of) || ...); };
    const bool backward = plan.operation >= Operation::backward;
    const bool given = is_given(plan, at);
    const bool whole = is(Operation::backward, Operation::backward_fixed);
    const bool sums = is(Operation::backward_reduce, Operation::backward_apply);
    const struct {
        const char* name;
        const void* address;
        bool needed;
    } all[] = {
        {"x", at.x, true},
        {"dy", at.dy, backward},
        {"dx", at.dx, backward && !is(Operation::backward_reduce)},
        {"y", at.y, is(Operation::forward, Operation::normalize)},
        {"mean", at.mean, given},
        {"var", at.var, given},
        {"statistics", at.statistics, !given},
        {"dweight", at.dweight, whole && at.sums == nullptr},
        {"dbias", at.dbias, whole && at.sums == nullptr},
        {"sums", at.sums, sums},
        {"workspace", at.workspace, plan.workspace_bytes > 0},
        {"residual", at.residual, plan.besides.residual},
        {"dresidual", at.dresidual,
         plan.besides.residual && backward && writes_data(plan.operation)},
        {"of_z", at.of_z, plan.besides.activated && backward},
    };
    for (const auto& [name, address, needed] : all) {
        BNEXT_CHECK(!needed || address != nullptr, name, ": expected an address, got none");
    }
    BNEXT_CHECK((at.running_mean == nullptr) == (at.running_var == nullptr),
                "running_var: expected it with running_mean, and neither without the other");
}

// One launch of a call.
struct Step {
    const LaunchPlan& plan;
    Role role;
    int device;
    runtime::Stream stream;

    [[nodiscard]] const Launch& launch() const {
        return role == Role::second ? plan.second : plan.first;
    }
    [[nodiscard]] Kernel kernel() const { return kernel_of(plan, plan.first.cut.unit, role); }
};

std::string text_of(const Step& step) {
    const LaunchPlan& plan = step.plan;
    const Launch& launch = step.launch();
    const std::optional<Phase> phase = phase_of(plan.operation, step.role);
    const char* const kernel = is_activated(plan, step.role) ? "activated"
                               : phase                       ? name_of(*phase)
                                                             : "fused";
    return concat(name_of(plan.operation), " (kernel ", kernel, ", ", name_of(plan.problem.dtype),
                  ", ", name_of(plan.problem.layout), ", unit ", plan.first.cut.unit, "; path ",
                  name_of(plan.path), ", grid ", launch.grid, ", block ", launch.cut.threads,
                  ", cluster ", launch.cluster, ", shared bytes ", launch.shared_bytes, "; ",
                  text_of_device(step.device), ")");
}

template <class F>
void tell_errors(const Step& step, F&& f) {
    naming(step.launch(), false, [&] { return text_of(step); }, f);
}

void run(const Step& step, const Arguments& arguments) {
    run_named(step.kernel(), step.launch(), arguments, step.stream, [&] { return text_of(step); });
}

// Raises foreseeable errors, before any work is enqueued.
void prepare(const Step& step) {
    tell_errors(step, [&] { runtime::prepare(step.kernel()); });
}

void enqueue(const LaunchPlan& plan, const Addresses& at, const Scalars& scalars, int device,
             runtime::Stream stream) {
    const Step first{plan, first_role(plan), device, stream};
    const Step second{plan, Role::second, device, stream};
    prepare(first);
    if (plan.second.grid > 0) prepare(second);
    Arguments a = arguments_of(plan, at, scalars);
    const bool forward = plan.operation < Operation::backward;
    const auto take = [&](const Launch& launch) {
        const auto operand = [&](std::size_t number, void* data) {
            return operand_of(plan.problem.layout, launch.cut, plan.strides[number],
                              plan.cells.steps[number], size_of(plan.problem.dtype), data);
        };
        const std::array read{at.x, at.dy};
        const auto inputs = static_cast<std::size_t>(inputs_of(plan.operation));
        for (std::size_t i = 0; i < inputs; ++i) a.in[i] = operand(i, read[i]);
        std::size_t next = inputs;
        if (plan.besides.residual) a.residual = operand(next++, at.residual);
        if (writes_data(plan.operation)) a.out[0] = operand(next++, forward ? at.y : at.dx);
        if (at.dresidual != nullptr) a.dresidual = operand(next, at.dresidual);
        a.cut = launch.cut;
        a.kept = launch.kept;
        a.slots = launch.slots;
        a.shares = launch.shares;
        a.exchange = launch.exchange;
    };
    if (is_given(plan, at)) {
        a.source = scalars.wide_statistics ? Statistics::wide : Statistics::given;
    }
    if (plan.path == Path::two_kernels && !forward) {
        auto* const sums =
            reinterpret_cast<double*>(static_cast<unsigned char*>(at.workspace) + plan.sums_at);
        if (a.sums == nullptr) a.sums = sums;
        a.n = sums + 2 * plan.problem.channels;
    }
    if (plan.counters_bytes > 0) {
        tell_errors(first, [&] { runtime::zero(a.counters, plan.counters_bytes, stream); });
    }
    take(plan.first);
    const bool one_phase = plan.path == Path::one_phase;
    a.sums_up = !one_phase || !writes_data(plan.operation);
    a.writes = writes_data(plan.operation) && plan.second.grid == 0;
    run(first, a);
    if (plan.second.grid == 0) return;

    take(plan.second);
    a.sums_up = false;
    a.writes = true;
    if (plan.operation == Operation::backward_fixed) {
        a.source = Statistics::absent;
        if (!plan.besides.activated) {  // the second launch is apply_norm of dy
            a.in[0] = a.in[1];
            a.bias = nullptr;
        }
    }
    run(second, a);
}

// True once the plan is enqueued; false where the device refuses a grid or a cluster that must be
// resident. Then no kernel is enqueued, nor captured in a graph, but the clearing of counters is.
bool enqueue_resident(const LaunchPlan& plan, const Addresses& at, const Scalars& scalars,
                      int device, runtime::Stream stream) {
    const Kernel kernel = kernel_of(plan, plan.first.cut.unit, Role::fused);
    if (resident(kernel, plan.first, device) == 0) return false;
    try {
        enqueue(plan, at, scalars, device, stream);
    } catch (const runtime::Error& error) {
        if (error.fault != runtime::Fault::refused) throw;
        remember_refusal(kernel, plan.first, device);
        forget_plans();  // they may contain the refused path
        return false;
    }
    return true;
}

}  // namespace

std::string text_of_device(int device) {
    try {
        return concat("device ", device, " (", runtime::device_name(device), ")");
    } catch (const runtime::Error&) {  // after a failed kernel a device has no name
        return concat("device ", device);
    }
}

std::string remark_on(const runtime::Error& error, bool waited, const Launch& launch) {
    if (error.fault != runtime::Fault::failed && error.fault != runtime::Fault::ended) return "";
    std::string text = waited ? "; most likely this kernel has failed"
                              : "; a kernel launched before has failed, of bnext or of another "
                                "library (BNEXT_CUDA_SYNC=1 names it if it is one of bnext)";
    if (error.fault == runtime::Fault::ended && tuning::kMostWait > 0 &&
        (launch.cooperative || !waited)) {
        text += concat(
            "; cooperative kernels of bnext end so where a block waits for the others "
            "for more than ",
            BNEXT_CUDA_WAIT_SECONDS, " s");
    }
    return text + "; the process can use this device no more";
}

void launch(const LaunchPlan& plan, const Addresses& addresses, const Scalars& scalars, int device,
            runtime::Stream stream, Index room) {
    check_addresses(plan, addresses);
    const runtime::CurrentDevice current(device);
    if (plan.forced || !must_be_resident(plan.first)) {
        return enqueue(plan, addresses, scalars, device, stream);
    }
    if (enqueue_resident(plan, addresses, scalars, device, stream)) return;
    const LaunchPlan other = in_two_kernels(plan);
    std::shared_ptr<void> workspace;
    Addresses at = addresses;
    if (other.workspace_bytes > room) {
        workspace.reset(runtime::allocate(other.workspace_bytes, stream),
                        [stream](void* memory) { runtime::release(memory, stream); });
        at.workspace = workspace.get();
    }
    enqueue(other, at, scalars, device, stream);
}

void prepare(const LaunchPlan& plan, int device) {
    const runtime::CurrentDevice current(device);
    const auto prepare_steps = [&](const LaunchPlan& each) {
        for (const Role role : {first_role(each), Role::second}) {
            if (role == Role::second && each.second.grid == 0) continue;
            const Step step{each, role, device, nullptr};
            tell_errors(step, [&] { runtime::prepare(step.kernel()); });
        }
    };
    prepare_steps(plan);
    if (plan.forced || !must_be_resident(plan.first)) return;
    (void)resident(kernel_of(plan, plan.first.cut.unit, Role::fused), plan.first, device);
    prepare_steps(in_two_kernels(plan));
}

}  // namespace bnext::cuda
