// Who reads and writes which element: plain functions, the same in kernels and in the tests that
// count every element once.
//
//   unit      V values side by side, read as one access: of one channel where the layout is planar,
//             of V channels where it is interleaved
//   slab      what is normalized together: one channel of a planar array; a group of `columns`
//             units of channels of an interleaved one
//   position  of a unit in its slab's column: outer x (inner / V), or outer x inner
//   part      a run of a slab's positions: what one block has. The parts of a slab wait for each
//             other
//   step      of a block: each of its threads takes one unit; `threads / columns` positions
//   batch     several steps: what a thread loads, sums and writes together
#pragma once

#include "core/problem.hpp"
#include "cuda/annotations.hpp"

namespace bnext::cuda {

inline constexpr Index kLongestPart = Index{1} << 28;
// Farther than a thread goes in a part, also with the batches that it asks for beyond the end.
inline constexpr Index kFar = kLongestPart + (Index{1} << 20);

// A kernel finds all of this where constants are, and keeps none of it in registers.
struct Cut {
    Index positions;  // of a slab
    Index run;        // those of one outer index
    Index channels;   // of the problem
    Index slabs;
    Index groups;       // slabs worked on at the same time; each group takes every groups-th
    int batches;        // that it takes to go through any part
    int columns;        // units across a slab
    int unit;           // values of a unit
    int unit_channels;  // channels of a unit: 1 or `unit`
    int parts;          // blocks of a slab
    int threads;        // of a block
    int rows;           // positions of a step: threads / columns
    int batch;          // steps of a batch
    int last_step;      // positions from a batch's first step to its last
    int batch_rows;     // positions of a batch
    int near_run;       // positions of a run, no more than a thread can see of it
    int step_along;     // positions of a step beyond whole runs
    int batch_along;    // positions of a batch beyond whole runs
    bool straight;      // one run, so that no step goes over its end
    Index walk_outer;   // all batches, as outer and run indices
    int walk_along;
    Index of_example;  // channels whose places follow from the channel's stride; 0: all of them
    Index parameters;  // that channels have in turn; 0: each has its own

    // What follows from the rest.
    void complete() {
        rows = threads / columns;
        last_step = rows * (batch - 1);
        batch_rows = rows * batch;
        batches = static_cast<int>((part_end(0) + batch_rows - 1) / batch_rows);
        near_run = static_cast<int>(run < kFar ? run : kFar);
        step_along = static_cast<int>(rows % run);
        batch_along = static_cast<int>(batch_rows % run);
        walk_outer = Index{batches} * batch_rows / run;
        walk_along = static_cast<int>(Index{batches} * batch_rows % run);
    }
    BNEXT_HOST_DEVICE int slab_channels() const { return columns * unit_channels; }
    // Part 0 is the longest; no other has more than one position fewer.
    BNEXT_HOST_DEVICE Index part_begin(int part) const {
        const Index each = positions / parts, more = positions % parts;
        return part * each + (part < more ? part : more);
    }
    BNEXT_HOST_DEVICE Index part_end(int part) const { return part_begin(part + 1); }
    // First channel of a unit column; behind the last one where the slab has fewer columns.
    BNEXT_HOST_DEVICE Index channel(Index slab, int column) const {
        return (slab * columns + column) * unit_channels;
    }
    // The index of a channel's weight and bias.
    BNEXT_HOST_DEVICE Index parameter(Index channel) const {
        return parameters != 0 ? channel % parameters : channel;
    }
};

// How the channels of a problem are the cells of several examples (core/cell_problem.hpp): as many
// of each, one example's behind the other's.
struct CellWalk {
    Index of_example = 0;  // as Cut has them
    Index parameters = 0;
    std::array<Index, kMaxOperands> steps{};  // from an example to the next, in elements
};

// A block's place: which slabs, and which part of them.
struct Place {
    Index group;
    int part;
};
BNEXT_HOST_DEVICE Place place_of(const Cut& cut, Index block) {
    return {block / cut.parts, static_cast<int>(block % cut.parts)};
}

// An array as a launch walks it: strides in bytes.
struct Operand {
    void* data = nullptr;
    Index channel = 0;
    Index example = 0;  // from an example to the next one
    Index outer = 0;
    Index along = 0;  // from a position of a run to the next one
    // For Cursor: a step or a batch, without the ends of runs that it goes over; and such an end.
    Index step = 0;
    Index batch = 0;
    Index wrap = 0;

