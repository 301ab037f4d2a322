#include "cpu/control_group.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace bnext::cpu {
namespace {

using std::string_view;

constexpr const char* kGroups = "/proc/self/cgroup";
constexpr const char* kMounts = "/proc/self/mountinfo";
constexpr std::size_t kPath = 4096;
constexpr std::size_t kLine = 2 * kPath;

// --- text in buffers of a fixed size -------------------------------------------------------------

// A file's lines; of a line that does not fit, the beginning.
class Lines {
public:
    explicit Lines(const char* path) : file_(open(path, O_RDONLY | O_CLOEXEC)) {}
    ~Lines() {
        if (file_ >= 0) close(file_);
    }
    Lines(const Lines&) = delete;
    Lines& operator=(const Lines&) = delete;

    bool next(string_view& line) {
        std::size_t size = 0;
        for (;;) {
            if (read_ == end_ && !read_more()) {
                line = {line_, size};
                return size > 0;
            }
            const string_view rest(buffer_ + read_, end_ - read_);
            const auto newline = rest.find('\n');
            const string_view piece = rest.substr(0, newline);
            const std::size_t kept = std::min(piece.size(), kLine - size);
            std::memcpy(line_ + size, piece.data(), kept);
            size += kept;
            read_ += piece.size();
            if (newline != string_view::npos) {
                ++read_;
                line = {line_, size};
                return true;
            }
        }
    }

private:
    bool read_more() {
        read_ = end_ = 0;
        if (file_ < 0) return false;
        ssize_t got = 0;
        do {
            got = read(file_, buffer_, sizeof buffer_);
        } while (got < 0 && errno == EINTR);
        if (got > 0) end_ = static_cast<std::size_t>(got);
        return got > 0;
    }

    int file_;
    std::size_t read_ = 0, end_ = 0;
    char buffer_[kPath];
    char line_[kLine];
};

// A path that ends in a zero. Text that does not fit is not appended.
class Path {
public:
    [[nodiscard]] string_view view() const { return {text_, size_}; }
    [[nodiscard]] const char* c_str() const { return text_; }
    void cut(std::size_t size) {
        size_ = size;
        text_[size_] = '\0';
    }
    bool append(string_view more) {
        if (more.size() >= kPath - size_) return false;
        if (!more.empty()) std::memcpy(text_ + size_, more.data(), more.size());
        cut(size_ + more.size());
        return true;
    }
    bool assign(string_view text) {
        cut(0);
        return append(text);
    }
    // mountinfo has spaces, tabs, newlines and backslashes as a backslash and three octal digits.
    bool assign_escaped(string_view text) {
        cut(0);
        for (std::size_t i = 0; i < text.size(); ++i) {
            char c = text[i];
            if (c == '\\' && i + 3 < text.size()) {
                c = static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0'));
                i += 3;
            }
            if (!append({&c, 1})) return false;
        }
        return true;
    }

private:
    std::size_t size_ = 0;
    char text_[kPath] = "";
};

// Takes the text before the next `separator`, and leaves `text` with the rest behind it.
string_view take(string_view& text, char separator) {
    const auto end = text.find(separator);
    const string_view word = text.substr(0, end);
    text = end == string_view::npos ? string_view{} : text.substr(end + 1);
    return word;
}

bool lists(string_view words, string_view word) {
    while (!words.empty()) {
        if (take(words, ',') == word) return true;
    }
    return false;
}

// --- the folders of the process's groups ---------------------------------------------------------

enum class Version : std::uint8_t { one, two };

// The group's path in the controller's hierarchy, from a line of /proc/self/cgroup:
//     4:memory:/slurm/job_7      version 1
//     0::/system.slice/it        version 2
bool find_group(const char* groups, Version version, string_view controller, Path& path) {
    Lines lines(groups);
    for (string_view line; lines.next(line);) {
        const bool is_two = take(line, ':') == "0";
        const string_view controllers = take(line, ':');
        const bool is_it = version == Version::two ? is_two && controllers.empty()
                                                   : !is_two && lists(controllers, controller);
        if (is_it) return path.assign(line);
    }
    return false;
}

struct Mount {
    Path top;    // the mounted group, by its path in the hierarchy
    Path place;  // the folder where it is mounted
};

// Reads a line of mountinfo that is a mount of that hierarchy:
//     35 31 0:32 /top /place rw,relatime shared:9 - cgroup cgroup rw,memory
bool is_mount_of(string_view line, Version version, string_view controller, Mount& mount) {
    const auto dash = line.find(" - ");
    if (dash == string_view::npos) return false;
    string_view behind = line.substr(dash + 3);
    const string_view type = take(behind, ' ');
    if (type != (version == Version::two ? "cgroup2" : "cgroup")) return false;
    take(behind, ' ');  // the source
    if (version == Version::one && !lists(behind, controller)) return false;
    for (int field = 0; field < 3; ++field) take(line, ' ');
    return mount.top.assign_escaped(take(line, ' ')) && mount.place.assign_escaped(take(line, ' '));
}

bool goes_up(string_view path) {
    for (path.remove_prefix(std::min<std::size_t>(1, path.size())); !path.empty();) {
        if (take(path, '/') == "..") return true;
    }
    return false;
}

// Whether `group` is `top` or below it; `below` is then the path from there, or empty.
bool is_below(string_view group, string_view top, string_view& below) {
    if (top == "/") top = {};
    if (group.substr(0, top.size()) != top) return false;
    below = group.substr(top.size());
    if (below == "/") below = {};
    return (below.empty() || below.front() == '/') && !goes_up(below);
}

// Calls visit(folder) for a group's folder and the folders above it, up to the mount's own, the
// first `top` characters.
template <class Visit>
void visit_upwards(Path& folder, std::size_t top, const Visit& visit) {
    for (;;) {
        visit(folder);
        const auto slash = folder.view().rfind('/');
        if (folder.view().size() <= top || slash == string_view::npos) return;
        folder.cut(std::max(top, slash));
    }
}

// Calls visit(folder) for the process's group in the hierarchy of a controller, and for the groups
// above it, as far as a mount shows them.
template <class Visit>
void for_each_group(const char* groups, const char* mounts, Version version, string_view controller,
                    const Visit& visit) {
    Path group;
    if (!find_group(groups, version, controller, group)) return;
    bool found = false;
    // A mount whose top is not the name of a group above is read only if there is no other. Its top
    // is then the container's group, which has another name inside than outside; which of the
    // groups below is the process's cannot be known.
    for (const bool by_name : {true, false}) {
        if (found || (!by_name && goes_up(group.view()))) return;
        Lines lines(mounts);
        Mount mount;
        for (string_view line; lines.next(line);) {
            if (!is_mount_of(line, version, controller, mount)) continue;
            string_view below;
            if (is_below(group.view(), mount.top.view(), below) != by_name) continue;
            found = true;
            const std::size_t top = mount.place.view().size();
            if (by_name && !mount.place.append(below)) continue;
            visit_upwards(mount.place, top, visit);
        }
    }
}

// --- limits --------------------------------------------------------------------------------------

// The first line of folder/name, kept in `buffer`; empty where there is none.
template <std::size_t N>
string_view read_knob(Path& folder, string_view name, char (&buffer)[N]) {
    const std::size_t size = folder.view().size();
    std::size_t got = 0;
    if (folder.append("/") && folder.append(name)) {
        const int file = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            const ssize_t bytes = read(file, buffer, N - 1);
            got = bytes > 0 ? static_cast<std::size_t>(bytes) : 0;
            close(file);
        }
    }
    folder.cut(size);
    buffer[got] = '\0';
    string_view text(buffer, got);
    return take(text, '\n');
}

