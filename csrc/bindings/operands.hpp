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

template <class T>
cpu::View<T> view_of(const ArrayRef& array, const Strides& strides) {
    return {static_cast<T*>(array.data), strides};
}

// Inputs of one call, described together: x alone, dy alone, or both. Nothing is copied until it is
// asked for.
class Inputs {
public:
    explicit Inputs(Intake& call)
        : call_(call),
          x_(call[call.call.data()]),
          has_dy_(call.call.has(Role::x) && call.call.has(Role::dy)),
          axis_(call.call.axis()) {
        if (has_dy_) dy_ = call[Role::dy];
    }

    // The first one; by themselves, which they are once kernels can walk them.
    [[nodiscard]] const ArrayRef& x() const { return x_; }
    [[nodiscard]] const ArrayRef& dy() const { return dy_; }
    [[nodiscard]] std::size_t count() const { return has_dy_ ? 2 : 1; }

    [[nodiscard]] bool viewable() const { return x_.viewable && (!has_dy_ || dy_.viewable); }

    // By themselves; replaced by copies first if the kernels cannot walk them.
    Description describe_inputs() {
        if (viewable()) {
            const Description description = described({});
            if (description.accepted()) return description;
        }
        make_walkable();
        return described({});
    }

    // With an output of those strides. All inputs must be viewable; refuses where the output's
    // layout is another than x's.
    [[nodiscard]] Description describe_with(AxisStrides out) const { return described(out); }

    // An input that does not fit is replaced by a copy: in x's memory order if the kernels can walk
    // that, else in C order.
    void make_walkable() {
        if (!x_.viewable || !describe_x().accepted()) {
            x_ = copy_of(x_, x_.steps);
            if (!describe_x().accepted()) x_ = copy_of(x_, nullptr);
        }
        if (has_dy_ && (!dy_.viewable || !described({}).accepted())) dy_ = copy_of(dy_, x_.steps);
    }

    // For inputs that can be read where they are, but whose order no dense output can have:
    // repeated or overlapping elements (broadcast_to, sliding windows).
    void copy_all() {
        x_ = copy_of(x_, nullptr);
        if (has_dy_) dy_ = copy_of(dy_, x_.steps);
    }

    // Strides in elements of a dense array in x's memory order.
    [[nodiscard]] AxisStrides dense_strides() const {
        Index* const strides = call_.extents().take(x_.rank);
        dense_strides_like(x_.shape(), x_.byte_strides(), {strides, x_.rank});
        return {strides, x_.rank};
    }

private:
    [[nodiscard]] Description describe_x() const {
        const std::array strides{x_.axis_strides()};
        return describe(x_.dtype(), x_.shape(), axis_, strides);
    }
    [[nodiscard]] Description described(AxisStrides out) const {
        std::array<AxisStrides, kMaxOperands> strides{x_.axis_strides()};
        std::size_t n = 1;
        if (has_dy_) strides[n++] = dy_.axis_strides();
        if (!out.empty()) strides[n++] = out;
        return describe(x_.dtype(), x_.shape(), axis_, {strides.data(), n});
    }

    // A dense copy whose axes lie in memory in the order of the steps `like`, or in C order.
    ArrayRef copy_of(const ArrayRef& array, const Index* like) {
        ArrayRef copy = array;
        Index* const steps = call_.extents().take(array.rank);
        Index size = array.item();
        if (like != nullptr) {
            dense_strides_like(array.shape(), {like, array.rank}, {steps, array.rank});
            for (std::size_t a = 0; a < array.rank; ++a) steps[a] *= array.item();
            size *= array.size();
        } else {
            for (std::size_t a = array.rank; a-- > 0;) {
                steps[a] = size;
                size *= array.extents[a];
            }
        }
        auto& memory = copies_[copy_count_++];
        memory = cpu::PoolArray<char>(static_cast<std::size_t>(size));
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
    ArrayRef x_;
    ArrayRef dy_;
    bool has_dy_;
    Index axis_;
    std::array<cpu::PoolArray<char>, 4> copies_;
    std::size_t copy_count_ = 0;
};

// Where the result goes: `out` itself where its strides suit the kernels, else fresh memory that is
// copied into `out` at the end; a fresh array where there is no `out`.
class Destination {
public:
    Destination(Intake& call, Inputs& inputs, const Results& results)
        : call_(call), inputs_(inputs), results_(results) {
        if (call.call.has(Role::out)) wanted_ = &call[Role::out];
        if (inputs.viewable() && (wanted_ != nullptr ? fits_wanted() : fits_fresh())) return;
        inputs.make_walkable();  // x is one of them
        if (wanted_ != nullptr && fits_wanted()) return;
        if (!fits_fresh()) {
            inputs.copy_all();
            fits_fresh();
        }
        BNEXT_CHECK(description_.accepted(), "out: ", description_.refusal);
    }

    [[nodiscard]] const Description& description() const { return description_; }
    [[nodiscard]] const Problem& problem() const { return description_.problem; }

    // The views of x, of dy if there is one, and of the result.
    template <class T>
    [[nodiscard]] cpu::View<const T> x() const {
        return view_of<const T>(inputs_.x(), description_.strides[0]);
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> dy() const {
        return view_of<const T>(inputs_.dy(), description_.strides[1]);
    }
    template <class T>
    [[nodiscard]] cpu::View<T> target() const {
        return {static_cast<T*>(direct_ ? wanted_->data : fresh_.data),
                description_.strides[inputs_.count()]};
    }

    py::object result() {
        if (wanted_ == nullptr) return results_.give(std::move(fresh_));
        if (!direct_) intake::copy_values(*wanted_, fresh_ref_);
        return py::reinterpret_borrow<py::object>(call_.out());
    }

private:
    bool fits_wanted() {
        if (!wanted_->viewable) return false;
        description_ = inputs_.describe_with(wanted_->axis_strides());
        return direct_ = description_.accepted();
    }
    bool fits_fresh() {
        const ArrayRef& x = inputs_.x();
        const AxisStrides strides = inputs_.dense_strides();
        description_ = inputs_.describe_with(strides);
        if (!description_.accepted()) return false;
        const Results& results = wanted_ == nullptr ? results_ : numpy_;
        fresh_ = results.make(x.dtype(), x.shape(), strides);
        if (wanted_ != nullptr) {
            fresh_ref_ = x;
            fresh_ref_.data = fresh_.data;
            Index* const steps = call_.extents().take(x.rank);
            for (std::size_t a = 0; a < x.rank; ++a) steps[a] = strides[a] * x.item();
            fresh_ref_.steps = steps;
        }
        return true;
    }

    Intake& call_;
    Inputs& inputs_;
    const Results& results_;
    Results numpy_;  // memory that is copied from
    const ArrayRef* wanted_ = nullptr;
    Fresh fresh_;
    ArrayRef fresh_ref_;
    bool direct_ = false;
    Description description_;
};

}  // namespace bnext::bindings