    // What follows from the rest.
    void complete(const Cut& cut) {
        if (cut.straight) outer = cut.run * along;  // of one outer index, any stride may be given
        step = cut.rows / cut.run * outer + cut.step_along * along;
        batch = cut.batch_rows / cut.run * outer + cut.batch_along * along;
        wrap = outer - cut.run * along;
    }
};

// What a kernel knows of its positions' runs when it is compiled.
enum class Runs {
    many,    // steps go over the ends of runs
    one,     // none does: cuts are straight
    either,  // compiled for both
};

// Where a thread is at a part's beginning, or behind its last batch.
template <Runs kRuns>
struct Walk {
    Index outer = 0;
    Index along;
    int left;       // positions of the part from here on; 0 and less behind its end
    int ahead = 0;  // positions of the run, those that a thread can see

    BNEXT_HOST_DEVICE Walk(const Cut& cut, int part, int thread) {
        along = cut.part_begin(part) + thread / cut.columns;
        left = static_cast<int>(cut.part_end(part) - along);
        if (kRuns == Runs::one) return;
        outer = along / cut.run;
        along %= cut.run;
        const Index rest = cut.run - along;
        ahead = static_cast<int>(rest < kFar ? rest : kFar);
    }
    // Of the thread, from here to the part's end.
    [[nodiscard]] BNEXT_HOST_DEVICE int units_of(const Cut& cut) const {
        return left > 0 ? (left + cut.rows - 1) / cut.rows : 0;
    }
    [[nodiscard]] BNEXT_HOST_DEVICE Walk end_of(const Cut& cut) const {
        Walk end = *this;
        end.left -= cut.batches * cut.batch_rows;
        if (kRuns == Runs::one) {
            end.along += Index{cut.batches} * cut.batch_rows;
            return end;
        }
        end.outer += cut.walk_outer;
        end.along += cut.walk_along;
        end.ahead -= cut.walk_along;
        if (end.ahead <= 0) {
            end.ahead += cut.near_run;
            end.along -= cut.run;
            ++end.outer;
        }
        return end;
    }
    BNEXT_HOST_DEVICE Index offset(const Operand& operand) const {
        return (kRuns == Runs::one ? 0 : outer * operand.outer) + along * operand.along;
    }
};

// A thread's way through N arrays at once, from batch to batch and from unit to unit: addresses
// only advance, by strides that the host has made, and nothing is multiplied on the way.
template <int N, Runs kRuns>
class Cursor {
public:
    using Operands = const Operand* const (&)[N];

    // A thread that is not `active` has no channel, and so no position `left`.
    BNEXT_HOST_DEVICE Cursor(const Cut& cut, const Walk<kRuns>& walk, Operands of, Index channel,
                             bool active)
        : left_(walk.left), ahead_(walk.ahead) {
        if (!active) left_ = walk.left > 0 ? 0 : -cut.batches * cut.batch_rows;
        const Index example = cut.of_example != 0 ? channel / cut.of_example : 0;
        const Index within = channel - example * cut.of_example;
        for (int i = 0; i < N; ++i) {
            at_[i] = reinterpret_cast<Index>(of[i]->data) + example * of[i]->example +
                     within * of[i]->channel + walk.offset(*of[i]);
        }
    }