// Takes a number of 0 or more from the beginning of the text; false without ("max", -1).
bool take_number(string_view& text, std::uint64_t& number) {
    std::uint64_t value = 0;
    std::size_t digits = 0;
    for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
        const auto digit = static_cast<std::uint64_t>(text[digits] - '0');
        if (__builtin_mul_overflow(value, 10U, &value) ||
            __builtin_add_overflow(value, digit, &value)) {
            return false;
        }
    }
    if (digits == 0) return false;
    number = value;
    text.remove_prefix(digits);
    if (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    return true;
}

// In version 1 a number close to 2^63 means no limit.
constexpr std::uint64_t kNoMemoryLimit = std::uint64_t{1} << 62;

void lower(std::size_t& limit, Path& folder, string_view name) {
    char buffer[64];
    string_view text = read_knob(folder, name, buffer);
    std::uint64_t bytes = 0;
    if (take_number(text, bytes) && bytes < kNoMemoryLimit) {
        limit = std::min(limit, static_cast<std::size_t>(bytes));
    }
}

std::size_t memory_limit(const char* groups, const char* mounts) {
    std::size_t limit = ControlLimits{}.memory_bytes;
    for_each_group(groups, mounts, Version::two, "memory", [&](Path& folder) {
        lower(limit, folder, "memory.max");
        lower(limit, folder, "memory.high");  // above it, the system reclaims memory
    });
    for_each_group(groups, mounts, Version::one, "memory",
                   [&](Path& folder) { lower(limit, folder, "memory.limit_in_bytes"); });
    return limit;
}

double cpu_quota(const char* groups, const char* mounts) {
    double cores = ControlLimits{}.cores;
    const auto lower_to = [&](std::uint64_t quota, std::uint64_t period) {
        if (quota > 0 && period > 0) {
            cores = std::min(cores, static_cast<double>(quota) / static_cast<double>(period));
        }
    };
    for_each_group(groups, mounts, Version::two, "cpu", [&](Path& folder) {
        char buffer[64];
        string_view text = read_knob(folder, "cpu.max", buffer);  // "50000 100000", "max 100000"
        std::uint64_t quota = 0, period = 0;
        if (take_number(text, quota) && take_number(text, period)) lower_to(quota, period);
    });
    for_each_group(groups, mounts, Version::one, "cpu", [&](Path& folder) {
        char buffer[64], other[64];
        string_view first = read_knob(folder, "cpu.cfs_quota_us", buffer);  // -1: no limit
        string_view second = read_knob(folder, "cpu.cfs_period_us", other);
        std::uint64_t quota = 0, period = 0;
        if (take_number(first, quota) && take_number(second, period)) lower_to(quota, period);
    });
    return cores;
}

std::uint64_t throttled_periods(const char* groups, const char* mounts) {
    std::uint64_t sum = 0;
    const auto add = [&](Path& folder) {
        const std::size_t size = folder.view().size();
        if (folder.append("/cpu.stat")) {
            Lines lines(folder.c_str());
            for (string_view line; lines.next(line);) {
                std::uint64_t periods = 0;
                if (take(line, ' ') == "nr_throttled" && take_number(line, periods)) sum += periods;
            }
        }
        folder.cut(size);
    };
    for_each_group(groups, mounts, Version::two, "cpu", add);
    for_each_group(groups, mounts, Version::one, "cpu", add);
    return sum;
}

}  // namespace

std::size_t memory_limit() { return memory_limit(kGroups, kMounts); }
double cpu_quota() { return cpu_quota(kGroups, kMounts); }
std::uint64_t throttled_periods() { return throttled_periods(kGroups, kMounts); }

ControlLimits control_limits(const char* groups, const char* mounts) {
    return {memory_limit(groups, mounts), cpu_quota(groups, mounts),
            throttled_periods(groups, mounts)};
}

}  // namespace bnext::cpu
