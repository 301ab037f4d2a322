// The barrier of threads that hold parts of one batch: each brings rows of doubles, two or three,
// and waits until all have come; every member gets the merged rows.
//
// Order:   the last to arrive merges, in the order of ranks: the same bits for all, in whatever
//          order they arrive.
// Waiting: awake for some microseconds, unless members are many more than cores, then asleep; for
// no
//          longer than the time-out, and for no member that is known never to come.
// Faults:  break the group: members that wait, and those that come later, get the same reason at
//          once, until reset().
// Memory:  rows are read where their owner, who waits, has them; the merged rows have one buffer,
//          which never shrinks, and is written again only after all members have come back.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.hpp"

namespace bnext::sync {

enum class Direction : std::uint8_t { forward, backward, double_backward };

inline const char* name_of(Direction direction) {
    static constexpr const char* kNames[] = {"forward", "backward", "double_backward"};
    return kNames[static_cast<int>(direction)];
}

// What must agree among members.
struct Header {
    Index layer = -1;  // -1: a call without a layer
    Index step = 0;
    Direction direction = Direction::forward;
    Index channels = 0;
    DType dtype = DType::float32;

    friend bool operator==(const Header&, const Header&) = default;
};

// In what `got` differs from `expected`, in words.
std::string difference(const Header& got, const Header& expected);

// Forward: mean and m2 of `count` values a channel, and of float64 data the mean's low part
// (core/statistics.hpp; null: 0). Otherwise: sums.
template <class T>
using Rows = std::array<T*, 3>;

struct Contribution {
    Header header;
    // Tells layer objects apart: members bring one that they share, or each a replica of its own.
    std::uintptr_t owner = 0;
    double count = 0;  // or the sum of weights; of a count of 0, rows are not looked at
    Rows<const double> rows{};
};

struct Merged {
    double count = 0;
    Index generation = 0;  // which exchange of the group this was
    bool shared = false;   // whether all members brought the same layer object
};

// Why an exchange failed; the same for every member.
struct GroupFailure : std::runtime_error {
    GroupFailure(Index culprit, const std::string& reason)
        : std::runtime_error(reason), rank(culprit) {}

    Index rank;  // of the culprit; -1: no member
};

// The work of a member beside waiting. No function is called with a lock held.
class Waiter {
public:
    Waiter() = default;
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    virtual ~Waiter() = default;

    virtual void begin() {}                // before the wait
    virtual void end() noexcept {}         // after it, also where it failed
    virtual bool poll() { return false; }  // every kPoll; may throw. false: not again
};

using Ticket = std::uint64_t;

class ThreadGroup {
public:
    static constexpr std::chrono::milliseconds kPoll{50};

    ThreadGroup(Index size, double timeout_seconds);

    [[nodiscard]] Index size() const { return static_cast<Index>(slots_.size()); }
    [[nodiscard]] double timeout() const { return timeout_; }
    [[nodiscard]] std::string broken() const;  // the reason; empty if the group works

    // The calling thread becomes the member `rank` until leave(). Throws GroupFailure if the group
    // is broken, Error if the rank does not exist or is taken.
    Ticket enter(Index rank);
    // A member leaves in good order. Members that wait for it, having entered no more often, are
    // told; so all ranks are to be entered equally often.
    void leave(Index rank, Ticket ticket);
    // A member announces that it cannot go on; rank -1: the caller is no member.
    void fail(Index rank, Ticket ticket, const std::string& message);
    // Forgets all members and the fault. Those still waiting get an error.
    void reset();

    // Brings rows of header.channels each, and copies the merged ones to `into`, but for null.
    Merged exchange(Index rank, Ticket ticket, const Contribution& brought,
                    const Rows<double>& into, Waiter& waiter);

private:
    struct Slot {
        Ticket ticket = 0;   // of the thread that has this rank; 0: none
        Index entered = 0;   // how often the rank was taken
        Index finished = 0;  // how many of these have ended
        bool arrived = false;
        Contribution brought;
    };
    using Clock = std::chrono::steady_clock;

    Slot& slot_of(Index rank);
    void wake_all();
    void break_group(Index rank, const std::string& reason);
    [[noreturn]] void throw_failure() const;
    [[noreturn]] void break_and_throw(Index rank, const std::string& reason);
    void check_header(Index rank, const Contribution& brought);
    void check_presence(Index rank);
    void wait(Index rank, Index generation, Clock::time_point deadline, Waiter& waiter);
    bool poll(Index rank, Index generation, Waiter& waiter);
    void merge_all();
    void merge_moments(std::size_t channels);
    void add_sums(std::size_t channels);
    // The first rank that has not arrived, and all of them in words.
    [[nodiscard]] std::pair<Index, std::string> missing() const;

    const double timeout_;
    const bool looks_;  // before it sleeps, a member looks whether it has to
    mutable std::mutex mutex_;
    // Sleepers have a lock of their own: while they wake, members come to the next exchange.
    std::mutex sleep_;
    std::condition_variable wake_;
    std::vector<Slot> slots_;
    Index arrived_ = 0;
    Index first_arrived_ = 0;  // the rank that the others are compared with
    bool sharing_ = false;     // whether those that have arrived brought one layer object
    Ticket tickets_ = 0;
    Merged merged_;
    std::array<std::vector<double>, 3> merged_rows_;
    std::atomic<Index> generation_{0};
    std::atomic<bool> broken_{false};
    Index broken_rank_ = -1;
    std::string reason_;
    std::atomic<Index> inside_{0};  // calls of exchange that have not returned
};

}  // namespace bnext::sync
