// The arrays of one call, seen as one Problem: copies are made here, of what the kernels cannot
// walk.
#pragma once

#include "bindings/gil.hpp"
#include "cpu/reorder.hpp"
#include "cpu/view.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {

namespace py = pybind11;

using intake::Fresh;
using intake::Intake;
using intake::Results;

// The inputs of one call (x alone, dy alone, or both) and its result, described together. The
// result is `out` itself where its strides suit the kernels, else fresh memory that is copied into
// `out` at the end; a fresh array where there is no `out`.
class Operands {
public:
    // Without `results`: of an operation that writes no data.
    Operands(Intake& call, const std::optional<Results>& results)
        : call_(call),
          results_(results),
          x_(call[call.call.data()]),
          has_dy_(call.call.has(Role::x) && call.call.has(Role::dy)),
          axis_(call.call.axis()) {
        if (has_dy_) dy_ = call[Role::dy];
        if (results && call.call.has(Role::out)) wanted_ = &call[Role::out];
        const bool viewable = x_.viewable && (!has_dy_ || dy_.viewable);
        if (viewable && (wanted_ != nullptr ? fits_wanted() : fits_fresh())) return;
        make_walkable();  // x is one of them
        if (wanted_ != nullptr && fits_wanted()) return;
        if (!fits_fresh()) {
            copy_all();
            fits_fresh();
        }
        BNEXT_CHECK(description_.accepted(), "out: ", description_.refusal);
    }

    [[nodiscard]] const Problem& problem() const { return description_.problem; }

    // The views of the first input, of dy beside x, and of the result.
    template <class T>
    [[nodiscard]] cpu::View<const T> x() const {
        return {x_.as<const T>(), description_.strides[0]};
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> dy() const {
        return {dy_.as<const T>(), description_.strides[1]};
    }
    template <class T>
    [[nodiscard]] cpu::View<T> target() const {
        return {static_cast<T*>(direct_ ? wanted_->data : fresh_.data),
                description_.strides[has_dy_ ? 2 : 1]};
    }

    // None where nothing is written.
    py::object result() {
        if (!results_) return py::none();
        if (wanted_ == nullptr) return results_->give(std::move(fresh_));
        if (!direct_) intake::copy_values(*wanted_, fresh_ref_);
        return py::reinterpret_borrow<py::object>(call_.out());
    }

private:
    // Describes the inputs, and an output of those strides: whether kernels can walk them all.
    bool fits(AxisStrides out) {
        std::array<AxisStrides, kMaxOperands> strides{x_.axis_strides()};
        std::size_t n = 1;
        if (has_dy_) strides[n++] = dy_.axis_strides();
        if (!out.empty()) strides[n++] = out;
        description_ = describe(x_.dtype(), x_.shape(), axis_, {strides.data(), n});
        return description_.accepted();
    }
    bool fits_wanted() { return direct_ = wanted_->viewable && fits(wanted_->axis_strides()); }
    // With fresh memory in x's memory order.
    bool fits_fresh() {
        if (!results_) return fits({});
        Index* const strides = call_.extents().take(x_.rank);
        dense_strides_like(x_.shape(), x_.byte_strides(), {strides, x_.rank});
        if (!fits({strides, x_.rank})) return false;
        const Results results = wanted_ == nullptr ? *results_ : Results();
        fresh_ = results.make(x_.dtype(), x_.shape(), {strides, x_.rank});
        if (wanted_ != nullptr) {
            fresh_ref_ = x_;
            fresh_ref_.data = fresh_.data;
            Index* const steps = call_.extents().take(x_.rank);
            for (std::size_t a = 0; a < x_.rank; ++a) steps[a] = strides[a] * x_.item();
            fresh_ref_.steps = steps;
        }
        return true;
    }

    // An input that does not fit is replaced by a copy: in x's memory order if the kernels can walk
    // that, else in C order.
    void make_walkable() {
        if (!x_.viewable || !x_fits()) {
            x_ = copy_of(x_, x_.byte_strides());
            if (!x_fits()) x_ = copy_of(x_, {});
        }
        if (has_dy_ && (!dy_.viewable || !fits({}))) dy_ = copy_of(dy_, x_.byte_strides());
    }
    // For inputs that can be read where they are, but whose order no dense output can have:
    // repeated or overlapping elements (broadcast_to, sliding windows).
    void copy_all() {
        x_ = copy_of(x_, {});
        if (has_dy_) dy_ = copy_of(dy_, x_.byte_strides());
    }
    [[nodiscard]] bool x_fits() const {
        const std::array strides{x_.axis_strides()};
        return describe(x_.dtype(), x_.shape(), axis_, strides).accepted();
    }

    // A dense copy whose axes lie in memory in the order of the steps `like`; of none, in C order.
    ArrayRef copy_of(const ArrayRef& array, AxisStrides like) {
        ArrayRef copy = array;
        Index* const steps = call_.extents().take(array.rank);
        dense_strides_like(array.shape(), like, {steps, array.rank});
        for (std::size_t a = 0; a < array.rank; ++a) steps[a] *= array.item();
        auto& memory = copies_[copy_count_++];
        memory = cpu::PoolArray<char>(static_cast<std::size_t>(array.size() * array.item()));
        copy.data = memory.data();
        copy.steps = steps;
        complete(copy, call_.extents());
        if (!copy_between_orders(copy, array)) intake::copy_values(copy, array);
        return copy;
    }

    // From C order to channels last, or the other way round, by all threads.
    bool copy_between_orders(const ArrayRef& to, const ArrayRef& from) const {
        if (axis_ != 1 || to.rank < 3 || !from.viewable || to.c_contiguous == from.c_contiguous) {
            return false;
        }
        const ArrayRef& other = from.c_contiguous ? to : from;
        Index expected = other.item();
        for (std::size_t a = other.rank + 1; a-- > 0;) {  // channels, planes from behind, examples
            const std::size_t of = a == other.rank ? 1 : a;
            if (a == 1) continue;
            if (other.extents[of] != 1 && other.steps[of] != expected) return false;
            expected *= other.extents[of];
        }
        const Index size = to.size();
        if (size == 0) return true;
        const Index channels = to.extents[1], count = to.extents[0];
        const Index plane = size / (count * channels);
        without_gil(size, [&] {
            cpu::transpose(from.data, to.data, to.item(), count,
                           from.c_contiguous ? channels : plane,
                           from.c_contiguous ? plane : channels);
        });
        return true;
    }

    Intake& call_;
    const std::optional<Results>& results_;
    ArrayRef x_, dy_;
    bool has_dy_;
    Index axis_;
    std::array<cpu::PoolArray<char>, 4> copies_;
    std::size_t copy_count_ = 0;
    const ArrayRef* wanted_ = nullptr;
    Fresh fresh_;
    ArrayRef fresh_ref_;
    bool direct_ = false;
    Description description_;
};

}  // namespace bnext::bindings
