// What a forward call of layer or RMS normalization leaves for its backward call.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bindings/bodies.hpp"
#include "cpu/rows.hpp"

namespace bnext::bindings {

using RowValues = cpu::PoolArray<double>;

// What a call with an activation or a residual leaves besides.
struct RowEpilogue {
    Fused fused;
    std::uint64_t residual_fingerprint = 0;
    // Copies of the forward call's, since an optimizer may change the parameters before z is made
    // again. Empty where there were none, or no activation.
    std::vector<double> weight, bias;
};

// What a forward call leaves for its backward call.
struct RowSaved {
    DType dtype = DType::float32;
    std::vector<Index> shape;  // of x
    Index first = 0;           // the first of the normalized axes
    bool centered = true;
    double eps = 0;
    std::uint64_t fingerprint = 0;
    RowValues values;                             // mean, mean_low and rstd, one value for each row
    std::shared_ptr<const RowEpilogue> epilogue;  // null without

    RowSaved() = default;
    RowSaved(DType of, std::span<const Index> x, Index axis, bool has_mean, double epsilon)
        : dtype(of), shape(x.begin(), x.end()), first(axis), centered(has_mean), eps(epsilon) {
        values = RowValues(static_cast<std::size_t>(kRowStatistics * rows()));
    }

    [[nodiscard]] std::span<const Index> leading() const {
        return std::span(shape).first(static_cast<std::size_t>(first));
    }
    [[nodiscard]] std::span<const Index> normalized() const {
        return std::span(shape).subspan(static_cast<std::size_t>(first));
    }
    [[nodiscard]] Index rows() const { return product(leading()); }
    [[nodiscard]] cpu::RowProblem problem() const {
        return {rows(), product(normalized()), centered};
    }
    [[nodiscard]] double* row(Index which) const { return values.data() + which * rows(); }
    [[nodiscard]] cpu::RowStatistics statistics() const { return {row(0), row(1), row(2)}; }
    [[nodiscard]] FromForward facts() const {
        FromForward facts{dtype, shape, first, true, fingerprint != 0 ? &fingerprint : nullptr};
        facts.has_flags = false;
        if (epilogue != nullptr) {
            facts.fused = epilogue->fused;
            if (epilogue->residual_fingerprint != 0) {
                facts.residual_fingerprint = &epilogue->residual_fingerprint;
            }
        }
        return facts;
    }
    [[nodiscard]] bool reads_residual() const { return facts().reads_residual(); }

    static Index product(std::span<const Index> extents) {
        Index all = 1;
        for (const Index extent : extents) all *= extent;
        return all;
    }
};

// `saved` of a backward call; an error names the argument.
const RowSaved& take_row_saved(pybind11::handle object, bool centered);

}  // namespace bnext::bindings
