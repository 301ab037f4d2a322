// The limits that Linux's control groups set for this process: in a container, under Slurm, in a
// service of systemd.
//
// A process is in one group of each hierarchy, and the groups above limit it too: the smallest
// limit on the path to the root holds. /proc/self/cgroup names the groups, by their paths in the
// hierarchy; /proc/self/mountinfo says where a hierarchy is mounted, and which group is the top of
// the mount: in a container often not the root. Both versions are read, also side by side (older
// systems have version 1 for some controllers and an empty version 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace bnext::cpu {

struct ControlLimits {
    // The memory that the process may have; the largest: no limit.
    std::size_t memory_bytes = std::numeric_limits<std::size_t>::max();
    // The cores whose time it may use (0.5: half of one); infinity: no limit.
    double cores = std::numeric_limits<double>::infinity();
    // The periods so far in which the processes of these groups had spent their quota, and stood
    // still.
    std::uint64_t throttled_periods = 0;
};

// Reads the files anew, in some tens of microseconds, since limits change while a process runs.
// Does not throw; where files are missing or say nothing there is no limit. Tests have files of
// their own.
ControlLimits control_limits(const char* groups = "/proc/self/cgroup",
                             const char* mounts = "/proc/self/mountinfo") noexcept;

}  // namespace bnext::cpu
