#include "cuda/cell_launch.hpp"

#include <algorithm>
#include <bit>

#include "core/division.hpp"
#include "cuda/cell_kernel.hpp"
#include "cuda/cell_walk.hpp"
#include "cuda/cutter.hpp"
#include "cuda/launch.hpp"
#include "cuda/plan_cache.hpp"

namespace bnext::cuda {
namespace {

constexpr int kThreads = 256;  // of a block

// One call: its extents, its workspace, and its launches, of which the kernels of batch
// normalization go by plans of their own, over cells as channels.
class CellRun {
public:
    explicit CellRun(const KernelCall& call)
        : call_(call),
          arrays_(cells_of(call)),
          cells_(arrays_.problem),
          all_cells_(cells_.examples * cells_.cells()),
          all_slabs_(cells_.all_slabs()),
          alone_(cells_.cells_of_slab == 1) {}

    void forward() {
        if (const int threads = threads_for_small(); threads > 0) {
            take_extents();
            return launch_small(Pass::forward, threads);
        }
        if (alone_) {  // a cell is a slab
            const auto plan = planned(call_);
            if (take_room(0, {plan.get()})) launch_plan(*plan, call_);
            return;
        }
        KernelCall sums = only(call_, Operation::collect_stats, 1);
        KernelCall writes = call_;
        writes.operation = Operation::normalize;
        const auto first = planned(sums), second = planned(writes);
        if (!take_room(kStatisticsRows, {first.get(), second.get()})) return;
        // Where slabs are one piece of memory each, these have been summed.
        const bool by_slabs = first->problem.channels == all_slabs_;
        writes.at.statistics = rows();
        sums.at.statistics = by_slabs ? call_.at.statistics : rows();
        launch_plan(*first, sums);
        step(by_slabs ? CellStep::spread_slabs : CellStep::merge_slabs);
        launch_plan(*second, writes);
    }

    void backward() {
        if (const int threads = threads_for_small(); threads > 0) {
            if (!take_room(2, {})) return;
            a_.sums = room(0);
            launch_small(Pass::backward, threads);
            return step(CellStep::sum_parameters);
        }
        KernelCall whole = call_;
        whole.at.dweight = whole.at.dbias = nullptr;
        if (alone_) {
            const auto plan = planned(whole);
            if (!take_room(2, {plan.get()})) return;
            whole.at.sums = a_.sums = room(0);
            launch_plan(*plan, whole);
            return step(CellStep::sum_parameters);
        }
        KernelCall sums = only(whole, Operation::backward_reduce, 2);
        whole.operation = Operation::backward_apply;
        const auto first = planned(sums), second = planned(whole);
        if (!take_room(kStatisticsRows + 4, {first.get(), second.get()})) return;
        sums.at.statistics = whole.at.statistics = rows();
        sums.at.sums = a_.sums = room(kStatisticsRows);
        whole.at.sums = a_.cells.shares = room(kStatisticsRows + 2);
        if (call_.at.weight != nullptr) whole.at.weight = a_.cells.weight = weight_;
        whole.scalars.count = cells_.count();
        step(CellStep::spread_slabs);
        launch_plan(*first, sums);
        step(CellStep::share_sums);
        launch_plan(*second, whole);
        step(CellStep::sum_parameters);
    }

private:
    // A call of the first phase alone: of arrays that are read, the first so many, and beside a
    // gradient the residual.
    static KernelCall only(const KernelCall& all, Operation operation, std::int32_t read) {
        KernelCall call = all;
        call.operation = operation;
        call.operands = read;
        call.at.y = call.at.dx = call.at.dresidual = nullptr;
        if (operation == Operation::collect_stats) {
            call.scalars.activation = 0;
            call.at.residual = nullptr;
        } else if (call.at.residual != nullptr) {
            ++call.operands;
        }
        return call;
    }

