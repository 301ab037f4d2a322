#include "cpu/team_size.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <limits>

#include "cpu/control_group.hpp"
#include "cpu/openmp.hpp"
#include "cpu/team_accounts.hpp"
#if defined(__linux__)
#include <sched.h>
#endif

namespace bnext::cpu {
namespace {

constexpr Index kBurstBytes = 8 << 20;            // arrays from here on take a millisecond and more
constexpr Nanoseconds kQuotaAge = 1'000'000'000;  // after which the quota is read again
// A spent quota stops the process for longer than this.
constexpr Nanoseconds kShortestStop = 1'000'000;

std::atomic<int> requested{0};
std::atomic<bool> fixed{false};
std::atomic<int> regions_in_use{0};
std::atomic<std::int64_t> regions{0};

std::atomic<std::int64_t> lost_regions{0};
std::atomic<Nanoseconds> lost_time{0};

// The account of calls over less than 1 MiB.
Debt& debt() {
    static Debt all;
    return all;
}

// The accounts of calls over less than 8 MiB, less than 64 MiB, and more.
Trials& trials_of(Index bytes) {
    static std::array<Trials, 3> all;
    return all[bytes >> 23 == 0 ? 0 : (bytes >> 26 == 0 ? 1 : 2)];
}

// Processors that the calling thread may run on, or `otherwise` where the system does not tell.
int allowed_processors(int otherwise) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
    return otherwise;
}

// The cores that control groups grant, and whether the process has lately spent its quota.
struct Quota {
    double cores;
    bool spent;
};

// Reading the files takes as long as a region, so it is done once a second.
Quota recent_quota() {
    static std::atomic<double> cores{std::numeric_limits<double>::infinity()};
    static std::atomic<bool> spent{false};
    static std::atomic<std::uint64_t> throttled{std::numeric_limits<std::uint64_t>::max()};
    static std::atomic<Nanoseconds> next{0};
    const Nanoseconds time = now();
    if (Nanoseconds due = next.load(std::memory_order_relaxed);
        time >= due && next.compare_exchange_strong(due, time + kQuotaAge)) {
        const ControlLimits limits = control_limits();
        cores.store(limits.cores, std::memory_order_relaxed);
        // (At first there is nothing to compare with; groups may have been spent before.)
        const std::uint64_t before =
            throttled.exchange(limits.throttled_periods, std::memory_order_relaxed);
        spent.store(limits.throttled_periods > before, std::memory_order_relaxed);
    }
    return {cores.load(std::memory_order_relaxed), spent.load(std::memory_order_relaxed)};
}

// Whether the process has spent its quota since the last call of this function. All its threads
// then stood still, in a team of any size.
bool has_stood_still() {
    static std::atomic<std::uint64_t> known{0};
    const std::uint64_t periods = control_limits().throttled_periods;
    return known.exchange(periods, std::memory_order_relaxed) != periods;
}

}  // namespace

Nanoseconds now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

int num_threads() {
    if (is_forked_child()) return 1;
    const int n = requested.load(std::memory_order_relaxed);
    return std::max(n > 0 && openmp_version() != nullptr ? n : openmp_max_threads(), 1);
}

void set_num_threads(int n) { requested = n; }

void fix_team(bool wanted) { fixed = wanted; }

int free_threads(int limit, Index bytes) {
    if (limit <= 1 || fixed) return limit;
    int threads = std::min(limit, allowed_processors(limit));
    const Quota quota = recent_quota();
    if (bytes < kBurstBytes || quota.spent) {
        const double granted = std::ceil(quota.cores);
        if (granted < threads) threads = static_cast<int>(granted);
    }
    threads /= 1 + regions_in_use.load(std::memory_order_relaxed);
    if (threads <= 1) return 1;
    return is_tried(bytes) ? trials_of(bytes).most(threads) : debt().most(threads, now);
}

Nanoseconds processor_time() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    std::timespec time{};
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) {
        return Nanoseconds{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
    }
#endif
    return now();
}

RegionInUse::RegionInUse(int threads, Index bytes)
    : threads_(threads), bytes_(bytes), begin_(now()) {
    if (threads == 1) return;
    regions_in_use.fetch_add(1, std::memory_order_relaxed);
    regions.fetch_add(1, std::memory_order_relaxed);
}

RegionInUse::~RegionInUse() {
    if (threads_ > 1) regions_in_use.fetch_sub(1, std::memory_order_relaxed);
    if (ended_ == 0) return;  // OpenMP gave one thread
    const Nanoseconds end = now();
    const Nanoseconds took = end - begin_;
    const Nanoseconds all_waited = (started_ - begin_) + waited_ + (end - ended_);
    const Nanoseconds lost = all_waited - (threads_ - 1) * (took - all_waited);
    const Nanoseconds stopped = is_tried(bytes_) ? took - worked_ : lost;
    if (stopped > kShortestStop && recent_quota().cores < num_threads() && has_stood_still())
        return;
    if (lost > 0 && threads_ > 1) {
        lost_regions.fetch_add(1, std::memory_order_relaxed);
        lost_time.fetch_add(lost, std::memory_order_relaxed);
    }
    if (fixed) return;
    if (is_tried(bytes_)) {
        trials_of(bytes_).add(threads_, took, worked_, end);
    } else {
        debt().add(threads_, lost, end);
    }
}

TeamFigures team_figures() {
    const int limit = num_threads();
    return {limit,
            allowed_processors(limit),
            recent_quota().cores,
            free_threads(limit, 0),
            fixed,
            regions,
            lost_regions,
            lost_time};
}

}  // namespace bnext::cpu
