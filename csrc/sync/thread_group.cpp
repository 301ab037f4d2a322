#include "sync/thread_group.hpp"

#include <algorithm>
#include <thread>

#include "core/error.hpp"
#include "core/float_mode.hpp"
#include "core/moments.hpp"
#include "core/statistics.hpp"

namespace bnext::sync {
namespace {

// A waiting member first looks again and again, and lets others have the core in between: to be put
// to sleep and woken takes longer than most waits. 4 threads on 2 cores, 256 channels, from Python:
// 12 to 15 microseconds per exchange instead of 42. With many more threads than cores they only
// keep each other from working.
constexpr std::chrono::microseconds kLook{50};
constexpr Index kLookPerCore = 4;

// The fields of a header, each in words.
std::array<std::string, 5> words_of(const Header& header) {
    return {header.layer < 0 ? "no layer" : concat("layer ", header.layer),
            concat("step ", header.step), name_of(header.direction),
            concat(header.channels, " channels"), name_of(header.dtype)};
}

// Runs `action` at the end of a block, however the block is left.
template <class F>
struct AtEnd {
    F action;
    ~AtEnd() { action(); }
};
template <class F>
AtEnd(F) -> AtEnd<F>;

}  // namespace

std::string difference(const Header& got, const Header& expected) {
    std::string text;
    const auto one = words_of(got), other = words_of(expected);
    for (std::size_t i = 0; i < one.size(); ++i) {
        if (one[i] == other[i]) continue;
        text += concat(text.empty() ? "" : ", ", one[i], " instead of ", other[i]);
    }
    return text;
}

ThreadGroup::ThreadGroup(Index size, double timeout_seconds)
    : timeout_(timeout_seconds),
      looks_(size <= kLookPerCore * static_cast<Index>(std::thread::hardware_concurrency())) {
    BNEXT_CHECK(size >= 1, "size: expected an integer >= 1, got ", size);
    // A year: what clocks can add to a point in time without overflow.
    BNEXT_CHECK(timeout_ > 0 && timeout_ <= 3.2e7,
                "timeout: expected seconds above 0 and below a year, got ", timeout_);
    slots_.resize(static_cast<std::size_t>(size));
}

std::string ThreadGroup::broken() const {
    const std::lock_guard lock(mutex_);
    return broken_ ? reason_ : std::string();
}

ThreadGroup::Slot& ThreadGroup::slot_of(Index rank) {
    BNEXT_CHECK(rank >= 0 && rank < size(), "rank: expected an integer from 0 to ", size() - 1,
                ", got ", rank);
    return slots_[static_cast<std::size_t>(rank)];
}

Ticket ThreadGroup::enter(Index rank) {
    Slot& slot = slot_of(rank);
    const std::lock_guard lock(mutex_);
    if (broken_) throw_failure();
    BNEXT_CHECK(slot.ticket == 0, "rank: expected one that is free, got ", rank,
                ", which another thread has");
    ++slot.entered;
    slot.ticket = ++tickets_;
    return slot.ticket;
}

void ThreadGroup::leave(Index rank, Ticket ticket) {
    Slot& slot = slot_of(rank);
    const std::lock_guard lock(mutex_);
    if (slot.ticket != ticket) return;  // of a time before a reset
    slot.ticket = 0;
    slot.finished = slot.entered;
    // Tasks of the next step may have begun, and wait for a task of this rank that has not: only
    // members that have entered no more often than this one wait in vain.
    const bool in_vain = std::ranges::any_of(
        slots_, [&](const Slot& other) { return other.arrived && other.entered <= slot.finished; });
    if (in_vain) break_group(rank, concat("rank ", rank, " has left the group"));
}

void ThreadGroup::fail(Index rank, Ticket ticket, const std::string& message) {
    const std::lock_guard lock(mutex_);
    if (rank >= 0 && slot_of(rank).ticket != ticket) return;
    break_group(rank, rank < 0 ? message : concat("rank ", rank, " ", message));
}

void ThreadGroup::reset() {
    {
        const std::lock_guard lock(mutex_);
        break_group(-1, "the group was reset");
    }
    // All of them have been woken, and none will stay.
    while (inside_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
    const std::lock_guard lock(mutex_);
    std::ranges::fill(slots_, Slot{});
    arrived_ = 0;
    broken_ = false;
}

// The first fault stays: others are what follows from it.
void ThreadGroup::break_group(Index rank, const std::string& reason) {
    if (!broken_) {
        broken_rank_ = rank;
        reason_ = reason;
        broken_ = true;
    }
    wake_all();
}

void ThreadGroup::wake_all() {
    // A member that has looked, and found that it has to wait, is asleep once this is locked.
    {
        const std::lock_guard asleep(sleep_);
    }
    wake_.notify_all();
}

void ThreadGroup::throw_failure() const { throw GroupFailure(broken_rank_, reason_); }

void ThreadGroup::break_and_throw(Index rank, const std::string& reason) {
    break_group(rank, reason);
    throw_failure();
}

void ThreadGroup::check_header(Index rank, const Contribution& brought) {
    if (arrived_ == 0) {
        first_arrived_ = rank;
        sharing_ = true;
        return;
    }
    const auto differs = [&](Index other, const std::string& text) {
        break_and_throw(rank, concat("rank ", rank, " differs from rank ", other, ": ", text));
    };
    const Header& expected = slot_of(first_arrived_).brought.header;
    if (brought.header != expected) differs(first_arrived_, difference(brought.header, expected));
    // All members share one layer object, or each has a replica: the second to arrive decides.
    const auto arrived_with = [&](bool same) {
        return std::ranges::find_if(slots_, [&](const Slot& slot) {
            return slot.arrived && (slot.brought.owner == brought.owner) == same;
        });
    };
    const bool known = arrived_with(true) != slots_.end();
    if (arrived_ == 1) sharing_ = known;
    if (known != sharing_) {
        differs(arrived_with(false) - slots_.begin(),
                "another layer, where all share one or each has a replica");
    }
}

void ThreadGroup::check_presence(Index rank) {
    const Index entered = slot_of(rank).entered;
    for (Index other = 0; other < size(); ++other) {
        const Slot& slot = slot_of(other);
        if (!slot.arrived && slot.ticket == 0 && slot.finished >= entered) {
            break_and_throw(other, concat("rank ", other, " has left the group"));
        }
    }
}

Merged ThreadGroup::exchange(Index rank, Ticket ticket, const Contribution& brought,
                             const Rows<double>& into, Waiter& waiter) {
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(timeout_));
    Slot& slot = slot_of(rank);
    ++inside_;
    const AtEnd outside{[this] { --inside_; }};
    std::unique_lock lock(mutex_);
    if (ticket == 0 || slot.ticket != ticket) {
        throw GroupFailure(rank, concat("rank ", rank, " is no member since a reset"));
    }
    if (broken_) throw_failure();
    check_header(rank, brought);
    check_presence(rank);
    slot.brought = brought;
    slot.arrived = true;
    if (++arrived_ == size()) {
        merge_all();
        lock.unlock();
        wake_all();
    } else {
        const Index generation = generation_;
        lock.unlock();
        wait(rank, generation, deadline, waiter);
    }
    // No member writes these before this one brings something again.
    for (std::size_t row = 0; row < into.size(); ++row) {
        if (into[row] == nullptr) continue;
        std::copy_n(merged_rows_[row].begin(), brought.header.channels, into[row]);
    }
    return merged_;
}

void ThreadGroup::wait(Index rank, Index generation, Clock::time_point deadline, Waiter& waiter) {
    waiter.begin();
    const AtEnd back{[&] { waiter.end(); }};
    const auto over = [&] { return generation_ != generation || broken_; };
    if (looks_) {
        const auto until = Clock::now() + kLook;
        while (!over() && Clock::now() < until) std::this_thread::yield();
    }
    bool polls = true;
    while (!over() && Clock::now() < deadline) {
        const auto until = polls ? std::min(deadline, Clock::now() + kPoll) : deadline;
        {
            std::unique_lock asleep(sleep_);
            wake_.wait_until(asleep, until, over);
        }
        if (polls && !over()) polls = poll(rank, generation, waiter);
    }
    // What was merged is good, whatever broke afterwards: this member is through.
    if (generation_ != generation) return;
    const std::lock_guard lock(mutex_);
    if (generation_ != generation) return;
    if (broken_) throw_failure();
    const auto [first, names] = missing();
    break_and_throw(first, concat("time-out after ", timeout_, " s: ", names, " missing"));
}

bool ThreadGroup::poll(Index rank, Index generation, Waiter& waiter) {
    try {
        return waiter.poll();
    } catch (...) {
        // Its rows are not to be read any more.
        const std::lock_guard lock(mutex_);
        if (generation_ == generation) {
            break_group(rank, concat("rank ", rank, " was interrupted"));
        }
        throw;
    }
}

std::pair<Index, std::string> ThreadGroup::missing() const {
    Index first = -1;
    Index count = 0;
    std::string names;
    for (std::size_t r = 0; r < slots_.size(); ++r) {
        if (slots_[r].arrived) continue;
        if (count++ == 0) first = static_cast<Index>(r);
        names += concat(names.empty() ? "" : ", ", r);
    }
    return {first, concat(count == 1 ? "rank " : "ranks ", names, count == 1 ? " is" : " are")};
}

void ThreadGroup::merge_all() {
    const Header& header = slots_.front().brought.header;
    const auto channels = static_cast<std::size_t>(header.channels);
    for (std::vector<double>& row : merged_rows_) {
        if (row.size() < channels) row.resize(channels);
        std::fill_n(row.begin(), channels, 0.0);
    }
    merged_ = {0, generation_ + 1, sharing_};
    if (header.direction == Direction::forward) {
        merge_moments(channels);
    } else {
        add_sums(channels);
    }
    for (Slot& slot : slots_) slot.arrived = false;
    arrived_ = 0;
    generation_ = merged_.generation;  // last: members that spin look at nothing else
}

// Means are merged relative to the first one: rounding errors are then as small as the differences
// of the means. Means of float64 data have a low part, and so has the merged mean; others have bits
// to spare.
void ThreadGroup::merge_moments(std::size_t channels) {
    const FloatMode mode;  // of the calling thread, which is any member's
    auto& [mean, m2, mean_low] = merged_rows_;
    const double* pilot = nullptr;
    for (const Slot& slot : slots_) {
        const Contribution& more = slot.brought;
        if (more.count == 0) continue;
        const auto [more_mean, more_m2, more_low] = more.rows;
        if (pilot == nullptr) {
            pilot = more_mean;
            std::copy_n(more_m2, channels, m2.begin());
            if (more_low != nullptr) std::copy_n(more_low, channels, mean.begin());
        } else {
            const MergeShares shares(merged_.count, more.count);
            for (std::size_t c = 0; c < channels; ++c) {
                const double low = more_low == nullptr ? 0.0 : more_low[c];
                merge(mean[c], m2[c], (more_mean[c] - pilot[c]) + low, more_m2[c], shares);
            }
        }
        merged_.count += more.count;
    }
    if (pilot == nullptr) return;
    const bool has_low = slots_.front().brought.header.dtype == DType::float64;
    for (std::size_t c = 0; c < channels; ++c) {
        const HighLow whole = two_sum(pilot[c], mean[c]);
        mean[c] = whole.high;
        mean_low[c] = has_low ? whole.low : 0.0;
    }
}

void ThreadGroup::add_sums(std::size_t channels) {
    for (const Slot& slot : slots_) {
        const Contribution& more = slot.brought;
        if (more.count == 0) continue;
        merged_.count += more.count;
        for (std::size_t row = 0; row < 2; ++row) {
            for (std::size_t c = 0; c < channels; ++c) merged_rows_[row][c] += more.rows[row][c];
        }
    }
}

}  // namespace bnext::sync
