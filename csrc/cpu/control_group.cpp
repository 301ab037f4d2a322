#include "cpu/control_group.hpp"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace bnext::cpu {
namespace {

using std::string;
using std::filesystem::path;

// In version 1 a number close to 2^63 means no limit.
constexpr std::int64_t kNoMemoryLimit = std::int64_t{1} << 62;

// --- the folders of the process's groups ---------------------------------------------------------

// A hierarchy is named by one of its controllers; version 2's, of all controllers, by none.
constexpr const char* kVersion2 = "";

bool lists(const string& words, const string& word) {
    return ("," + words + ",").find("," + word + ",") != string::npos;
}

// The group's path in a hierarchy, or nothing, from a line of /proc/self/cgroup:
//     4:memory:/slurm/job_7      version 1
//     0::/system.slice/it        version 2
path group_in(const char* groups, const string& controller) {
    std::ifstream lines(groups);
    string number, controllers, group;
    while (std::getline(lines, number, ':') && std::getline(lines, controllers, ':') &&
           std::getline(lines, group)) {
        if ((number == "0") == controller.empty() && lists(controllers, controller)) return group;
    }
    return {};
}

struct Mount {
    path top;    // the mounted group, by its path in the hierarchy
    path place;  // the folder where it is mounted
};

// mountinfo has spaces, tabs, newlines and backslashes as a backslash and three octal digits.
string unescaped(string text) {
    for (auto at = text.find('\\'); at != string::npos; at = text.find('\\', at + 1)) {
        text.replace(at, 4, 1, static_cast<char>(std::stoi(text.substr(at + 1, 3), nullptr, 8)));
    }
    return text;
}

// The mounts of a hierarchy, from lines of mountinfo:
//     35 31 0:32 /top /place rw,relatime shared:9 - cgroup cgroup rw,memory
std::vector<Mount> mounts_of(const char* mounts, const string& controller) {
    const string kind = controller.empty() ? " - cgroup2 " : " - cgroup ";
    std::vector<Mount> found;
    std::ifstream lines(mounts);
    for (string line; std::getline(lines, line);) {
        const auto dash = line.find(" - ");
        if (dash == string::npos || line.compare(dash, kind.size(), kind) != 0) continue;
        const string options = line.substr(line.rfind(' ') + 1);
        if (!controller.empty() && !lists(options, controller)) continue;
        string other, top, place;
        std::istringstream(line) >> other >> other >> other >> top >> place;
        found.push_back({unescaped(top), unescaped(place)});
    }
    return found;
}

// Whether a path, relative to a group, leaves what is below that group.
bool leaves(const path& relative) { return relative.empty() || *relative.begin() == ".."; }

// Calls visit(folder) for the process's group in a hierarchy, and for the groups above it, as far
// as a mount shows them.
template <class Visit>
void for_each_group(const char* groups, const char* mounts, const string& controller,
                    const Visit& visit) {
    const path group = group_in(groups, controller);
    if (group.empty()) return;
    const std::vector<Mount> all = mounts_of(mounts, controller);
    bool found = false;
    for (const Mount& mount : all) {
        path below = group.lexically_relative(mount.top);
        if (leaves(below)) continue;
        found = true;
        if (below == ".") below.clear();
        for (;; below = below.parent_path()) {
            visit(mount.place / below);
            if (below.empty()) break;
        }
    }
    // A mount whose top is not the name of a group above is read only if there is no other. Its top
    // is then the container's group, which has another name inside than outside; which of the
    // groups below is the process's cannot be known.
    if (found || leaves(group.lexically_relative("/"))) return;
    for (const Mount& mount : all) visit(mount.place);
}

// --- limits --------------------------------------------------------------------------------------

// The number at the beginning of a file, or -1 without ("max", or no file).
std::int64_t take_number(std::ifstream& file) {
    std::int64_t number = 0;
    return file >> std::noskipws >> number ? number : -1;
}
std::int64_t number_in(const path& name) {
    std::ifstream file(name);
    return take_number(file);
}

void limit_memory(ControlLimits& limits, const path& file) {
    const std::int64_t bytes = number_in(file);
    if (bytes < 0 || bytes >= kNoMemoryLimit) return;
    limits.memory_bytes = std::min(limits.memory_bytes, static_cast<std::size_t>(bytes));
}

void limit_cores(ControlLimits& limits, std::int64_t quota, std::int64_t period) {
    if (quota <= 0 || period <= 0) return;
    limits.cores = std::min(limits.cores, static_cast<double>(quota) / static_cast<double>(period));
}

void count_throttled(ControlLimits& limits, const path& file) {
    std::ifstream lines(file);
    string name;
    std::uint64_t value = 0;
    while (lines >> name >> value) {
        if (name == "nr_throttled") limits.throttled_periods += value;
    }
}

}  // namespace

ControlLimits control_limits(const char* groups, const char* mounts) noexcept {
    ControlLimits limits;
    try {
        for_each_group(groups, mounts, kVersion2, [&](const path& folder) {
            limit_memory(limits, folder / "memory.max");
            limit_memory(limits, folder / "memory.high");  // above it, the system reclaims memory
            std::ifstream cpu(folder / "cpu.max");         // "50000 100000", "max 100000"
            const std::int64_t quota = take_number(cpu);
            cpu.ignore();
            limit_cores(limits, quota, take_number(cpu));
            count_throttled(limits, folder / "cpu.stat");
        });
        for_each_group(groups, mounts, "memory", [&](const path& folder) {
            limit_memory(limits, folder / "memory.limit_in_bytes");
        });
        for_each_group(groups, mounts, "cpu", [&](const path& folder) {
            limit_cores(limits, number_in(folder / "cpu.cfs_quota_us"),
                        number_in(folder / "cpu.cfs_period_us"));
            count_throttled(limits, folder / "cpu.stat");
        });
    } catch (const std::exception&) {  // no memory for a path: no limit from there on
    }
    return limits;
}

}  // namespace bnext::cpu
