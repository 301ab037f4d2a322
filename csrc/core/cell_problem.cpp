#include "core/cell_problem.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace bnext {

CellDescription describe_cells(DType dtype, std::span<const Index> shape, Index channel_axis,
                               Index groups, std::span<const AxisStrides> operands) {
    BNEXT_CHECK(shape.size() >= 2, "x: expected at least 2 dimensions, got ", shape.size());
    BNEXT_CHECK(channel_axis >= 1 && channel_axis < static_cast<Index>(shape.size()),
                "channel_axis: expected an axis behind the first, got ", channel_axis);
    const Index channels = shape[static_cast<std::size_t>(channel_axis)];
    BNEXT_CHECK(groups >= 1 && channels % groups == 0, "num_groups: expected a divisor of ",
                channels, ", got ", groups);
    const std::size_t n = operands.size();
    BNEXT_CHECK(n <= kMaxOperands, "operands: expected at most ", kMaxOperands);

    std::array<AxisStrides, kMaxOperands> within;
    CellDescription result;
    for (std::size_t k = 0; k < n; ++k) {
        BNEXT_CHECK(operands[k].size() == shape.size(), "strides: expected ", shape.size());
        within[k] = operands[k].subspan(1);
        result.steps[k] = operands[k][0];
    }
    const Description example =
        describe(dtype, shape.subspan(1), channel_axis - 1, {within.data(), n});
    CellProblem& problem = result.problem;
    problem.example = example.problem;
    problem.examples = shape[0];
    problem.parameters = channels;
    problem.groups = groups;
    problem.cells_of_slab = channels / groups;
    result.strides = example.strides;
    result.refusal = example.refusal;
    if (result.refusal != nullptr || problem.elements() == 0) return result;

    const bool values = problem.example.count() == 1;  // a cell is one value
    const auto follow = [&](const Strides& stride) {
        return channels == 1 || stride.channel == problem.example.count();
    };
    const auto all = std::span(result.strides).first(n);
    problem.joined = (problem.example.layout == Layout::planar || values) &&
                     problem.example.outer == 1 && std::ranges::all_of(all, follow);
    const auto dense = [&](Index step) { return step == problem.example.elements(); };
    if (problem.joined && problem.examples > 1 &&
        std::ranges::all_of(std::span(result.steps).first(n), dense)) {
        for (Strides& stride : result.strides) stride.channel = problem.example.count();
        problem.example.channels *= problem.examples;
        problem.example.adjoining = !values;
        problem.examples = 1;
    }
    return result;
}

}  // namespace bnext
