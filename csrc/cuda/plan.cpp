#include "cuda/plan.hpp"

#include <algorithm>
#include <ranges>

#include "core/division.hpp"
#include "core/error.hpp"
#include "core/formulas.hpp"
#include "cuda/cutter.hpp"
#include "cuda/kernel_choice.hpp"
#include "cuda/tuning.hpp"

namespace bnext::cuda {

namespace {

constexpr std::array kOperationNames{
    "forward",        "normalize",       "collect_stats",  "backward",
    "backward_fixed", "backward_reduce", "backward_apply",
};
constexpr std::array kPathNames{
    "block", "cluster", "cooperative", "chunked", "two_kernels", "one_phase",
};

bool reduces_alone(Operation operation) {
    return operation == Operation::collect_stats || operation == Operation::backward_reduce;
}

static_assert(kMostInputs + kMostOutputs + 2 == kKernelOperands);

// Data arrays of an operation, as its formula says.
struct Arrays {
    int read, summed, written;
};

Arrays arrays_of(Operation operation) {
    const auto of = [](auto formula) {
        using F = decltype(formula);
        return Arrays{F::kReads, F::kSummed, F::kWrites};
    };
    const Arrays all = operation < Operation::backward
                           ? of(Formula<Pass::forward, Epilogue::none, float>{})
                           : of(Formula<Pass::backward, Epilogue::none, float>{});
    return reduces_alone(operation) ? Arrays{all.summed, all.summed, 0} : all;
}

}  // namespace

const char* name_of(Operation operation) {
    return kOperationNames[static_cast<std::size_t>(operation)];
}
const char* name_of(Path path) { return kPathNames[static_cast<std::size_t>(path)]; }

int inputs_of(Operation operation) { return arrays_of(operation).read; }

std::size_t operands_of(Operation operation, const Besides& besides) {
    const Arrays all = arrays_of(operation);
    const bool dresidual = operation >= Operation::backward && writes_data(operation);
    const int more = besides.residual ? 1 + int{dresidual} : 0;
    return static_cast<std::size_t>(all.read + all.written + more);
}

bool writes_data(Operation operation) { return !reduces_alone(operation); }

std::vector<Path> paths_of(Operation operation) {
    switch (operation) {
        case Operation::forward:
        case Operation::backward:
            return {Path::block, Path::cluster, Path::cooperative, Path::chunked,
                    Path::two_kernels};
        case Operation::backward_fixed: return {Path::two_kernels};
        default: return {Path::one_phase};
    }
}

namespace {

// Shared memory of each of so many blocks on a multiprocessor.
Index shared_of_block(const Limits& limits, int blocks) {
    return std::min(limits.shared_per_block,
                    limits.shared_per_multiprocessor / blocks - tuning::kReservedShared);
}

// Multiprocessors for cooperative grids.
int multiprocessors_left(const Limits& limits) {
    return std::max(1, limits.multiprocessors - limits.reserved);
}

class Planner {
public:
    Planner(const Cutter& cutter, int inputs, const Limits& limits)
        : cutter_(cutter), inputs_(inputs), limits_(limits) {
        // Where shared memory is scarce, blocks are smaller: the batches in flight must have room.
        const Index room = shared_of_block(limits, limits.resident_blocks);
        while (cutter_.whole().threads > tuning::kFewestThreads &&
               cutter_.ring() * cutter_.batch_bytes(cutter_.whole()) * inputs +
                       cutter_.bytes_for_sums(cutter_.whole()) >
                   room) {
            cutter_.limit_threads(cutter_.whole().threads / 2);
        }
    }

    // Plans both phases in one launch. Null, or the reason against that path.
    const char* fused(Path path, Launch& launch) const {
        const Index resident = resident_blocks();
        const Index room = shared_of_block(limits_, limits_.resident_blocks);
        const Index slabs = cutter_.whole().slabs;
        switch (path) {
            case Path::block: {
                if (const Index parts = parts_that_fit(room); parts != 1) {
                    const Index alone = shared_of_block(limits_, 1);
                    if (parts_that_fit(alone) != 1) return "a slab exceeds a block's shared memory";
                    if (limits_.cluster > 1) return "a cluster leaves room for a second block";
                }
                return set_up(launch, 1, slabs, Exchange::none);
            }
            case Path::cluster: {
                if (limits_.cluster < 2) return "the device has no clusters";
                if (cutter_.whole().positions < 2) return "there is one value a channel";
                const Index parts = cluster_parts(room, 2);
                if (parts == 0) return "a slab exceeds the shared memory of a cluster";
                return set_up(launch, parts, slabs, Exchange::cluster);
            }
            case Path::cooperative: {
                if (!limits_.cooperative) return "the device has no cooperative launches";
                const Index fit = parts_that_fit(room);
                if (fit == 0 || fit > resident) return "a slab exceeds all shared memory";
                const Index groups = even_groups(resident / fit);
                return set_up(launch, resident / groups, groups, Exchange::grid);
            }
            case Path::chunked: {
                if (!limits_.cooperative) return "the device has no cooperative launches";
                // Channels that lie in the same rows are read together; planes are read one by one,
                // so that the second-level cache has more of each.
                const Index fewest = cutter_.in_parts(1).parts;
                if (fewest > resident) return "a slab is longer than all blocks together count";
                const Index groups = cutter_.planar() ? 1 : even_groups(resident / fewest);
                return set_up(launch, resident / groups, groups, Exchange::grid);
            }
            default: return "there are two kernels";
        }
    }

