#include "cuda/row_launch.hpp"

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

Kernel columns_kernel_of(const RowCall& call) {
    Kernel kernel = nullptr;
    with_dtype(static_cast<DType>(call.dtype),
               [&](auto type) { kernel = row_columns_kernel<decltype(type)>(); });
    return kernel;
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

Arguments arguments_of(const RowPlan& plan, const RowCall& call) {
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
    return a;
}

}  // namespace

void launch_rows(const RowPlan& plan, const RowCall& call, void* workspace) {
    const runtime::CurrentDevice current(call.device);
    Arguments a = arguments_of(plan, call);
    const auto run = [&](Kernel each, const Launch& launch, const char* name) {
        run_named(each, launch, a, call.stream, [&] { return text_of(plan, call, launch, name); });
    };
    const Kernel kernel = kernel_of(plan, call);
    const char* const name = call.backward ? "differentiate_row" : "normalize_row";
    naming(
        plan.rows, false, [&] { return text_of(plan, call, plan.rows, name); },
        [&] {
            runtime::prepare(kernel);
            if (plan.columns.grid > 0) runtime::prepare(columns_kernel_of(call));
            if (plan.merge.grid > 0) runtime::prepare(merge_kernel_of(call));
        });
    auto* const sums = plan.merge.grid > 0 ? static_cast<double*>(workspace) : nullptr;
    if (plan.columns.grid == 0) a.row.partials = sums;
    run(kernel, plan.rows, name);
    if (sums == nullptr) return;
    a.row.partials = sums;
    if (plan.columns.grid > 0) {
        a.row.units = a.row.width;  // in the order of columns
        run(columns_kernel_of(call), plan.columns, "sum_columns");
    }
    run(merge_kernel_of(call), plan.merge, "merge_row_sums");
}

}  // namespace bnext::cuda
