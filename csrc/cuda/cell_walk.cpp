#include "cuda/cell_walk.hpp"

namespace bnext::cuda {
namespace {

// The arrays of a call, as descriptions take them.
struct Given {
    explicit Given(const KernelCall& call)
        : dtype(static_cast<DType>(call.dtype)),
          shape(call.shape, static_cast<std::size_t>(call.rank)),
          count(static_cast<std::size_t>(call.operands)) {
        for (std::size_t k = 0; k < count; ++k) strides[k] = {call.strides[k], shape.size()};
    }
    [[nodiscard]] std::span<const AxisStrides> operands() const { return {strides.data(), count}; }

    DType dtype;
    std::span<const Index> shape;
    std::size_t count;
    std::array<AxisStrides, kMaxOperands> strides;
};

}  // namespace

CellDescription cells_of(const KernelCall& call) {
    const Given given(call);
    return describe_cells(given.dtype, given.shape, call.channel_axis, call.groups,
                          given.operands());
}

Described described(const KernelCall& call) {
    const Given given(call);
    if (call.groups == 0) {
        return {describe(given.dtype, given.shape, call.channel_axis, given.operands()), {}};
    }
    const CellDescription all = cells_of(call);
    const CellProblem& cells = all.problem;
    Described result;
    result.description = {cells.example, all.strides, all.refusal};
    result.cells.parameters = cells.parameters;
    const bool by_slabs = call.operation == Operation::collect_stats && cells.joined;
    if (by_slabs) {
        result.description.problem = cells.planes_of_slabs();
        for (Strides& s : result.description.strides) {
            s = {0, s.channel * cells.cells_of_slab, 1};
        }
    }
    Problem& problem = result.description.problem;
    if (cells.examples > 1) {
        result.cells.of_example = problem.channels;
        result.cells.steps = all.steps;
    }
    problem.channels *= cells.examples;
    return result;
}

}  // namespace bnext::cuda