    // The workspace: so many rows of cells, weights, and behind them what the plans need, one after
    // the other. False where the caller has none.
    bool take_room(Index rows_of_cells, std::initializer_list<const LaunchPlan*> plans) {
        constexpr Index kAligned = 256;
        const Index rows_end = round_up(rows_of_cells * all_cells_ * kDouble, kAligned);
        const Index own = round_up(rows_end + cells_.parameters * kDouble, kAligned);
        Index most = 0;
        for (const LaunchPlan* plan : plans) most = std::max(most, plan->workspace_bytes);
        workspace_ = static_cast<unsigned char*>(call_.allocate(call_.caller, own + most));
        if (workspace_ == nullptr) return false;
        weight_ = workspace_ + rows_end;
        of_plans_ = workspace_ + own;
        take_extents();
        return true;
    }
    void take_extents() {
        a_.cut.channels = all_cells_;
        a_.cut.parameters = cells_.parameters;
        a_.statistics = call_.at.statistics;
        a_.weight = call_.at.weight;
        a_.dweight = call_.at.dweight;
        a_.dbias = call_.at.dbias;
        a_.eps = call_.scalars.eps;
        a_.cells.of_slab = cells_.cells_of_slab;
        a_.cells.slabs = all_slabs_;
        a_.cells.count = static_cast<double>(cells_.example.count());
        a_.cells.rows = rows();
    }
    // Threads of a block for slabs whose values are in registers (small_slabs.hpp); 0 where others
    // are to run. The team of a slab is the least that holds it.
    int threads_for_small() {
        const Problem& example = cells_.example;
        const bool runs =
            example.outer == 1 && (example.layout == Layout::planar || example.count() == 1);
        const bool plain = call_.scalars.activation == 0 && call_.at.residual == nullptr;
        if (arrays_.refusal != nullptr || !runs || !plain || forced_path(call_.operation)) return 0;
        const Index held = held_values(dtype() == DType::float64 ? 8 : 4);
        const Index values = example.count();
        if (values > held * kWarp || cells_.cells_of_slab > held * kThreads) return 0;
        const Index lanes = std::min<Index>(
            static_cast<Index>(std::bit_ceil(static_cast<std::uint64_t>(values))), kWarp);
        for (Index team = kWarp; team <= kThreads; team *= 2) {
            const Index of_cells = divide_up(cells_.cells_of_slab, team / lanes);
            if (of_cells * divide_up(values, lanes) > held) continue;
            a_.cells.team = static_cast<int>(team);
            a_.cells.lanes = static_cast<int>(lanes);
            return team == kWarp ? kThreads : static_cast<int>(team);
        }
        return 0;
    }
    void launch_small(Pass pass, int threads) {
        Launch launch;
        launch.cut = a_.cut;
        launch.cut.threads = threads;
        launch.cut.run = cells_.example.count();
        launch.cut.of_example = cells_.examples > 1 ? cells_.cells() : 0;
        launch.grid = divide_up(all_slabs_, threads / a_.cells.team);
        launch.shared_bytes = kNumbersOfWarp * (kThreads / kWarp) * kDouble;
        a_.cut = launch.cut;
        const bool forward = pass == Pass::forward;
        const auto operand = [&](std::size_t number, void* data) {
            return operand_of(Layout::planar, a_.cut, arrays_.strides[number],
                              arrays_.steps[number], size_of(dtype()), data);
        };
        a_.bias = call_.at.bias;
        a_.in[0] = operand(0, call_.at.x);
        if (!forward) a_.in[1] = operand(1, call_.at.dy);
        a_.out[0] = forward ? operand(1, call_.at.y) : operand(2, call_.at.dx);
        with_dtype(dtype(), [&](auto type) {
            run(small_kernel<decltype(type)>(pass), launch,
                forward ? "small forward" : "small backward");
        });
    }

    [[nodiscard]] double* room(Index row) const {
        return reinterpret_cast<double*>(workspace_) + row * all_cells_;
    }
    [[nodiscard]] double* rows() const { return room(0); }
    [[nodiscard]] DType dtype() const { return static_cast<DType>(call_.dtype); }

    void launch_plan(const LaunchPlan& plan, KernelCall call) const {
        call.at.workspace = of_plans_;
        launch(plan, call.at, call.scalars, call_.device, call_.stream);
    }

    // Launches a kernel between the phases.
    void step(CellStep step) {
        constexpr Index kSlabsOfBlock = kThreads / kWarp;
        Launch launch;
        Cut& cut = launch.cut = a_.cut;
        cut.threads = kThreads;
        switch (step) {
            case CellStep::merge_slabs:
            case CellStep::share_sums: launch.grid = divide_up(all_slabs_, kSlabsOfBlock); break;
            case CellStep::spread_slabs: launch.grid = divide_up(all_cells_, kThreads); break;
            case CellStep::sum_parameters: {
                const auto channels = static_cast<std::uint64_t>(cut.parameters);
                cut.columns =
                    static_cast<int>(std::min<std::uint64_t>(std::bit_ceil(channels), kWarp));
                launch.grid = divide_up(cut.parameters, cut.columns);
                launch.shared_bytes = 2 * kThreads * kDouble;
                break;
            }
        }
        a_.cut = cut;
        const bool wide = dtype() == DType::float64;
        constexpr const char* kNames[]{"merge_slabs", "spread_slabs", "share_sums",
                                       "sum_parameters"};
        run(wide ? cell_kernel<double>(step) : cell_kernel<float>(step), launch,
            kNames[static_cast<std::size_t>(step)]);
    }

    // Errors name the kernel and its launch.
    void run(Kernel kernel, const Launch& launch, const char* name) const {
        BNEXT_CHECK(launch.grid <= kMostBlocks, "x: too many channels for a launch");
        const runtime::CurrentDevice current(call_.device);
        run_named(kernel, launch, a_, call_.stream, [&] {
            return concat("norm of cells (kernel ", name, ", ", name_of(dtype()), "; grid ",
                          launch.grid, ", block ", launch.cut.threads, "; ",
                          text_of_device(call_.device), ")");
        });
    }

    static constexpr Index kDouble = sizeof(double);

    const KernelCall& call_;
    CellDescription arrays_;
    const CellProblem& cells_;
    Index all_cells_, all_slabs_;
    bool alone_;  // whether each cell is a slab
    unsigned char* workspace_ = nullptr;
    unsigned char* weight_ = nullptr;
    unsigned char* of_plans_ = nullptr;
    Arguments a_{};
};

}  // namespace

void run_cells(const KernelCall& call) {
    BNEXT_CHECK(call.operation == Operation::forward || call.operation == Operation::backward,
                "operation: expected a whole pass over cells, got ", name_of(call.operation));
    CellRun run(call);
    call.operation == Operation::forward ? run.forward() : run.backward();
}

}  // namespace bnext::cuda
