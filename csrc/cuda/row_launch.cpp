#include "cuda/row_launch.hpp"

#include "core/error.hpp"
#include "cuda/environment.hpp"
#include "cuda/launch.hpp"
#include "cuda/row_instances.hpp"

namespace bnext::cuda {
namespace {

Kernel kernel_of(const RowPlan& plan, const RowCall& call) {
    const Pass pass = call.backward ? Pass::backward : Pass::forward;
    switch (static_cast<DType>(call.dtype)) {
        case DType::float64: return row_kernel<double>(pass, plan.activated, plan.unit);
        case DType::float16: return row_kernel<float16>(pass, plan.activated, plan.unit);
        case DType::bfloat16: return row_kernel<bfloat16>(pass, plan.activated, plan.unit);
        case DType::float32: break;
    }
    return row_kernel<float>(pass, plan.activated, plan.unit);
}

Kernel merge_kernel_of(const RowCall& call) {
    return static_cast<DType>(call.dtype) == DType::float64 ? row_merge_kernel<double>()
                                                            : row_merge_kernel<float>();
}

std::string text_of(const RowPlan& plan, const RowCall& call, const Launch& launch,
                    const char* kernel) {
    return concat(call.centered ? "layer" : "RMS", " normalization ",
                  call.backward ? "backward" : "forward", " (kernel ", kernel, ", ",
                  name_of(static_cast<DType>(call.dtype)), ", unit ", plan.unit, "; rows of ",
                  plan.row.lanes, " threads, grid ", launch.grid, ", block ", launch.cut.threads,
                  ", shared bytes ", launch.shared_bytes, "; ", text_of_device(call.device), ")");
}

// Waits for it where launches are synchronous; adds the launch's name to errors.
template <class F>
void with_errors(const RowPlan& plan, const RowCall& call, const Launch& launch, const char* kernel,
                 F&& f) {
    const bool synchronous = environment().synchronous;
    try {
        f();
        if (synchronous) runtime::synchronize(call.stream);
    } catch (const runtime::Error& error) {
        throw runtime::Error(error.fault,
                             concat(text_of(plan, call, launch, kernel), ": ", error.what(),
                                    remark_on(error, synchronous, launch)));
    }
}

Arguments arguments_of(const RowPlan& plan, const RowCall& call, void* workspace) {
    Arguments a{};
    a.cut.threads = plan.rows.cut.threads;
    a.row = plan.row;
    const Index item = size_of(static_cast<DType>(call.dtype));
    // What is not given is never read: places of x stand for it.
    const auto operand = [&](const RowsAt& at) {
        const RowsAt& there = at.data != nullptr ? at : call.x;
        Operand made;
        made.data = there.data;
        made.outer = there.pitch * item;
        return made;
    };
    a.in[0] = operand(call.x);
    a.in[1] = operand(call.dy);
    a.out[0] = operand(call.out);
    a.residual = operand(call.residual);
    a.dresidual = operand(call.dresidual);
    a.fused = {static_cast<Activation>(call.activation), call.negative_slope,
               call.residual.data != nullptr};
    a.weight = call.weight;
    a.bias = call.bias;
    a.row.z_weight = call.z_weight;
    a.row.z_bias = call.z_bias;
    a.statistics = call.statistics;
    a.dweight = call.dweight;
    a.dbias = call.dbias;
    a.eps = call.eps;
    if (plan.merge.grid > 0) a.row.partials = static_cast<double*>(workspace);
    if (plan.sums_at > 0) a.row.sums = static_cast<unsigned char*>(workspace) + plan.sums_at;
    return a;
}

}  // namespace

void launch_rows(const RowPlan& plan, const RowCall& call, void* workspace) {
    const runtime::CurrentDevice current(call.device);
    const Arguments a = arguments_of(plan, call, workspace);
    const auto run = [&](Kernel kernel, const Launch& launch, const char* name) {
        with_errors(plan, call, launch, name,
                    [&] { runtime::run(kernel, launch, a, call.stream); });
    };
    const Kernel kernel = kernel_of(plan, call);
    const char* const name = call.backward ? "differentiate_row" : "normalize_row";
    with_errors(plan, call, plan.rows, name, [&] {
        runtime::prepare(kernel);
        if (plan.merge.grid > 0) runtime::prepare(merge_kernel_of(call));
    });
    run(kernel, plan.rows, name);
    if (plan.merge.grid > 0) run(merge_kernel_of(call), plan.merge, "merge_row_sums");
}

}  // namespace bnext::cuda
