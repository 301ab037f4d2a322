// The size of a team: bounded by the limit, and by the processors that are free.
//
// A descheduled member makes its team wait for a time slice, some milliseconds: a call of a quarter
// of a millisecond takes ten. No bit of a result depends on the size of a team. It follows
//
// - the processors that the calling thread may run on now (its affinity mask);
// - the cores that the process's control groups grant (their CPU quota, rounded up); for calls of a
//   millisecond and more, only while the process spends its quota;
// - the other calls of this process that are in a region now;
// - the time that earlier regions waited for their members.
//
// A quota is a budget for each tenth of a second. A process that leaves some of it has a use for
// more threads: its longer calls end sooner. A process that spends it lacks processor time, of
// which two threads together take more than one: with half a core, 25 MB took as long on average
// with two threads as with one where cores were slow, and half as long again where they were fast
// beside the memory. The threads of short calls lose by waiting for each other: 0.5 MB took 1.4
// to 1.6 times as long with two.
//
// Each size of calls has accounts of its own (cpu/team_accounts.hpp): where large calls gain, small
// ones may lose a hundred times their own time.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/team_accounts.hpp"

namespace bnext::cpu {

// The limit: the number given to set_num_threads, else OpenMP's own default; 1 in a forked child
// whose threads did not survive the fork.
int num_threads();
void set_num_threads(int n);  // 0: back to the default

// The size of a team that starts now over arrays of so many bytes: 1 to `limit`.
int free_threads(int limit, Index bytes);

// For tests, and to measure a number of threads: every team is as large as the limit.
void fix_team(bool fixed);

Nanoseconds now();
Nanoseconds processor_time();  // of the calling thread

// Whether Trials size the teams for arrays of so many bytes: such calls take 50 microseconds and
// more, beside which reading the processor time costs nothing.
constexpr bool is_tried(Index bytes) { return bytes >= Index{1} << 20; }

// The account of one region over arrays of so many bytes.
class RegionInUse {
public:
    RegionInUse(int threads, Index bytes);
    ~RegionInUse();
    RegionInUse(const RegionInUse&) = delete;
    RegionInUse& operator=(const RegionInUse&) = delete;

    // The first member reports when its part begins and ends, how long it waited for the others,
    // and when all of them had ended. OpenMP waits for threads before begin_part and after end.
    void begin_part() {
        started_ = now();
        if (is_tried(bytes_)) worked_ = -processor_time();
    }
    void end_part() {
        if (is_tried(bytes_)) worked_ += processor_time();
    }
    void add_wait(Nanoseconds waited) { waited_ += waited; }
    void end() { ended_ = now(); }

private:
    int threads_;
    Index bytes_;
    Nanoseconds begin_;
    Nanoseconds started_ = 0;
    Nanoseconds waited_ = 0;
    Nanoseconds ended_ = 0;
    Nanoseconds worked_ = 0;  // processor time; of long calls only
};

struct TeamFigures {
    int limit;     // num_threads()
    int allowed;   // processors that the calling thread may run on
    double quota;  // cores that control groups grant; infinite: no limit
    int now;       // size of a team that started now
    bool fixed;    // by fix_team
    std::int64_t regions;
    std::int64_t lost_regions;  // that took longer than one thread would have
    Nanoseconds lost;           // the sum of their losses
};
TeamFigures team_figures();

}  // namespace bnext::cpu
