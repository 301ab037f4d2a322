// LaunchPlan: a function of the operation, the problem, the addresses of its arrays and the limits
// of the device. No device is needed to make one, so tests check every choice without a GPU.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/problem.hpp"
#include "cuda/arguments.hpp"
#include "cuda/kernel_shape.hpp"
#include "cuda/table.hpp"

namespace bnext::cuda {

struct Launch;
// The blocks of a launch that run at the same time (residency.hpp).
using Resident = int (*)(Kernel kernel, const Launch& launch, int device);

// The limits of a GPU that plans depend on.
struct Limits {
    int major = 0;  // of the compute capability
    int minor = 0;
    int multiprocessors = 0;
    Index shared_per_block = 0;
    Index shared_per_multiprocessor = 0;
    int cluster = 1;  // the most blocks of a cluster
    bool cooperative = false;
    int reserved = 0;  // multiprocessors without blocks of cooperative grids
    int resident_blocks = kBlocksPerProcessor;  // of a kernel, on a multiprocessor
    int device = -1;                            // that has these limits
    Resident resident = nullptr;                // asks that device; null: resident_blocks holds
};

inline constexpr std::array kOperations{
    Operation::forward,        Operation::normalize,      Operation::collect_stats,
    Operation::backward,       Operation::backward_fixed, Operation::backward_reduce,
    Operation::backward_apply,
};
const char* name_of(Operation operation);

// What a call applies besides normalizing, as far as plans depend on it.
struct Besides {
    bool activated = false;  // the kernels are those with an activation
    bool residual = false;   // which is read then

    // Whether a launch runs such a kernel: sums of x are the same without.
    [[nodiscard]] bool at(Operation operation, bool sums_alone) const {
        return activated && !(sums_alone && operation < Operation::backward);
    }
};

// Data arrays that are read, as the operation's formula says, without the residual.
int inputs_of(Operation operation);
// All that are read or written: inputs, the residual, the result, dresidual.
std::size_t operands_of(Operation operation, const Besides& besides);
bool writes_data(Operation operation);

// How a launch connects the two phases, best first.
enum class Path {
    block,        // a slab stays in the shared memory of one block
    cluster,      // a slab stays in the shared memory of a cluster of blocks
    cooperative,  // a slab stays in the shared memory of blocks all over the device
    chunked,      // cooperative, with a part of the slab read again
    two_kernels,  // one launch for each phase
    one_phase,    // the operation has one phase
};
const char* name_of(Path path);
std::vector<Path> paths_of(Operation operation);

// One kernel's launch.
struct Launch {
    Cut cut{};
    Exchange exchange = Exchange::none;
    int kept = 0;
    int slots = 0;
    bool shares = false;
    Index grid = 0;
    int cluster = 1;
    Index shared_bytes = 0;
    bool cooperative = false;
};

// Whether all blocks of the launch, or all blocks of each cluster, must run at the same time.
inline bool must_be_resident(const Launch& launch) {
    return launch.cooperative || launch.cluster > 1;
}

struct LaunchPlan {
    Operation operation{};
    Path path{};
    bool forced = false;  // whether the path was forced
    Besides besides;
    Limits limits;
    Problem problem;
    std::array<Strides, kMaxOperands> strides{};
    CellWalk cells;
    Launch first;   // of both phases, of the only one, or of the first
    Launch second;  // of the second phase in two kernels; else with grid 0
    // Places in the workspace, in bytes: counters, partial sums behind them, merged sums, sums
    // between two kernels.
    Index counters_bytes = 0;
    Index totals_at = 0;
    Index sums_at = 0;
    Index workspace_bytes = 0;
};

// An array as a launch with that cut walks it; `step`: from an example to the next.
Operand operand_of(Layout layout, const Cut& cut, const Strides& strides, Index step,
                   Index value_bytes, void* data = nullptr);

// Throws Error: of the kind layout where the arrays have to be copied first, of the kind path where
// the forced path cannot run the call. `cells`: where channels are the cells of examples.
LaunchPlan make_launch_plan(Operation operation, const Description& description,
                            std::span<const std::uint64_t> addresses, const Limits& limits,
                            std::optional<Path> forced = {}, const Besides& besides = {},
                            const CellWalk& cells = {});
// The plan of the same call as `two_kernels`, neither cooperative nor in clusters, with another
// workspace.
LaunchPlan in_two_kernels(const LaunchPlan& plan);

}  // namespace bnext::cuda
