#include "cuda/twice_launch.hpp"

#include <algorithm>

#include "core/division.hpp"
#include "core/double_backward.hpp"
#include "cuda/cutter.hpp"
#include "cuda/launch.hpp"
#include "cuda/twice_instances.hpp"

namespace bnext::cuda {
namespace {

constexpr int kThreadsOfNumbers = 128;  // of a block with numbers of channels
constexpr Index kDouble = sizeof(double);

Index aligned(Index bytes) { return round_up(bytes, 256); }

bool does(const TwiceCall& call, TwicePhases phases) {
    return call.phases == phases || call.phases == TwicePhases::both;
}
bool is_given(const TwiceCall& call, TwiceArray which) {
    return call.data[static_cast<std::size_t>(which)] != nullptr;
}
Fused fused_of(const TwiceCall& call) {
    return {static_cast<Activation>(call.activation), call.negative_slope,
            is_given(call, TwiceArray::residual)};
}
int sums_of(const TwiceCall& call) {
    return fused_of(call).is_piecewise_linear() ? kTwiceSumsOfLines : kTwiceSums;
}

// The arrays that there are, as descriptions take them.
struct Given {
    explicit Given(const TwiceCall& call) : shape(call.shape, static_cast<std::size_t>(call.rank)) {
        for (std::size_t k = 0; k < kTwiceArrays; ++k) {
            if (call.data[k] == nullptr) continue;
            place[k] = count;
            addresses[count] = reinterpret_cast<std::uint64_t>(call.data[k]);
            strides[count++] = {call.strides[k], shape.size()};
        }
    }
    std::span<const Index> shape;
    std::size_t count = 0;
    std::array<std::size_t, kTwiceArrays> place{};  // among those that there are
    std::array<AxisStrides, kMaxOperands> strides;
    std::array<std::uint64_t, kMaxOperands> addresses{};
};

Launch of_cut(const Cut& cut, Index shared_bytes) {
    Launch launch;
    launch.cut = cut;
    launch.grid = cut.slabs * cut.parts;
    launch.shared_bytes = shared_bytes;
    return launch;
}
Launch of_numbers(const Cut& cut, Index threads_of_channel) {
    Launch launch;
    launch.cut = cut;
    launch.cut.threads = kThreadsOfNumbers;
    launch.grid = divide_up(cut.channels * threads_of_channel, kThreadsOfNumbers);
    return launch;
}

}  // namespace

TwicePlan make_twice_plan(const TwiceCall& call, const Limits& limits) {
    const Given given(call);
    const auto dtype = static_cast<DType>(call.dtype);
    const Description described =
        describe(dtype, given.shape, call.channel_axis, {given.strides.data(), given.count});
    if (!described.accepted()) {
        throw Error(Error::Kind::layout, concat("layout: ", described.refusal));
    }
    const Description walked = in_one_run(described, given.count);
    TwicePlan plan;
    plan.problem = walked.problem;
    plan.strides = walked.strides;
    const bool planar = walked.problem.layout == Layout::planar;
    if (planar) {
        plan.unit = widest_unit(walked, {}, {given.addresses.data(), given.count}, true);
    }
    const Cutter cutter(walked.problem, {}, plan.unit, 2, true);
    const Cut& whole = cutter.whole();

    // As the phases of a backward pass are cut (plan.cpp).
    const Index blocks = tuning::kReduceWaves * limits.multiprocessors;
    const Index wide = kBlocksPerProcessor * limits.multiprocessors;
    const Index smallest = std::max<Index>(1, cutter.slab_bytes() / tuning::kSmallestPart);
    const Index most = planar ? blocks : wide;
    const Cut reduced = cutter.in_parts(std::min(std::max<Index>(1, most / whole.slabs), smallest));
    const Index of_block = Index{whole.rows} * whole.batch * tuning::kAppliedBatches;
    const Cut applied = cutter.in_parts(std::min(divide_up(whole.positions, of_block),
                                                 std::max<Index>(1, kMostBlocks / whole.slabs)));
    const Index sums = sums_of(call);
    if (does(call, TwicePhases::find_pilots)) plan.pilots = of_numbers(whole, 1);
    if (does(call, TwicePhases::reduce)) {
        plan.reduce = of_cut(reduced, reduced.threads / kWarp * sums * reduced.columns * kDouble);
    }
    if (call.phases != TwicePhases::find_pilots) {
        plan.finish = of_numbers(call.phases == TwicePhases::apply ? whole : reduced, kWarp);
    }
    if (does(call, TwicePhases::apply)) plan.apply = of_cut(applied, 0);
    for (const Launch* const each : {&plan.pilots, &plan.reduce, &plan.finish, &plan.apply}) {
        BNEXT_CHECK(each->grid <= kMostBlocks, "x: too many channels for a launch");
        BNEXT_CHECK(each->shared_bytes <= limits.shared_per_block,
                    "x: a block has too little shared memory");
    }

    const Index channels = walked.problem.channels;
    Index end = call.pilots == nullptr ? aligned(2 * channels * kDouble) : 0;
    plan.partials_at = end;
    if (plan.reduce.grid > 0) end += aligned(plan.reduce.grid * sums * reduced.columns * kDouble);
    plan.rows_at = end;
    if (plan.apply.grid > 0) end += aligned(kTwiceRows * channels * kDouble);
    plan.workspace_bytes = end;
    return plan;
}

namespace {

Arguments arguments_of(const TwicePlan& plan, const TwiceCall& call, void* workspace) {
    auto* const begin = static_cast<unsigned char*>(workspace);
    const auto doubles = [&](Index at) { return reinterpret_cast<double*>(begin + at); };
    Arguments a{};
    a.weight = call.weight;
    a.statistics = call.statistics;
    a.of_z = call.of_z;
    a.fused = fused_of(call);
    a.count = static_cast<double>(plan.problem.count());
    a.twice.ddweight = call.ddweight;
    a.twice.ddbias = call.ddbias;
    a.twice.of_weight = call.of_weight;
    a.twice.of_bias = call.of_bias;
    a.twice.centred = call.centred;
    a.twice.pilots = call.pilots != nullptr ? call.pilots : doubles(0);
    a.twice.partials = plan.reduce.grid > 0 ? doubles(plan.partials_at) : nullptr;
    a.twice.sums = call.sums;
    a.twice.total = call.total;
    a.twice.count = call.count;
    a.twice.rows = plan.apply.grid > 0 ? doubles(plan.rows_at) : nullptr;
    return a;
}

// As a launch with that cut walks them.
void take_arrays(Arguments& a, const TwicePlan& plan, const TwiceCall& call, const Cut& cut) {
    const Given given(call);
    const Index item = size_of(static_cast<DType>(call.dtype));
    Operand* const all[] = {&a.in[0],    &a.in[1],       &a.twice.ddx,  &a.twice.ddresidual,
                            &a.residual, &a.twice.of_dy, &a.twice.of_x, &a.twice.of_residual};
    for (std::size_t k = 0; k < kTwiceArrays; ++k) {
        *all[k] = call.data[k] == nullptr
                      ? Operand{}
                      : operand_of(plan.problem.layout, cut, plan.strides[given.place[k]], 0, item,
                                   call.data[k]);
    }
    a.cut = cut;
}

Kernel kernel_of(const TwicePlan& plan, const TwiceCall& call, TwiceStep step) {
    Kernel kernel = nullptr;
    with_dtype(static_cast<DType>(call.dtype),
               [&](auto type) { kernel = twice_kernel<decltype(type)>(step, plan.unit); });
    return kernel;
}

std::string text_of(const TwicePlan& plan, const TwiceCall& call, const Launch& launch,
                    const char* kernel) {
    return concat("double_backward (kernel ", kernel, ", ", name_of(static_cast<DType>(call.dtype)),
                  ", ", name_of(plan.problem.layout), ", unit ", plan.unit, "; grid ", launch.grid,
                  ", block ", launch.cut.threads, ", shared bytes ", launch.shared_bytes, "; ",
                  text_of_device(call.device), ")");
}

}  // namespace

void launch_twice(const TwicePlan& plan, const TwiceCall& call, void* workspace) {
    const runtime::CurrentDevice current(call.device);
    Arguments a = arguments_of(plan, call, workspace);
    const bool is_double = static_cast<DType>(call.dtype) == DType::float64;
    struct Step {
        const Launch& launch;
        Kernel kernel;
        const char* name;
    };
    const Step steps[] = {
        {plan.pilots, kernel_of(plan, call, TwiceStep::find_pilots), "find_twice_pilots"},
        {plan.reduce, kernel_of(plan, call, TwiceStep::reduce), "reduce_twice"},
        {plan.finish, is_double ? finish_twice_kernel<double>() : finish_twice_kernel<float>(),
         "finish_twice"},
        {plan.apply, kernel_of(plan, call, TwiceStep::apply), "apply_twice"},
    };
    const auto text = [&](const Step& step) {
        return [&] { return text_of(plan, call, step.launch, step.name); };
    };
    // Raises foreseeable errors, before any work is enqueued.
    for (const Step& step : steps) {
        if (step.launch.grid == 0) continue;
        naming(step.launch, false, text(step), [&] { runtime::prepare(step.kernel); });
    }
    for (const Step& step : steps) {
        if (step.launch.grid == 0) continue;
        take_arrays(a, plan, call, step.launch.cut);
        run_named(step.kernel, step.launch, a, call.stream, text(step));
    }
}

}  // namespace bnext::cuda
