// Problem: any array, of any rank and memory format, seen as outer x channels x inner.
//
//   - planar, inner is contiguous: NCHW (N, C, H*W), NCDHW, (N, C, L), Fortran-ordered (N, C)
//   - interleaved, channels are contiguous: NHWC (N*H*W, C, 1), NDHWC, (N, C)
//
// Axes that lie one inside the other in memory are merged, where they are so in all arrays of a
// call (x and y; dy, x and dx). What is left must fit the three extents, else the caller makes a
// copy.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "core/dtype.hpp"

namespace bnext {

enum class Layout : std::uint8_t { planar, interleaved };

constexpr const char* name_of(Layout layout) {
    return layout == Layout::planar ? "planar" : "interleaved";
}

struct Problem {
    DType dtype = DType::float32;
    Layout layout = Layout::planar;
    Index outer = 1;
    Index channels = 1;
    Index inner = 1;
    bool adjoining = false;  // planar: in every array, a plane begins where its neighbour ends

    [[nodiscard]] Index count() const { return outer * inner; }  // values per channel
    [[nodiscard]] Index elements() const { return outer * channels * inner; }
    [[nodiscard]] Index bytes() const { return elements() * size_of(dtype); }
};

struct Strides {  // in elements
    Index outer = 0;
    Index channel = 0;
    Index inner = 0;
};

// x, dy, ddx, residual, ddresidual, the gradients of three of these, and flags
constexpr std::size_t kMaxOperands = 9;
constexpr std::size_t kMaxAxes = 64;  // NumPy's own limit

using AxisStrides = std::span<const Index>;  // one per axis, in elements

struct Description {
    Problem problem;
    std::array<Strides, kMaxOperands> strides{};
    const char* refusal = nullptr;  // why the arrays need a copy; null if they do not

    [[nodiscard]] bool accepted() const { return refusal == nullptr; }
};

// Describes arrays of the same shape. The first one decides in which order the axes
// are merged. Throws Error where shape, axis and strides contradict each other.
Description describe(DType dtype, std::span<const Index> shape, Index channel_axis,
                     std::span<const AxisStrides> operands);

// The axes but the channels', of more than one value, from the slowest to the quickest in memory:
// the number of a position, outer * inner + inner's index, counts through them in this
// order.
std::vector<std::size_t> order_of_positions(std::span<const Index> shape, Index channel_axis,
                                            AxisStrides strides);

// Strides (in elements) of a dense array of `shape` whose axes lie in memory in the order of the
// strides `like`; without them, in C order.
void dense_strides_like(std::span<const Index> shape, AxisStrides like, std::span<Index> result);

// True where two different indices of the array may be the same element, so that it cannot be
// written in parallel. (Exotic interleaved views that are free of overlap also answer true.)
bool may_overlap_itself(std::span<const Index> shape, AxisStrides strides);

}  // namespace bnext
