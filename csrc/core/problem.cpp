#include "core/problem.hpp"

#include <algorithm>
#include <cstdlib>

#include "core/error.hpp"

namespace bnext {
namespace {

struct Axis {
    Index extent;
    std::array<Index, kMaxOperands> stride;
};

// Stable, and unlike std::stable_sort it allocates nothing; axes are few.
template <class T, class Before>
void insertion_sort(std::span<T> items, const Before& before) {
    for (std::size_t i = 1; i < items.size(); ++i) {
        for (std::size_t j = i; j > 0 && before(items[j], items[j - 1]); --j) {
            std::swap(items[j], items[j - 1]);
        }
    }
}

// The axes other than the channels', without axes of extent 1 (their strides mean nothing), from
// the slowest to the quickest in the first operand's memory; those that lie one inside the other in
// every operand as one axis. They are put to the beginning of `all`.
std::span<const Axis> batch_axes(std::span<const Index> shape, Index channel_axis,
                                 std::span<const AxisStrides> operands, std::span<Axis> all) {
    std::size_t size = 0;
    for (std::size_t a = 0; a < shape.size(); ++a) {
        if (static_cast<Index>(a) == channel_axis || shape[a] == 1) continue;
        Axis& axis = all[size++];
        axis = {shape[a], {}};
        for (std::size_t k = 0; k < operands.size(); ++k) axis.stride[k] = operands[k][a];
    }
    insertion_sort(all.first(size), [](const Axis& a, const Axis& b) {
        return std::abs(a.stride[0]) > std::abs(b.stride[0]);
    });
    std::size_t merged = 0;
    for (const Axis& axis : all.first(size)) {
        bool nested = merged > 0;
        for (std::size_t k = 0; nested && k < operands.size(); ++k) {
            nested = all[merged - 1].stride[k] == axis.stride[k] * axis.extent;
        }
        if (nested) {
            all[merged - 1] = {all[merged - 1].extent * axis.extent, axis.stride};
        } else {
            all[merged++] = axis;
        }
    }
    return all.first(merged);
}

// Puts axes into the order of their strides, the largest first.
void sort_by_stride(std::span<std::size_t> axes, AxisStrides strides) {
    insertion_sort(axes, [&](std::size_t a, std::size_t b) {
        return std::abs(strides[a]) > std::abs(strides[b]);
    });
}

}  // namespace

Description describe(DType dtype, std::span<const Index> shape, Index channel_axis,
                     std::span<const AxisStrides> operands) {
    const auto rank = static_cast<Index>(shape.size());
    BNEXT_CHECK(rank >= 1 && shape.size() <= kMaxAxes, "x: expected 1 to 64 dimensions, got ",
                rank);
    BNEXT_CHECK(channel_axis >= 0 && channel_axis < rank, "channel_axis: expected 0 to ", rank - 1,
                ", got ", channel_axis);
    BNEXT_CHECK(!operands.empty() && operands.size() <= kMaxOperands, "operands: expected 1 to ",
                kMaxOperands, ", got ", operands.size());
    for (const AxisStrides& strides : operands) {
        BNEXT_CHECK(strides.size() == shape.size(), "strides: expected ", rank, ", got ",
                    strides.size());
    }

    Description result;
    Problem& problem = result.problem;
    problem.dtype = dtype;
    problem.channels = shape[static_cast<std::size_t>(channel_axis)];
    const std::size_t n = operands.size();
    const auto all_are = [&](const std::array<Index, kMaxOperands>& stride, Index wanted) {
        return std::ranges::all_of(std::span(stride).first(n),
                                   [&](Index s) { return s == wanted; });
    };
    std::array<Index, kMaxOperands> channel_stride{};
    for (std::size_t k = 0; k < n; ++k) {
        channel_stride[k] = operands[k][static_cast<std::size_t>(channel_axis)];
    }

    std::array<Axis, kMaxAxes> room;
    const std::span<const Axis> axes = batch_axes(shape, channel_axis, operands, room);
    const bool unit_inner = !axes.empty() && all_are(axes.back().stride, 1);

    if (std::ranges::find(shape, 0) !=
        shape.end()) {  // no element will be touched; only the extents matter
        problem.outer = 1;
        for (const Axis& axis : axes) problem.outer *= axis.extent;
        return result;
    }
    const auto take = [&](const Axis* outer, const Axis* inner) {
        problem.outer = outer != nullptr ? outer->extent : 1;
        problem.inner = inner != nullptr ? inner->extent : 1;
        for (std::size_t k = 0; k < n; ++k) {
            result.strides[k] = {outer != nullptr ? outer->stride[k] : 0, channel_stride[k],
                                 inner != nullptr ? inner->stride[k] : 1};
        }
    };
    if (unit_inner && axes.size() <= 2) {
        problem.layout = Layout::planar;
        take(axes.size() == 2 ? &axes[0] : nullptr, &axes.back());
        problem.adjoining = problem.channels == 1 || all_are(channel_stride, problem.inner);
    } else if (axes.size() <= 2 && (problem.channels == 1 || all_are(channel_stride, 1))) {
        problem.layout = Layout::interleaved;
        take(axes.empty() ? nullptr : &axes[0], axes.size() == 2 ? &axes[1] : nullptr);
    } else if (axes.size() > 2) {
        result.refusal = "the batch axes do not merge into an outer and an inner one";
    } else {
        result.refusal = "neither the innermost axis nor the channels are contiguous";
    }
    return result;
}

std::vector<std::size_t> order_of_positions(std::span<const Index> shape, Index channel_axis,
                                            AxisStrides strides) {
    std::vector<std::size_t> order;
    for (std::size_t a = 0; a < shape.size(); ++a) {
        if (static_cast<Index>(a) != channel_axis && shape[a] != 1) order.push_back(a);
    }
    sort_by_stride(order, strides);
    return order;
}

void dense_strides_like(std::span<const Index> shape, AxisStrides like, std::span<Index> result) {
    BNEXT_CHECK(shape.size() <= kMaxAxes && (like.empty() || like.size() == shape.size()) &&
                    result.size() == shape.size(),
                "strides: expected ", shape.size(), " of them");
    std::array<std::size_t, kMaxAxes> order;
    const std::size_t rank = shape.size();
    for (std::size_t a = 0; a < rank; ++a) order[a] = a;
    if (!like.empty()) sort_by_stride(std::span(order).first(rank), like);
    Index stride = 1;
    for (std::size_t i = rank; i-- > 0;) {
        result[order[i]] = stride;
        stride *= std::max<Index>(shape[order[i]], 1);
    }
}

bool may_overlap_itself(std::span<const Index> shape, AxisStrides strides) {
    std::array<std::size_t, kMaxAxes> order;
    std::size_t rank = 0;
    for (std::size_t a = 0; a < shape.size(); ++a) {
        if (shape[a] == 0) return false;
        if (shape[a] > 1) order[rank++] = a;
    }
    sort_by_stride(std::span(order).first(rank), strides);
    Index reach = 0;  // distance from the first to the last element of the axes so far
    for (std::size_t i = rank; i-- > 0;) {
        const Index stride = std::abs(strides[order[i]]);
        if (stride <= reach) return true;
        reach += stride * (shape[order[i]] - 1);
    }
    return false;
}

}  // namespace bnext