    BNEXT_HOST_DEVICE void next_batch(const Cut& cut, Operands of) {
        left_ -= cut.batch_rows;
        const bool over = goes_over(ahead_, cut.batch_along, cut);
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) at_[i] += of[i]->batch + (over ? of[i]->wrap : 0);
    }
    BNEXT_HOST_DEVICE void previous_batch(const Cut& cut, Operands of) {
        left_ += cut.batch_rows;
        bool under = false;
        if (kRuns != Runs::one) {
            ahead_ += cut.batch_along;
            under = ahead_ > cut.near_run;
            if (under) ahead_ -= cut.near_run;
        }
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) at_[i] -= of[i]->batch + (under ? of[i]->wrap : 0);
    }

    // Positions of the part from here on; 0 and less behind its end.
    [[nodiscard]] BNEXT_HOST_DEVICE int left() const { return left_; }

    // The units of a batch one by one: f(u, exists, addresses). Batches that are full, and straight
    // where most are, take a short way.
    BNEXT_ANY_CALLEE
    template <int kUnits, class F>
    BNEXT_HOST_DEVICE void units(const Cut& cut, Operands of, F&& f) const {
        constexpr bool kStraight = kRuns != Runs::many;
        if (left_ > cut.last_step && (kRuns != Runs::either || cut.straight)) {
            walk<kUnits, true, kStraight>(cut, of, f);
        } else {
            walk<kUnits, false, kRuns == Runs::one>(cut, of, f);
        }
    }

    // Every unit of the part from here on, by a loop that stays one: f(addresses). What a thread
    // has besides is one set of addresses.
    BNEXT_ANY_CALLEE
    template <class F>
    BNEXT_HOST_DEVICE void all_units(const Cut& cut, Operands of, F&& f) {
        BNEXT_UNROLL_BY(1)
        for (; left_ > 0; left_ -= cut.rows) {
            f(at_);
            const bool over = goes_over(ahead_, cut.step_along, cut);
            BNEXT_UNROLL
            for (int i = 0; i < N; ++i) at_[i] += of[i]->step + (over ? of[i]->wrap : 0);
        }
    }

    // A batch's by a loop that stays one.
    BNEXT_ANY_CALLEE
    template <int kUnits, class F>
    BNEXT_HOST_DEVICE void units_rolled(const Cut& cut, Operands of, F&& f) const {
        int left = left_, ahead = ahead_;
        Index at[N];
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) at[i] = at_[i];
        BNEXT_UNROLL_BY(1)
        for (int u = 0; u < kUnits; ++u) {
            f(u, left > 0, at);
            left -= cut.rows;
            const bool over = kRuns != Runs::one && goes_over(ahead, cut.step_along, cut);
            BNEXT_UNROLL
            for (int i = 0; i < N; ++i) at[i] += of[i]->step + (over ? of[i]->wrap : 0);
        }
    }

private:
    BNEXT_ANY_CALLEE
    template <int kUnits, bool kFull, bool kStraight, class F>
    BNEXT_HOST_DEVICE void walk(const Cut& cut, Operands of, F&& f) const {
        int left = left_, ahead = ahead_;
        Index at[N];
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) at[i] = at_[i];
        BNEXT_UNROLL
        for (int u = 0; u < kUnits; ++u) {
            f(u, kFull || left > 0, at);
            if (u + 1 == kUnits) break;
            left -= cut.rows;
            const bool over = !kStraight && goes_over(ahead, cut.step_along, cut);
            BNEXT_UNROLL
            for (int i = 0; i < N; ++i) at[i] += of[i]->step + (over ? of[i]->wrap : 0);
        }
    }
    // So far along, and whether that is over a run's end.
    BNEXT_HOST_DEVICE static bool goes_over(int& ahead, int along, const Cut& cut) {
        if (kRuns == Runs::one) return false;
        ahead -= along;
        const bool over = ahead <= 0;
        if (over) ahead += cut.near_run;
        return over;
    }

    int left_;
    int ahead_;  // positions of the run from here on
    Index at_[N];
};

}  // namespace bnext::cuda
