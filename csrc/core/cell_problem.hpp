// CellProblem: an array whose examples are normalized each for itself, seen as examples x cells.
//
// Axis 0 has the examples. One example is a Problem like any other, whose channels are its cells:
// planar or interleaved. Where the examples follow each other as their planes do, in all arrays of
// a call, they are seen as one example of all cells: its tasks, its rows of memory and what is
// prefetched go on from one to the next.
//
// A slab is a run of cells. Where their planes follow each other, the slab is one plane as well,
// and its moments are summed as a channel's.
#pragma once

#include <array>
#include <span>

#include "core/problem.hpp"

namespace bnext {

struct CellProblem {
    Problem example;          // of so many cells
    Index examples = 0;       // as they are walked
    Index parameters = 0;     // channels C of the array
    Index groups = 1;         // G
    Index cells_of_slab = 1;  // C / G; 0 where there are no channels to divide
    bool joined = false;      // the planes of a slab are one piece of memory, in every array

    [[nodiscard]] Index cells() const { return example.channels; }
    [[nodiscard]] Index slabs() const {  // of an example
        return cells_of_slab == 0 ? groups : example.channels / cells_of_slab;
    }
    [[nodiscard]] Index all_slabs() const { return examples * slabs(); }
    [[nodiscard]] Index elements() const { return examples * example.elements(); }
    [[nodiscard]] double count() const {  // values of a slab
        return static_cast<double>(example.count() * cells_of_slab);
    }
    // The slabs as planes, where they are joined.
    [[nodiscard]] Problem planes_of_slabs() const {
        return {example.dtype,     Layout::planar, 1, slabs(), example.count() * cells_of_slab,
                /*adjoining=*/true};
    }
    // All examples together: what a call moves.
    [[nodiscard]] Problem whole() const {
        Problem all = example;
        (all.layout == Layout::planar ? all.channels : all.outer) *= examples;
        return all;
    }
};

struct CellDescription {
    CellProblem problem;
    std::array<Strides, kMaxOperands> strides{};  // within an example
    std::array<Index, kMaxOperands> steps{};      // from an example to the next, in elements
    const char* refusal = nullptr;                // why the arrays need a copy
};

// Describes arrays of the same shape (N, ...), of two dimensions at least, whose channels are not
// axis 0, and are divided into `groups`. Throws Error where these contradict each other.
CellDescription describe_cells(DType dtype, std::span<const Index> shape, Index channel_axis,
                               Index groups, std::span<const AxisStrides> operands);

}  // namespace bnext
