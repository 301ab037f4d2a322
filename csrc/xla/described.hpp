// DescribedCall: a slice as a Call that was checked, and as a Problem. Handlers of batch
// normalization read their calls by it, on every platform.
#pragma once

#include <optional>

#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "xla/frame.hpp"

namespace bnext::foreign {

class DescribedCall : public Slice {
public:
    // `batch_statistics` and `has_flags`, of piecewise linear activations with a residual, are
    // about a backward pass.
    DescribedCall(Function function, bool batch_statistics, const Frame& frame, Index number,
                  bool has_flags = true)
        : Slice(frame, number), call_(function) {
        refer_all(call_, extents_);
        call_.eps = frame.get<double>("eps");
        call_.channel_axis = frame.get<std::int64_t>("channel_axis");
        call_.fused = fused_ = fused_of(frame);
        fused_.residual = frame.get<bool>("residual");
        if (call_.has(Role::dy)) {
            check_axis(call_.channel_axis, x().rank);
            from_.emplace(FromForward{x().dtype(), x().shape(), call_.axis(), batch_statistics,
                                      nullptr, fused_});
            from_->has_flags = has_flags;
            call_.from_forward = &*from_;
        }
        check(call_);
        const std::array<AxisStrides, 1> operands{x().axis_strides()};
        description_ = describe(x().dtype(), x().shape(), call_.axis(), operands);
        BNEXT_CHECK(description_.accepted(), "x: ", description_.refusal);
    }
    DescribedCall(const DescribedCall&) = delete;
    DescribedCall& operator=(const DescribedCall&) = delete;

    [[nodiscard]] const ArrayRef& x() const { return call_[Role::x]; }
    [[nodiscard]] double eps() const { return call_.eps; }
    [[nodiscard]] Index axis() const { return call_.axis(); }
    [[nodiscard]] Index channels() const { return call_.channels(); }
    [[nodiscard]] const Problem& problem() const { return description_.problem; }
    // Of x, and of all arrays of its shape: they lie in C order.
    [[nodiscard]] const Strides& strides() const { return description_.strides[0]; }
    [[nodiscard]] const Fused& fused() const { return fused_; }

    // The rows of statistics that a forward pass leaves.
    [[nodiscard]] StatisticsOut statistics() const {
        return {doubles("statistics", kStatisticsRows * channels()), channels()};
    }

private:
    Extents extents_;
    Call call_;
    Fused fused_;
    std::optional<FromForward> from_;
    Description description_;
};

}  // namespace bnext::foreign
