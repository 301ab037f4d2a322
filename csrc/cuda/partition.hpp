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
#pragma once

#include "core/problem.hpp"
#include "cuda/annotations.hpp"

namespace bnext::cuda {

inline constexpr Index kLongestPart = Index{1} << 30;

// A kernel finds all of this where constants are, and keeps none of it in registers.
struct Cut {
    Index positions;  // of a slab
    Index run;        // those of one outer index
    Index channels;   // of the problem
    Index slabs;
    Index groups;       // slabs worked on at the same time; each group takes every groups-th
    Index batches;      // that it takes to go through any part
    int columns;        // units across a slab
    int unit;           // values of a unit
    int unit_channels;  // channels of a unit: 1 or `unit`
    int parts;          // blocks of a slab
    int threads;        // of a block
    int rows;           // positions of a step: threads / columns
    int batch;          // steps of a batch
    int step_outer, step_along;    // a step as outer and run indices
    int batch_outer, batch_along;  // a batch likewise

    // What follows from the rest.
    void complete() {
        rows = threads / columns;
        const Index positions_of_batch = Index{rows} * batch;
        batches = (part_end(0) + positions_of_batch - 1) / positions_of_batch;
        step_outer = static_cast<int>(rows / run);
        step_along = static_cast<int>(rows % run);
        batch_outer = static_cast<int>(positions_of_batch / run);
        batch_along = static_cast<int>(positions_of_batch % run);
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
};

// A block's place: which slabs, and which part of them.
struct Place {
    Index group;
    int part;
};
BNEXT_HOST_DEVICE Place place_of(const Cut& cut, Index block) {
    return {block / cut.parts, static_cast<int>(block % cut.parts)};
}

// Where a thread is: at which outer and run index, and how far from its part's end. Goes from batch
// to batch without dividing.
class Walk {
public:
    BNEXT_HOST_DEVICE Walk(const Cut& cut, int part, int thread) : cut_(cut) {
        const Index position = cut.part_begin(part) + thread / cut.columns;
        left_ = static_cast<int>(cut.part_end(part) - position);
        outer_ = position / cut.run;
        along_ = position % cut.run;
    }

    BNEXT_HOST_DEVICE void next_batch() {
        left_ -= cut_.rows * cut_.batch;
        outer_ += cut_.batch_outer;
        along_ += cut_.batch_along;
        if (along_ >= cut_.run) {
            along_ -= cut_.run;
            ++outer_;
        }
    }
    BNEXT_HOST_DEVICE void previous_batch() {
        left_ += cut_.rows * cut_.batch;
        outer_ -= cut_.batch_outer;
        along_ -= cut_.batch_along;
        if (along_ < 0) {
            along_ += cut_.run;
            --outer_;
        }
    }

    // The units of a batch one by one: f(u, exists, offset), the offset in elements from the slab's
    // column on, in an array of those strides. Unrolled where f has an array of registers; else it
    // takes fewer of them.
    BNEXT_ANY_CALLEE
    template <int kUnits, bool kUnrolled = true, class F>
    BNEXT_HOST_DEVICE void units(Index outer_stride, Index along_stride, F&& f) const {
        const Index step = cut_.step_outer * outer_stride + cut_.step_along * along_stride;
        const Index wrap = outer_stride - cut_.run * along_stride;
        int left = left_;
        Index along = along_;
        Index offset = outer_ * outer_stride + along_ * along_stride;
        BNEXT_UNROLL_BY(kUnrolled ? kUnits : 1)
        for (int u = 0; u < kUnits; ++u) {
            f(u, left > 0, offset);
            left -= cut_.rows;
            along += cut_.step_along;
            offset += step;
            if (along >= cut_.run) {
                along -= cut_.run;
                offset += wrap;
            }
        }
    }

private:
    const Cut& cut_;
    int left_;  // positions of the part from here on; 0 and less behind its end
    Index outer_, along_;
};

}  // namespace bnext::cuda