    // Whether the launch fills half of the device or more, or has parts too small to divide.
    [[nodiscard]] bool fills(const Launch& launch) const {
        const Index wanted = launch.cooperative
                                 ? resident_blocks()
                                 : Index{kBlocksPerProcessor} * limits_.multiprocessors;
        return launch.grid >= wanted / 2 ||
               cutter_.slab_bytes() / launch.cut.parts <= 2 * tuning::kSmallestPart;
    }

    // The most blocks of a cooperative grid.
    [[nodiscard]] Index resident_blocks() const {
        return Index{limits_.resident_blocks} * multiprocessors_left(limits_);
    }

    [[nodiscard]] Launch reduce() const {
        const Index blocks = tuning::kReduceWaves * limits_.multiprocessors;
        const Index smallest = std::max<Index>(1, cutter_.slab_bytes() / tuning::kSmallestPart);
        // The last block merges all channels of all parts: with several channels, fewer parts.
        const bool wide = cutter_.whole().slab_channels() > 1;
        const Index most = (wide ? kBlocksPerProcessor * limits_.multiprocessors : blocks);
        const Index parts = std::min(std::max<Index>(1, most / cutter_.whole().slabs), smallest);
        return plain(cutter_.in_parts(parts), true);
    }
    [[nodiscard]] Launch apply() const {
        const Cut& whole = cutter_.whole();
        const Index of_block = Index{whole.rows} * whole.batch * tuning::kAppliedBatches;
        const Index most = std::max<Index>(1, kMostBlocks / whole.slabs);
        const Index parts = std::min(divide_up(whole.positions, of_block), most);
        return plain(cutter_.in_parts(parts), cutter_.activated());
    }

private:
    [[nodiscard]] Launch plain(const Cut& cut, bool sums) const {
        Launch launch;
        launch.cut = cut;
        launch.grid = cut.slabs * cut.parts;
        launch.slots = cutter_.ring();
        launch.shared_bytes =
            launch.slots * cutter_.batch_bytes(cut) * inputs_ +
            (sums ? cutter_.bytes_for_sums(cut) : cutter_.bytes_for_coefficients(cut));
        return launch;
    }
    // At most `most` groups, so that all of them take the same number of slabs, as far as possible.
    [[nodiscard]] Index even_groups(Index most) const {
        const Index slabs = cutter_.whole().slabs;
        return divide_up(slabs, divide_up(slabs, std::min(slabs, most)));
    }
    [[nodiscard]] bool fits(const Cut& cut, Index room) const {
        const Index kept = cut.batches * cutter_.batch_bytes(cut) * inputs_;
        return kept + cutter_.bytes_for_sums(cut) <= room;
    }
    // The cut into so many parts, for the largest blocks that fit: every warp takes room for a row
    // of sums. Where none fit, for the largest.
    [[nodiscard]] Cut cut_for(Index parts, Index room) const {
        for (const int most : {kMostThreads, kMostThreads * 3 / 4, kMostThreads / 2}) {
            const Cut cut = cutter_.in_parts(parts, most);
            if (fits(cut, room)) return cut;
        }
        return cutter_.in_parts(parts);
    }
    [[nodiscard]] bool fits(Index parts, Index room) const {
        return fits(cut_for(parts, room), room);
    }
    // The fewest parts that fit; 0 where even single positions do not.
    [[nodiscard]] Index parts_that_fit(Index room) const {
        const Index most = std::min(cutter_.whole().positions, kMostBlocks);
        if (!fits(most, room)) return 0;
        const auto fewer = std::views::iota(Index{1}, most);
        const auto too_few = [&](Index parts) { return !fits(parts, room); };
        return *std::ranges::partition_point(fewer, too_few);
    }
    // A power of two from `fewest` on: the least that fits, and more where the device would be
    // idle. 0: none fits.
    [[nodiscard]] Index cluster_parts(Index room, Index fewest) const {
        const Cut& whole = cutter_.whole();
        const Index most = std::min<Index>(limits_.cluster, whole.positions);
        Index parts = fewest;
        while (parts <= most && !fits(parts, room)) parts *= 2;
        if (parts > most) return 0;
        const Index wanted = Index{kBlocksPerProcessor} * limits_.multiprocessors;
        while (2 * parts <= std::min<Index>(most, tuning::kPortableCluster) &&
               2 * parts * whole.slabs <= wanted &&
               cutter_.slab_bytes() / (2 * parts) >= tuning::kSmallestPart) {
            parts *= 2;
        }
        return parts;
    }
    const char* set_up(Launch& launch, Index parts, Index groups, Exchange exchange) const {
        int blocks = limits_.resident_blocks;
        launch.cut = cut_for(parts, shared_of_block(limits_, blocks));
        if (exchange == Exchange::none && !fits(launch.cut, shared_of_block(limits_, blocks))) {
            blocks = 1;
            launch.cut = cut_for(parts, shared_of_block(limits_, blocks));
        }
        launch.cut.groups = groups;
        launch.exchange = exchange;
        launch.grid = groups * launch.cut.parts;
        if (launch.grid > kMostBlocks) return "the grid would have too many blocks";
        launch.cluster = exchange == Exchange::cluster ? launch.cut.parts : 1;
        launch.cooperative = exchange == Exchange::grid;
        const Index sums = cutter_.bytes_for_sums(launch.cut);
        const Index batch = cutter_.batch_bytes(launch.cut) * inputs_;
        const Index room = (shared_of_block(limits_, blocks) - sums) / batch;  // in slots
        const bool all = launch.cut.batches <= room;
        if (!all && room < cutter_.ring()) return "a block has too little shared memory";
        launch.slots = static_cast<int>(all ? launch.cut.batches : room);
        launch.kept = all ? launch.slots : launch.slots - cutter_.ring();
        launch.shares = exchange == Exchange::grid && launch.cut.slab_channels() > 1 &&
                        launch.cut.parts > tuning::kPartsReadByAll;
        launch.shared_bytes = launch.slots * batch + sums;
        if (launch.shared_bytes > limits_.shared_per_block) return "a block has too little memory";
        return nullptr;
    }

