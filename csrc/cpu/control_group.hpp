// The limits that Linux's control groups set for this process: in a container, under Slurm, in a
// service of systemd.
//
// A process is in one group of each hierarchy, and every group above has a say too, so the smallest
// limit on the way to the root counts. /proc/self/cgroup names the groups, by their paths in the
// hierarchy; /proc/self/mountinfo says where a hierarchy is mounted, and which of its groups is the
// mount's top: in a container often not the root. Both versions are read, also side by side
// (version 1 for some controllers and an empty version 2, as older systems have it).
//
// Nothing is kept: each call reads the files anew, in some tens of microseconds, since limits
// change while a process runs. No function throws, allocates or locks; where files are missing or
// say nothing there is no limit.
#pragma once

#include <cstddef>
#include <limits>

namespace bnext::cpu {

struct ControlLimits {
    std::size_t memory_bytes = std::numeric_limits<std::size_t>::max();  // the largest: no limit
    double cores = std::numeric_limits<double>::infinity();              // the same
};

// How much memory the process may have, and how many cores' time: 0.5 is half of one.
std::size_t memory_limit();
double cpu_quota();

// Both, from files in the places of /proc/self/cgroup and /proc/self/mountinfo. For tests.
ControlLimits control_limits(const char* groups, const char* mounts);

}  // namespace bnext::cpu
