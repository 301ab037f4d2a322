// Handlers of group and instance normalization. Examples are normalized by themselves, so a forward
// pass has the slices of a vmap over x as examples of one call.
#include <array>
#include <optional>
#include <vector>

#include "core/call.hpp"
#include "cpu/cell_norm.hpp"
#include "cpu/pool_array.hpp"
#include "xla/running.hpp"

namespace bnext::foreign {
namespace {

// A slice as a Call of cells that was checked.
class CellOperands : public Slice {
public:
    // `times`: of so many slices, which follow each other.
    CellOperands(Function function, const Frame& frame, Index number, Index times = 1)
        : Slice(frame, number), call_(function), times_(times) {
        refer_all(call_, extents_);
        call_.eps = frame.get<double>("eps");
        call_.channel_axis = frame.get<std::int64_t>("channel_axis");
        call_.fused = fused_of(frame);
        fused_ = call_.fused;
        fused_.residual = frame.get<bool>("residual");
        fused_.without_flags = true;
        const auto groups = frame.get<std::int64_t>("num_groups");  // 0: each channel is a group
        if (groups != 0) call_.num_groups = groups;
        if (call_.has(Role::dy)) {
            check_axis(call_.channel_axis, x().rank);
            FromForward from{x().dtype(), x().shape(), call_.axis(), true, nullptr, fused_};
            from.groups = call_.groups();
            call_.from_forward = &from_.emplace(from);
        }
        check(call_);
        std::vector<Index> shape(x().shape().begin(), x().shape().end()), strides(shape.size());
        shape[0] *= times;
        Index step = 1;
        for (std::size_t a = shape.size(); a-- > 0; step *= shape[a]) strides[a] = step;
        const std::array<AxisStrides, 1> operands{strides};
        description_ = describe_cells(x().dtype(), shape, call_.axis(), call_.groups(), operands);
        BNEXT_CHECK(description_.refusal == nullptr, "x: ", description_.refusal);
    }
    CellOperands(const CellOperands&) = delete;
    CellOperands& operator=(const CellOperands&) = delete;

    [[nodiscard]] const ArrayRef& x() const { return call_[Role::x]; }
    [[nodiscard]] double eps() const { return call_.eps; }
    [[nodiscard]] Index channels() const { return call_.channels(); }
    [[nodiscard]] Index times() const { return times_; }
    template <class T>
    [[nodiscard]] cpu::CellsApplied<T> applied() const {
        cpu::CellsApplied<T> all{fused_};
        if (call_.has(Role::dy) && !fused_.changes_backward()) all.fused = {};  // g is dy
        if (has("residual")) all.residual = examples<const T>("residual");
        if (has("dresidual")) all.dresidual = examples<T>("dresidual");
        all.of_forward = affine<T>();
        return all;
    }
    [[nodiscard]] const CellProblem& problem() const { return description_.problem; }
    [[nodiscard]] Index slabs() const { return x().extent(0) * call_.groups(); }  // of a slice

    template <class T>
    [[nodiscard]] cpu::Examples<T> examples(std::string_view name) const {
        using Value = std::remove_const_t<T>;
        return {static_cast<T*>(values(name, type_of<Value>(), x().size())),
                description_.strides[0], description_.steps[0]};
    }
    template <class T>
    [[nodiscard]] Param<T>* parameter(std::string_view name) const {
        return vector<Param<T>>(name, channels());
    }
    template <class T>
    [[nodiscard]] cpu::Affine<T> affine() const {
        return {parameter<T>("weight"), parameter<T>("bias")};
    }
    // The rows of statistics of the first slice.
    [[nodiscard]] double* statistics() const {
        return doubles("statistics", kStatisticsRows * slabs());
    }

private:
    Extents extents_;
    Call call_;
    Fused fused_;
    std::optional<FromForward> from_;
    Index times_;
    CellDescription description_;
};

void forward(const CellOperands& of) {
    const Index slabs = of.slabs(), times = of.times();
    double* const rows = of.statistics();
    const auto size = static_cast<std::size_t>(kStatisticsRows * slabs * times);
    const cpu::PoolArray<double> of_all(times == 1 ? 0 : size);
    const StatisticsOut out(times == 1 ? rows : of_all.data(), slabs * times);
    with_dtype(of.x().dtype(), [&](auto type) {
        using T = decltype(type);
        cpu::cell_forward<T>(of.problem(), of.examples<const T>("x"), of.examples<T>("y"),
                             of.affine<T>(), of.eps(), out, of.applied<T>());
    });
    if (times == 1) return;
    for (Index k = 0; k < kStatisticsRows; ++k) {  // each slice has rows of its own
        for (Index slice = 0; slice < times; ++slice) {
            std::copy_n(of_all.data() + (k * times + slice) * slabs, slabs,
                        rows + (slice * kStatisticsRows + k) * slabs);
        }
    }
}

void backward(const CellOperands& of) {
    const auto channels = static_cast<std::size_t>(of.channels());
    const cpu::PoolArray<double> dweight(channels), dbias(channels);
    with_dtype(of.x().dtype(), [&](auto type) {
        using T = decltype(type);
        cpu::cell_backward<T>(of.problem(), of.examples<const T>("dy"), of.examples<const T>("x"),
                              of.examples<T>("dx"), {of.statistics(), of.slabs()},
                              of.parameter<T>("weight"), dweight.data(), dbias.data(),
                              of.applied<T>());
        const auto round = [](double each) { return static_cast<Param<T>>(each); };
        if (!of.has("dweight")) return;
        std::ranges::transform(dweight, of.parameter<T>("dweight"), round);
        std::ranges::transform(dbias, of.parameter<T>("dbias"), round);
    });
}

ffi::Error call_forward(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
    return run_together(arguments, results, attributes,
                        [](const Frame& frame, Index slice, Index times) {
                            forward(CellOperands(Function::cell_forward, frame, slice, times));
                        });
}

ffi::Error call_backward(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                         ffi::Dictionary attributes) {
    return run_slices(arguments, results, attributes, [](const Frame& frame, Index slice) {
        backward(CellOperands(Function::cell_backward, frame, slice));
    });
}

XLA_FFI_DEFINE_HANDLER(forward_handler, &call_forward, binding());
XLA_FFI_DEFINE_HANDLER(backward_handler, &call_backward, binding());

}  // namespace

std::span<const Target> cell_targets() {
    static const std::array all{
        target("bnext_cells_forward", forward_handler),
        target("bnext_cells_backward", backward_handler),
    };
    return all;
}

}  // namespace bnext::foreign
