#include "cuda/row_plan.hpp"

#include <algorithm>
#include <bit>

#include "core/activation.hpp"
#include "core/division.hpp"
#include "core/error.hpp"
#include "cuda/row_shape.hpp"
#include "cuda/tuning.hpp"

namespace bnext::cuda {
namespace {

constexpr Index kMostBlocks = (Index{1} << 31) - 1;  // of a grid
constexpr Index kMergeBytes = 8 * kWarp * Index{sizeof(double)};

bool is_aligned(const void* address, Index bytes) {
    return reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) == 0;
}

// Whether all arrays of a call have rows of whole units, which are read as one access.
bool fits_unit(const RowCall& call, DType dtype, int unit) {
    const Index bytes = unit * size_of(dtype);
    if (call.width % unit != 0) return false;
    for (const RowsAt& each : {call.x, call.dy, call.residual, call.out, call.dresidual}) {
        if (each.data == nullptr) continue;
        if (!is_aligned(each.data, bytes) || each.pitch * size_of(dtype) % bytes != 0) return false;
    }
    const Index word = std::min<Index>(unit * size_of(param_dtype(dtype)), 16);
    const std::array parameters{call.weight, call.bias, call.z_weight, call.z_bias};
    return std::ranges::all_of(parameters, [&](auto at) { return is_aligned(at, word); });
}

int unit_of(const RowCall& call, DType dtype, bool activated) {
    for (const int unit : kUnits) {
        const bool has = activated ? has_activated_unit(dtype, unit) : has_row_unit(dtype, unit);
        if (has && fits_unit(call, dtype, unit)) return unit;
    }
    return 1;
}

// Of a warp, for a row: so few that each has several units, as a row's statistics cost as much for
// few threads as for many.
int lanes_of(Index units) {
    const auto wanted = std::bit_ceil(static_cast<std::uint64_t>(units / tuning::kRowUnits));
    return std::clamp(static_cast<int>(wanted), tuning::kFewestRowLanes, kWarp);
}

// Blocks of a launch that a multiprocessor has room for.
Index blocks_of(const Limits& limits, const Launch& launch) {
    constexpr Index kThreads = Index{kMostThreads} * kBlocksPerProcessor;  // of 128 registers
    const Index by_memory =
        limits.shared_per_multiprocessor / (launch.shared_bytes + tuning::kReservedShared);
    return std::clamp<Index>(std::min(by_memory, kThreads / launch.cut.threads), 1,
                             tuning::kRowBlocks);
}

}  // namespace

RowPlan make_row_plan(const RowCall& call, const Limits& limits) {
    const auto dtype = static_cast<DType>(call.dtype);
    const bool activates = static_cast<Activation>(call.activation) != Activation::none;
    RowPlan plan;
    plan.activated = activates || (!call.backward && call.residual.data != nullptr);
    plan.unit = unit_of(call, dtype, plan.activated);
    RowArguments& row = plan.row;
    row.rows = call.rows;
    row.width = call.width;
    row.units = call.width / plan.unit;
    row.centered = call.centered;
    row.dresidual = call.dresidual.data != nullptr;

    const Index in_warp = call.backward ? tuning::kRowUnitsOfBackwardWarp : tuning::kRowUnitsOfWarp;
    const bool has_warp = row.units <= in_warp;
    const auto wanted = std::bit_ceil(
        static_cast<std::uint64_t>(std::min<Index>(row.units / tuning::kRowUnits, kMostThreads)));
    const int threads =
        has_warp ? tuning::kRowThreads : std::max(static_cast<int>(wanted), tuning::kFewestThreads);
    row.lanes = has_warp ? lanes_of(row.units) : threads;
    const Index teams = threads / row.lanes;

    // Sums of columns come first: units that shared memory has no room for are read again from the
    // second-level cache.
    const bool sums_up = call.dweight != nullptr;
    const Index length = (call.centered ? 2 : 1) * call.width;
    const Index value = dtype == DType::float64 ? 8 : 4;
    const Index of_units = (call.backward ? 2 : 1) * threads * plan.unit * size_of(dtype);
    Index taken = threads / kWarp * kBytesOfWarp + kBytesAgreed;
    const Index of_block = teams * (length + row.lanes) * value;
    const bool by_columns = sums_up && taken + of_block > limits.shared_per_block;
    if (sums_up && !by_columns) taken += of_block;
    const Index most = divide_up(row.units, row.lanes);
    const Index left = std::max<Index>(limits.shared_per_block - taken, 0);
    row.kept = static_cast<int>(std::min(most, left / of_units));
    plan.rows.cut.threads = threads;
    plan.rows.shared_bytes = taken + row.kept * of_units;

    const Index steps = divide_up(call.rows, teams);
    if (!call.backward) {
        plan.rows.grid = std::min(steps, kMostBlocks);
        row.stride = plan.rows.grid * teams;
        return plan;
    }
    const Index processors = std::max(limits.multiprocessors, 1);
    const Index blocks = processors * blocks_of(limits, plan.rows);
    const Index fewest = std::min(tuning::kRowsOfBlock, divide_up(call.rows, processors));
    const Index block_rows = std::max(divide_up(call.rows, blocks), fewest);
    row.block_rows = divide_up(block_rows, teams) * teams;
    plan.rows.grid = divide_up(call.rows, row.block_rows);
    if (!sums_up) return plan;
    row.slots = plan.rows.grid;
    if (by_columns) {
        const Index blocks_of_slot = divide_up(call.width, kMostThreads);
        const Index slots = std::clamp<Index>(processors * tuning::kRowBlocks / blocks_of_slot, 1,
                                              divide_up(call.rows, tuning::kRowsOfSlot));
        row.slot_rows = divide_up(call.rows, slots);
        row.slots = divide_up(call.rows, row.slot_rows);
        plan.columns.cut.threads = kMostThreads;
        plan.columns.grid = blocks_of_slot * row.slots;
        BNEXT_CHECK(plan.columns.grid <= kMostBlocks, "x: too many columns for a launch");
    }
    plan.merge.cut.threads = 8 * kWarp;
    plan.merge.grid = divide_up(length, kWarp);
    plan.merge.shared_bytes = kMergeBytes;
    plan.workspace_bytes = row.slots * length * Index{sizeof(double)};
    return plan;
}

}  // namespace bnext::cuda