    Cutter cutter_;
    int inputs_;
    const Limits& limits_;
};

Index aligned(Index bytes) { return round_up(bytes, 256); }

void lay_out_workspace(LaunchPlan& plan) {
    plan.counters_bytes = plan.totals_at = plan.sums_at = 0;
    const bool counts =
        plan.first.exchange == Exchange::grid ||
        (plan.first.exchange == Exchange::none && plan.first.cut.parts > 1 &&
         plan.operation != Operation::normalize && plan.operation != Operation::backward_apply);
    Index end = 0;
    if (counts) {
        const Cut& cut = plan.first.cut;
        plan.counters_bytes = aligned(2 * cut.slabs * static_cast<Index>(sizeof(unsigned)));
        const Index partials = cut.slabs * cut.slab_channels() * kSumsBytes;
        plan.totals_at = plan.counters_bytes + aligned(cut.parts * partials);
        end = plan.totals_at;
        if (plan.first.shares) end += aligned(partials);
    }
    if (plan.path == Path::two_kernels && plan.operation != Operation::forward) {
        plan.sums_at = end;
        end += aligned(3 * plan.problem.channels * static_cast<Index>(sizeof(double)));
    }
    plan.workspace_bytes = end;
}

// Plans a launch for each phase, or for the only one.
void plan_phases(LaunchPlan& plan, Path path, int unit) {
    const bool reduces = path == Path::two_kernels || reduces_alone(plan.operation);
    const Arrays arrays = arrays_of(plan.operation);
    const int inputs = reduces ? arrays.summed : arrays.read;
    const bool activated = plan.besides.at(plan.operation, reduces);
    const Planner planner(Cutter(plan.problem, plan.cells, unit, inputs, activated), inputs,
                          plan.limits);
    plan.path = path;
    plan.first = reduces ? planner.reduce() : planner.apply();
    plan.second = {};
    if (path != Path::two_kernels) return;
    // Where statistics are constants, dx is written from dy alone.
    const bool of_dy = plan.operation == Operation::backward_fixed && !plan.besides.activated;
    const int last = inputs_of(of_dy ? Operation::normalize : plan.operation);
    const Cutter cutter(plan.problem, plan.cells, unit, last, plan.besides.activated);
    plan.second = Planner(cutter, last, plan.limits).apply();
}

// Plans a launch of both phases: null, or the reason against that path. Where the device has room
// for fewer blocks than its limits say, the launch has fewer and larger blocks.
const char* plan_fused(const LaunchPlan& plan, Path path, int unit, Launch& launch, bool& fills) {
    const int inputs = inputs_of(plan.operation);
    const Cutter cutter(plan.problem, plan.cells, unit, inputs, plan.besides.activated);
    Limits limits = plan.limits;
    while (limits.resident_blocks > 0) {
        const Planner planner(cutter, inputs, limits);
        if (const char* why = planner.fused(path, launch); why != nullptr) return why;
        fills = planner.fills(launch);
        if (limits.resident == nullptr || !must_be_resident(launch)) return nullptr;
        const Kernel kernel = kernel_of(plan, unit, Role::fused);
        const int fit = limits.resident(kernel, launch, limits.device);
        if (launch.cluster > 1) {
            return fit > 0 ? nullptr : "the device has no room for such a cluster";
        }
        if (Index{fit} * multiprocessors_left(limits) >= launch.grid) return nullptr;
        limits.resident_blocks = std::min(fit, limits.resident_blocks - 1);
    }
    return "the device has no room for its blocks";
}

}  // namespace

Operand operand_of(Layout layout, const Cut& cut, const Strides& strides, Index step,
                   Index value_bytes, void* data) {
    Operand operand;
    operand.data = data;
    operand.example = step * value_bytes;
    operand.channel = strides.channel * value_bytes;
    operand.outer = strides.outer * value_bytes;
    operand.along = (layout == Layout::planar ? cut.unit : strides.inner) * value_bytes;
    operand.complete(cut);
    return operand;
}

LaunchPlan make_launch_plan(Operation operation, const Description& description,
                            std::span<const std::uint64_t> addresses, const Limits& limits,
                            std::optional<Path> forced, const Besides& besides,
                            const CellWalk& cells) {
    if (!description.accepted()) {
        throw Error(Error::Kind::layout, concat("layout: ", description.refusal));
    }
    const std::size_t operands = operands_of(operation, besides);
    BNEXT_CHECK(addresses.size() == operands, "addresses: expected ", operands, ", got ",
                addresses.size());
    BNEXT_CHECK(description.problem.elements() > 0, "x: expected elements, got none");
    BNEXT_CHECK(limits.multiprocessors > 0 && limits.shared_per_block > 0 &&
                    limits.shared_per_multiprocessor >= limits.shared_per_block,
                "limits: expected the limits of a device");
    BNEXT_CHECK(limits.reserved >= 0 && limits.resident_blocks >= 1 &&
                    limits.resident_blocks <= kBlocksPerProcessor,
                "limits: expected reserved >= 0, and resident_blocks from 1 to ",
                kBlocksPerProcessor);
    LaunchPlan plan;
    plan.operation = operation;
    plan.besides = besides;
    const Description walked = in_one_run(description, addresses.size());
    plan.problem = walked.problem;
    plan.strides = walked.strides;
    plan.cells = cells;
    plan.forced = forced.has_value();
    plan.limits = limits;
    const int unit = widest_unit(walked, cells, addresses, besides.activated);

    const std::vector<Path> paths = paths_of(operation);
    BNEXT_CHECK(!forced || std::ranges::find(paths, *forced) != paths.end(),
                "path: ", name_of(operation), " has no path ", forced ? name_of(*forced) : "");
    // The first path that fills the device, else the first possible one.
    const char* refusal = nullptr;
    bool found = false;
    for (const Path path : forced ? std::vector{*forced} : paths) {
        if (path == Path::two_kernels || path == Path::one_phase) {
            if (!found) plan_phases(plan, path, unit);
            found = true;
            break;
        }
        Launch launch;
        bool fills = false;
        refusal = plan_fused(plan, path, unit, launch, fills);
        if (refusal != nullptr) continue;
        if (!found || fills) {
            plan.path = path;
            plan.first = launch;
        }
        found = true;
        if (fills) break;
    }
    if (!found) {
        throw Error(Error::Kind::path,
                    concat("path: ", name_of(*forced), " cannot do this: ", refusal));
    }
    BNEXT_CHECK(plan.first.grid <= kMostBlocks && plan.second.grid <= kMostBlocks,
                "x: too many channels for a launch");
    lay_out_workspace(plan);
    return plan;
}

LaunchPlan in_two_kernels(const LaunchPlan& plan) {
    LaunchPlan other = plan;
    plan_phases(other, Path::two_kernels, plan.first.cut.unit);
    lay_out_workspace(other);
    return other;
}

}  // namespace bnext::cuda
