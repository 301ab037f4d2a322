// Accounts of earlier regions, to size the next team: Debt for calls that are short beside a time
// slice of the system, Trials for longer ones. All times are arguments, so that tests can choose
// them.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <mutex>

namespace bnext::cpu {

using Nanoseconds = std::int64_t;

// No bound on the size of a team.
inline constexpr int kAnyTeam = 1 << 20;

// Waiting as a debt. A region that lost time against one thread adds to the debt; a region that
// gained pays back, and so does the passing time, a fiftieth of it. Beyond a tolerated debt teams
// are half as large, and half again with every further loss, down to one; once the debt is paid,
// they double from call to call. In the long run waiting costs about a fiftieth of the time,
// however long other processes take the cores.
class Debt {
public:
    // `lost` is negative where a region gained.
    void add(int threads, Nanoseconds lost, Nanoseconds time) {
        const std::lock_guard lock(mutex_);
        pay_back(time);
        owed_ = std::max(owed_ + static_cast<double>(lost), -kMostCredit);
        if (lost > 0 && owed_ > kTolerated) {
            most_.store(std::max(threads / 2, 1), std::memory_order_relaxed);
        }
    }

    // The largest team allowed now, of at most `limit`.
    int most(int limit, Nanoseconds (*clock)()) {
        if (most_.load(std::memory_order_relaxed) >= limit) return limit;
        const std::lock_guard lock(mutex_);
        pay_back(clock());
        const int most = most_.load(std::memory_order_relaxed);
        if (owed_ > 0) return std::min(most, limit);
        const int doubled = std::min(2 * most, limit);
        most_.store(doubled < limit ? doubled : kAnyTeam, std::memory_order_relaxed);
        return doubled;
    }

private:
    // On a free machine, too, a member is sometimes late by a time slice.
    static constexpr double kTolerated = 5e6;
    static constexpr double kMostCredit = 5e6;  // gains that are kept against later losses
    static constexpr double kPaidBack = 0.02;   // of the time that passes

    void pay_back(Nanoseconds time) {
        const double paid = kPaidBack * static_cast<double>(time - paid_at_);
        if (owed_ > 0) owed_ = std::max(owed_ - paid, 0.0);
        paid_at_ = time;
    }

    std::mutex mutex_;
    std::atomic<int> most_{kAnyTeam};
    double owed_ = 0;
    Nanoseconds paid_at_ = 0;
};

// Sizes of team, compared by their cost: the time that regions took, divided by their work. The
// work is the processor time of a member times the size of the team, whatever the regions computed.
//
// One thread costs 1 on a core of its own, and more beside other programs. A team does not show how
// much more: its members wait for each other asleep, and the scheduler favours threads that have
// slept. A team of n can cost as little as 1/n. If it costs more than the least cost of a team half
// its size, 2/n, some calls try half its size; if it costs more than 1, they try half its size and
// one thread by turns. The smaller size is kept if it is clearly cheaper; later a larger one is
// tried again, and after each attempt in vain twice as late, up to a bound.
//
// Neighbours come and go at once: where the latest calls cost twice as much as those remembered, or
// half as much, the latter are forgotten, and another size may be tried.
class Trials {
public:
    // `worked` is processor time of the first member.
    void add(int threads, Nanoseconds took, Nanoseconds worked, Nanoseconds time) {
        const std::lock_guard lock(mutex_);
        Cost& cost = cost_of(threads);
        const bool is_trial = tried_ > 0 && threads == tried_;
        if (is_trial) trial_took_ += took;
        if (!is_trial || trial_took_ > kUneven) {
            const auto work = static_cast<double>(threads * worked);
            if (cost.add(static_cast<double>(took), work) && tried_ == 0) {
                next_ = time;
                trust_ = kTrust;
            }
        }
        if (is_trial && trial_took_ >= kUneven + kTrial) {
            end_trial(time);
        } else if (tried_ > 0) {
            if (time > next_ + kTrust) stop(time);  // teams have other sizes by now
        } else if (threads <= bound_ && cost.took >= kEvidence && time >= next_) {
            const int limit = limit_.load(std::memory_order_relaxed);
            const bool shrinks = threads > 1 && cost.value() > 2.0 / threads;
            const bool grows = threads < limit;
            if (shrinks && !(grows && shrank_last_)) {
                to_one_ = cost.value() > 1.0 && !to_one_;
                begin_trial(threads, to_one_ ? 1 : threads / 2, time);
            } else if (grows) {
                begin_trial(threads, std::min(2 * threads, limit), time);
            }
        }
    }

