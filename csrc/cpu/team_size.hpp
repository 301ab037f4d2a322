// How many threads a call gets: no more than it may, and no more than the machine has free.
//
// A member of a team that the system does not let run makes the others wait for a time slice, some
// milliseconds; a call of a quarter of a millisecond then takes ten. No bit of a result depends on
// the size of a team, so it follows what is there:
//
// - the processors that the calling thread may run on now (its affinity mask);
// - for calls below a millisecond, the cores that the process's control groups grant (their CPU
//   quota, rounded up);
// - other calls of this process that are in a region at the moment;
// - how long earlier regions have waited for their members.
//
// A quota is a budget for each tenth of a second: a longer call ends sooner with more threads and
// stands still for longer afterwards, and short calls lose by waiting for each other. With half a
// core, 25 MB took the same time on average with one thread and with two, and half of it in the
// median; 0.5 MB took 1.4 to 1.6 times as long with two.
//
// Calls of about the same size share what is remembered: where large calls gain, small ones may
// lose a hundred times their own time. cpu/team_accounts.hpp has the rules.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/team_accounts.hpp"

namespace bnext::cpu {

// The limit: what set_num_threads said, else OpenMP's own default; 1 in a forked child whose
// threads did not survive the fork.
int num_threads();
void set_num_threads(int n);  // 0: back to the default

// How many of `limit` threads a region over arrays of so many bytes should have now. At least 1.
int free_threads(int limit, Index bytes);

// For tests, and to measure a number of threads: teams are as large as the limit, whatever waits.
void fix_team(bool fixed);

Nanoseconds now();
Nanoseconds processor_time();  // of the calling thread

// Whether teams for arrays of so many bytes are sized by Trials: such calls take 50 microseconds
// and more, beside which it is nothing to ask for the processor time.
constexpr bool is_tried(Index bytes) { return bytes >= Index{1} << 20; }

// A region over arrays of so many bytes, while it lives.
class RegionInUse {
public:
    RegionInUse(int threads, Index bytes);
    ~RegionInUse();
    RegionInUse(const RegionInUse&) = delete;
    RegionInUse& operator=(const RegionInUse&) = delete;

    // The first member says when its part begins and ends, how long it waited for the others, and
    // when all of them had ended. Before the first and after the last OpenMP waits for threads.
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
    Nanoseconds worked_ = 0;  // of processor time; of long calls only
};

struct TeamFigures {
    int limit;     // num_threads()
    int allowed;   // processors that the calling thread may run on
    double quota;  // cores that control groups grant; infinite: no limit
    int now;       // size of a team that started now
    bool fixed;    // by fix_team
    std::int64_t regions;
    std::int64_t lost_regions;  // which took longer than one thread would have
    Nanoseconds lost;           // by how much, in all
};
TeamFigures team_figures();

}  // namespace bnext::cpu
