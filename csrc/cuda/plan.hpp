// How a call is launched: a function of the operation, the problem, where its arrays lie, and what
// the device has. Nothing here needs a device, so that tests can look at every choice without one.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/problem.hpp"
#include "cuda/arguments.hpp"
#include "cuda/kernel_shape.hpp"

namespace bnext::cuda {

struct Launch;
// How much of a launch a device runs at the same time (residency.hpp).
using Resident = int (*)(Kernel kernel, const Launch& launch, int device);

// What a GPU has, as far as plans depend on it.
struct Limits {
    int major = 0;  // of the compute capability
    int minor = 0;
    int multiprocessors = 0;
    Index shared_per_block = 0;
    Index shared_per_multiprocessor = 0;
    int cluster = 1;  // the most blocks of a cluster
    bool cooperative = false;
    int reserved = 0;  // multiprocessors that cooperative grids leave to others
    int resident_blocks = kBlocksPerProcessor;  // of a kernel, on a multiprocessor
    int device = -1;                            // whose limits these are
    Resident resident = nullptr;                // asks that device; null: as resident_blocks says
};

enum class Operation {
    forward,
    normalize,
    collect_stats,
    backward,
    backward_fixed,  // the statistics are constants
    backward_reduce,
    backward_apply,
};
inline constexpr std::array kOperations{
    Operation::forward,        Operation::normalize,      Operation::collect_stats,
    Operation::backward,       Operation::backward_fixed, Operation::backward_reduce,
    Operation::backward_apply,
};
const char* name_of(Operation operation);
std::size_t operands_of(Operation operation);  // data arrays, in the order x, dy, output

// Ways to do both phases, best first, and the two that have one.
enum class Path {
    block,        // a slab in one block's shared memory
    cluster,      // in that of a cluster's blocks
    cooperative,  // in that of blocks all over the device
    chunked,      // the same, but a part of it has to be read again
    two_kernels,  // one launch for each phase
    one_phase,
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
    bool forced = false;  // the path was
    Limits limits;
    Problem problem;
    std::array<Strides, kMaxOperands> strides{};
    Launch first;   // both phases, or the only one, or the first
    Launch second;  // of two kernels; grid 0 otherwise
    // Workspace, in bytes from its beginning: counters, partial sums, merged ones, sums between two
    // kernels.
    Index counters_bytes = 0;
    Index partials_at = 0;
    Index totals_at = 0;
    Index sums_at = 0;
    Index workspace_bytes = 0;
};

// An array as a launch with that cut walks it, still without an address.
Operand operand_of(Layout layout, const Cut& cut, const Strides& strides, Index value_bytes);

// Throws std::invalid_argument: "layout: ..." where the arrays have to be copied first, "path: ..."
// where a forced path cannot do this.
LaunchPlan make_launch_plan(Operation operation, const Description& description,
                            std::span<const std::uint64_t> addresses, const Limits& limits,
                            std::optional<Path> forced = {});
// The same call with a launch for each phase, neither cooperative nor in clusters, and a workspace
// of its own.
LaunchPlan in_two_kernels(const LaunchPlan& plan);

}  // namespace bnext::cuda
