#include "cpu/team_size.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <mutex>

#include "cpu/control_group.hpp"
#include "cpu/openmp.hpp"
#if defined(__linux__)
#include <sched.h>
#endif

namespace bnext::cpu {
namespace {

// Once in a while a member is late on a free machine too: that much is forgotten at once. Calls
// that last as long as a time slice gain or lose one by chance, and lose in earnest after some of
// them.
constexpr Nanoseconds kTolerated = 200'000;
constexpr Nanoseconds kToleratedOfLarge = 400'000'000;
constexpr Nanoseconds kMostCredit = 5'000'000;    // of what regions gained, kept against losses
constexpr double kPaidBack = 0.02;                // of the time that passes
constexpr Nanoseconds kQuotaAge = 1'000'000'000;  // after which the quota is read again
constexpr Index kBurstBytes = 8 << 20;            // arrays from here on take a millisecond and more
// A shorter wait is not looked into; where a quota is spent, the process stands still for longer.
constexpr Nanoseconds kShortestStop = 1'000'000;

std::atomic<int> requested{0};
std::atomic<bool> fixed{false};
std::atomic<int> regions_in_use{0};
std::atomic<std::int64_t> regions{0};

class Account {
public:
    explicit Account(Nanoseconds tolerated) : tolerated_(tolerated) {}

    // `lost` is negative where a region gained.
    void add(Nanoseconds lost, int threads) {
        const std::lock_guard lock(mutex_);
        pay_back();
        owed_ = std::max(owed_ + static_cast<double>(lost), -static_cast<double>(kMostCredit));
        if (lost > 0) {
            lost_ += lost;
            ++lost_regions_;
        }
        if (lost > 0 && owed_ > static_cast<double>(tolerated_)) {
            most_.store(std::max(threads / 2, 1), std::memory_order_relaxed);
        }
    }

    // The largest team for now, of at most `limit`.
    int most(int limit) {
        if (most_.load(std::memory_order_relaxed) >= limit) return limit;
        const std::lock_guard lock(mutex_);
        pay_back();
        const int most = most_.load(std::memory_order_relaxed);
        if (owed_ > 0) return std::min(most, limit);
        const int doubled = std::min(2 * most, limit);
        most_.store(doubled < limit ? doubled : kAny, std::memory_order_relaxed);
        return doubled;
    }

    void report(TeamFigures& figures) {
        const std::lock_guard lock(mutex_);
        figures.lost += lost_;
        figures.lost_regions += lost_regions_;
    }

private:
    static constexpr int kAny = 1 << 20;

    void pay_back() {
        const Nanoseconds time = now();
        const double paid = kPaidBack * static_cast<double>(time - paid_at_);
        if (owed_ > 0) owed_ = std::max(owed_ - paid, 0.0);
        paid_at_ = time;
    }

    const Nanoseconds tolerated_;
    std::mutex mutex_;
    std::atomic<int> most_{kAny};
    double owed_ = 0;
    Nanoseconds paid_at_ = now();
    Nanoseconds lost_ = 0;
    std::int64_t lost_regions_ = 0;
};

// By the size of the arrays: below 1 MiB, 8 MiB, 64 MiB, and above.
std::array<Account, 4>& accounts() {
    static std::array<Account, 4> all{Account(kTolerated), Account(kTolerated),
                                      Account(kToleratedOfLarge), Account(kToleratedOfLarge)};
    return all;
}

Account& account_of(Index bytes) {
    std::size_t i = 0;
    for (Index size = bytes >> 20; size > 0 && i + 1 < accounts().size(); size >>= 3) ++i;
    return accounts()[i];
}

// Processors that the calling thread may run on, or `otherwise` where that cannot be known.
int allowed_processors(int otherwise) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
    return otherwise;
}

// The cores that control groups grant, read again once in a while: it takes as long as a region.
double recent_quota() {
    static std::atomic<double> quota{std::numeric_limits<double>::infinity()};
    static std::atomic<Nanoseconds> next{0};
    const Nanoseconds time = now();
    if (Nanoseconds due = next.load(std::memory_order_relaxed);
        time >= due && next.compare_exchange_strong(due, time + kQuotaAge)) {
        quota.store(cpu_quota(), std::memory_order_relaxed);
    }
    return quota.load(std::memory_order_relaxed);
}

// Whether the process has spent its quota since this was asked last. It then stood still with all
// of its threads, which a smaller team would not have changed.
bool has_stood_still() {
    static std::atomic<std::uint64_t> known{0};
    const std::uint64_t periods = throttled_periods();
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

void set_num_threads(int n) { requested.store(n, std::memory_order_relaxed); }

void fix_team(bool wanted) { fixed.store(wanted, std::memory_order_relaxed); }

int free_threads(int limit, Index bytes) {
    if (limit <= 1 || fixed.load(std::memory_order_relaxed)) return limit;
    int threads = std::min(limit, allowed_processors(limit));
    if (bytes < kBurstBytes) {
        const double granted = std::ceil(recent_quota());
        if (granted < threads) threads = static_cast<int>(granted);
    }
    threads /= 1 + regions_in_use.load(std::memory_order_relaxed);
    return threads <= 1 ? 1 : account_of(bytes).most(threads);
}

RegionInUse::RegionInUse(int threads, Index bytes)
    : threads_(threads), bytes_(bytes), begin_(now()) {
    regions_in_use.fetch_add(1, std::memory_order_relaxed);
    regions.fetch_add(1, std::memory_order_relaxed);
}

RegionInUse::~RegionInUse() {
    regions_in_use.fetch_sub(1, std::memory_order_relaxed);
    if (finished == 0) return;  // OpenMP gave one thread
    const Nanoseconds end = now();
    const Nanoseconds all_waited = (started - begin_) + waited + (end - finished);
    const Nanoseconds done = (end - begin_) - all_waited;
    const Nanoseconds lost = all_waited - (threads_ - 1) * done;
    if (lost > kShortestStop && recent_quota() < threads_ && has_stood_still()) return;
    account_of(bytes_).add(lost, threads_);
}

TeamFigures team_figures() {
    TeamFigures figures{};
    figures.limit = num_threads();
    figures.allowed = allowed_processors(figures.limit);
    figures.quota = recent_quota();
    figures.now = free_threads(figures.limit, 0);
    figures.fixed = fixed.load(std::memory_order_relaxed);
    figures.regions = regions.load(std::memory_order_relaxed);
    for (Account& account : accounts()) account.report(figures);
    return figures;
}

}  // namespace bnext::cpu
