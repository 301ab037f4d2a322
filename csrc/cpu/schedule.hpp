// Schedule: which thread takes which piece of a Problem, in which order, with which stores. It
// changes no bit, so the machine and its threads may decide.
#pragma once

#include "core/cell_problem.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/machine.hpp"

namespace bnext::cpu {

enum class Schedule : std::uint8_t {
    serial,    // one thread, block after block of channels; a fork would cost more
    channels,  // a task is both phases of a block of channels: a cache has the slab for the second
    split,     // a task is a chunk of a block; a barrier between the phases
};

constexpr const char* name_of(Schedule schedule) {
    switch (schedule) {
        case Schedule::serial: return "serial";
        case Schedule::channels: return "channels";
        case Schedule::split: return "split";
    }
    return "?";
}

constexpr Index kMaxBlock = 256;  // channels of a block: a task keeps their sums on its stack
// How many coefficients are repeated behind the last: a line of the smallest elements, and two
// packs.
constexpr Index kWrap = 64;

struct Plan {
    Tiling tiling;
    Schedule schedule;
    Index block;  // channels per task
    Index blocks;
    bool streams_output;  // non-temporal stores
    bool prefetches;      // under `channels`: the next block, while this one is written
    Index together = 1;   // channels that are finished together: of a block, and of a share
    // The columns of all channels, where they are one block whose coefficients are repeated behind
    // the last (coefficients.hpp); else 0.
    Index wrapped = 0;
};

// The work of a call: how many arrays of the problem's size it moves, in how many phases; and how
// many of them are outputs, where blocks of channels do without room for outputs that are streamed.
struct Work {
    int operands;
    int phases;
    int outputs = 0;
};

// Takes the first schedule of a best-first list that accepts the problem, or the forced one. More
// channels `together` than a block has room for are always split.
Plan make_plan(const Problem& problem, const Work& work, const Machine& machine,
               Index together = 1);

// The plan of a norm of cells, both phases of it: the tiling, the block and the number of blocks
// are an example's. A block has whole slabs. Under `channels`, examples times blocks are the tasks;
// under `split`, the threads share each example.
Plan make_plan(const CellProblem& problem, const Work& work, const Machine& machine);

// Whether one thread does all of a call of so many elements, on planes or rows that are apart.
bool is_small_work(Index elements, const Work& work);

// Whether an output is written past the caches, by a call whose arrays have so many bytes together.
bool streams_past_caches(const Machine& machine, Index bytes);

// The plan of a call of both phases, for show and for tests.
Plan plan_of(const Problem& problem, int operands);

// Private, for tests and benchmarks: every schedule gives the same bits.
void force_schedule(const Schedule* schedule);  // null: choose

}  // namespace bnext::cpu