    // The largest team allowed now, of at most `limit`.
    int most(int limit) {
        limit_.store(limit, std::memory_order_relaxed);
        return std::min(bound_.load(std::memory_order_relaxed), limit);
    }

private:
    // The length of a trial, after kUneven, in which the scheduler favours threads that have slept;
    static constexpr Nanoseconds kTrial = 100'000'000, kUneven = 20'000'000;
    static constexpr Nanoseconds kTrust = 2'000'000'000;      // and how long its result holds,
    static constexpr Nanoseconds kMostTrust = 8'000'000'000;  // at least and at most.
    static constexpr double kEvidence = 120e6;                // time of a size before a trial
    static constexpr double kRemembered = 600e6, kLatest = 60e6;
    static constexpr double kClearly = 0.8;

    struct Cost {
        double took = 0, work = 0;
        double latest_took = 0, latest_work = 0;

        // Whether it has changed.
        bool add(double took_more, double work_more) {
            took += took_more;
            work += work_more;
            fade(kRemembered);
            latest_took += took_more;
            latest_work += work_more;
            if (latest_took < kLatest) return false;
            const double now = latest_took * work, before = took * latest_work;
            const bool changed = now > 2 * before || 2 * now < before;
            if (changed) {
                took = latest_took;
                work = latest_work;
            }
            latest_took = latest_work = 0;
            return changed;
        }
        void fade(double most) {
            if (took <= most) return;
            work *= most / took;
            took = most;
        }
        [[nodiscard]] double value() const { return work > 0 ? took / work : 1.0; }
    };

    Cost& cost_of(int threads) {
        const auto i = static_cast<std::size_t>(std::bit_width(static_cast<unsigned>(threads)));
        return costs_[std::min(i, costs_.size() - 1)];
    }

    void begin_trial(int threads, int tried, Nanoseconds time) {
        before_ = threads;
        tried_ = tried;
        shrank_last_ = tried < threads;
        trial_took_ = 0;
        cost_of(tried).fade(kEvidence / 2);
        next_ = time;
        bound_.store(tried, std::memory_order_relaxed);
    }
    void end_trial(Nanoseconds time) {
        const int large = std::max(tried_, before_), small = std::min(tried_, before_);
        const bool shrinks = cost_of(small).value() < kClearly * cost_of(large).value();
        const int kept = shrinks ? small : large;
        kept_ = kept < limit_.load(std::memory_order_relaxed) ? kept : kAnyTeam;
        const bool shrank = kept < before_;
        const bool in_vain = tried_ > before_ && kept == before_;
        trust_ = in_vain ? std::min(2 * trust_, kMostTrust) : kTrust;
        stop(time);
        if (shrank) next_ = time;  // the next trial may begin at once
    }
    void stop(Nanoseconds time) {
        tried_ = 0;
        next_ = time + trust_;
        bound_.store(kept_, std::memory_order_relaxed);
    }

    std::mutex mutex_;
    std::atomic<int> limit_{1};
    std::atomic<int> bound_{kAnyTeam};
    std::array<Cost, 16> costs_{};  // by powers of two of the size
    int kept_ = kAnyTeam;
    int tried_ = 0;  // 0: nothing is tried
    int before_ = 0;
    bool shrank_last_ = false;
    bool to_one_ = false;
    Nanoseconds trial_took_ = 0;
    Nanoseconds trust_ = kTrust;
    Nanoseconds next_ = 0;  // no trial begins before
};

}  // namespace bnext::cpu
