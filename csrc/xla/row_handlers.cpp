// Handlers of layer and RMS normalization. Rows are normalized by themselves, so a forward pass has
// the slices of a vmap over data as rows of one call.
#include <array>
#include <optional>

#include "core/call.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/rows.hpp"
#include "xla/running.hpp"

namespace bnext::foreign {
namespace {

// A slice as a Call of rows that was checked.
class RowOperands : public Slice {
public:
    // `times`: of so many slices, which follow each other.
    RowOperands(Function function, const Frame& frame, Index number, Index times = 1)
        : Slice(frame, number), call_(function), times_(times) {
        refer_all(call_, extents_);
        const auto first = frame.get<std::int64_t>("first");
        BNEXT_CHECK(first >= 0 && first <= x().rank, "first: expected an axis of x, got ", first);
        call_.eps = frame.get<double>("eps");
        call_.fused = fused_of(frame);
        fused_ = call_.fused;
        fused_.residual = frame.get<bool>("residual");
        const auto normalized = x().shape().subspan(static_cast<std::size_t>(first));
        if (call_.has(Role::dy)) {
            from_.emplace(FromForward{x().dtype(), x().shape(), first, true, nullptr, fused_});
            from_->has_flags = false;
            call_.from_forward = &*from_;
        } else {
            call_.normalized_shape = normalized;
        }
        check(call_);
        for (const Index extent : normalized) width_ *= extent;
        for (const Index extent : x().shape().first(static_cast<std::size_t>(first))) {
            rows_ *= extent;
        }
    }
    RowOperands(const RowOperands&) = delete;
    RowOperands& operator=(const RowOperands&) = delete;

    [[nodiscard]] const ArrayRef& x() const { return call_[Role::x]; }
    [[nodiscard]] double eps() const { return call_.eps; }
    [[nodiscard]] Index width() const { return width_; }
    [[nodiscard]] cpu::RowProblem problem() const {
        return {rows_ * times_, width_, frame().get<bool>("centered")};
    }
    template <class T>
    [[nodiscard]] cpu::Matrix<T> matrix(std::string_view name) const {
        using Value = std::remove_const_t<T>;
        const Index pitch = std::max<Index>(width_, 1);
        return {static_cast<T*>(values(name, type_of<Value>(), x().size())), pitch};
    }
    template <class T>
    [[nodiscard]] Param<T>* parameter(std::string_view name) const {
        return vector<Param<T>>(name, width_);
    }
    [[nodiscard]] cpu::RowStatistics statistics() const {
        return {doubles("row_mean", rows_), doubles("row_mean_low", rows_),
                doubles("row_rstd", rows_)};
    }

    // What a pass applies besides; a backward pass that is another by it.
    template <class T>
    [[nodiscard]] cpu::RowsApplied<T> applied() const {
        const bool backward = call_.has(Role::dy);
        if (backward ? !fused_.changes_backward() : !fused_.any()) return {};
        cpu::RowsApplied<T> all{fused_};
        if (has("residual")) all.residual = matrix<const T>("residual");
        if (!backward) return all;
        if (has("dresidual")) all.dresidual = matrix<T>("dresidual");
        all.weight = parameter<T>("weight");
        all.bias = parameter<T>("bias");
        return all;
    }

private:
    Extents extents_;
    Call call_;
    Fused fused_;
    std::optional<FromForward> from_;
    Index times_, rows_ = 1, width_ = 1;
};

void forward(const RowOperands& of) {
    with_dtype(of.x().dtype(), [&](auto type) {
        using T = decltype(type);
        cpu::normalize_rows<T>(of.problem(), of.matrix<const T>("x"), of.matrix<T>("y"),
                               of.parameter<T>("weight"), of.parameter<T>("bias"), of.eps(),
                               of.statistics(), of.applied<T>());
    });
}

// dx, and the gradients of parameters and of the residual if there are places for these.
void backward(const RowOperands& of) {
    const cpu::RowProblem problem = of.problem();
    const bool wants_weight = of.has("dweight");
    const bool wants_bias = wants_weight && problem.centered;
    const auto width = static_cast<std::size_t>(of.width());
    const cpu::PoolArray<double> dweight(wants_weight ? width : 0), dbias(wants_bias ? width : 0);
    with_dtype(of.x().dtype(), [&](auto type) {
        using T = decltype(type);
        cpu::differentiate_rows<T>(problem, of.matrix<const T>("dy"), of.matrix<const T>("x"),
                                   of.matrix<T>("dx"), of.parameter<T>("weight"), of.statistics(),
                                   wants_weight ? dweight.data() : nullptr,
                                   wants_bias ? dbias.data() : nullptr, of.applied<T>());
        const auto round = [](double each) { return static_cast<Param<T>>(each); };
        if (wants_weight) std::ranges::transform(dweight, of.parameter<T>("dweight"), round);
        if (wants_bias) std::ranges::transform(dbias, of.parameter<T>("dbias"), round);
    });
}

ffi::Error call_forward(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
    return run_together(arguments, results, attributes,
                        [](const Frame& frame, Index slice, Index times) {
                            forward(RowOperands(Function::rows_forward, frame, slice, times));
                        });
}

ffi::Error call_backward(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                         ffi::Dictionary attributes) {
    return run_slices(arguments, results, attributes, [](const Frame& frame, Index slice) {
        backward(RowOperands(Function::rows_backward, frame, slice));
    });
}

XLA_FFI_DEFINE_HANDLER(forward_handler, &call_forward, binding());
XLA_FFI_DEFINE_HANDLER(backward_handler, &call_backward, binding());

}  // namespace

std::span<const Target> row_targets() {
    static const std::array all{
        target("bnext_rows_forward", forward_handler),
        target("bnext_rows_backward", backward_handler),
    };
    return all;
}

}  // namespace bnext::foreign
