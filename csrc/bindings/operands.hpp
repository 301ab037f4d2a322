// The arrays of one call, seen as one Problem: copies are made here, of what the kernels cannot
// walk.
#pragma once

#include "bindings/arrays.hpp"

namespace bnext::bindings {

// Inputs of one call, described together. Nothing is copied until it is asked for.
class Inputs {
public:
    Inputs(Array& x, Index axis) : Inputs(x, nullptr, axis) {}
    Inputs(Array& x, Array* dy, Index axis) : x_(x), dy_(dy), axis_(axis) {}

    [[nodiscard]] bool viewable() const {
        return x_.viewable() && (dy_ == nullptr || dy_->viewable());
    }

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
        if (!x_.viewable() || !describe_x().accepted()) {
            x_ = copy_of(x_);
            if (!describe_x().accepted()) x_ = c_ordered_copy_of(x_);
        }
        if (dy_ != nullptr && (!dy_->viewable() || !described({}).accepted())) {
            *dy_ = copy_like(*dy_, x_);
        }
    }

    // For inputs that can be read where they are, but whose order no dense output can have:
    // repeated or overlapping elements (broadcast_to, sliding windows).
    void copy_all() {
        x_ = c_ordered_copy_of(x_);
        if (dy_ != nullptr) *dy_ = copy_like(*dy_, x_);
    }

private:
    [[nodiscard]] Description describe_x() const {
        const std::array strides{x_.strides()};
        return describe(*x_.dtype(), x_.shape(), axis_, strides);
    }
    [[nodiscard]] Description described(AxisStrides out) const {
        std::array<AxisStrides, kMaxOperands> strides{x_.strides()};
        std::size_t n = 1;
        if (dy_ != nullptr) strides[n++] = dy_->strides();
        if (!out.empty()) strides[n++] = out;
        return describe(*x_.dtype(), x_.shape(), axis_, {strides.data(), n});
    }

    Array& x_;
    Array* dy_;
    Index axis_;
};

// Where the result goes: `out` itself where its strides suit the kernels, else a fresh array that
// is copied into `out` at the end; a fresh array where there is no `out`.
class Destination {
public:
    Destination(py::handle out, const Array& x, Inputs& inputs,
                std::initializer_list<Named> overlapping) {
        if (!out.is_none()) wanted_.emplace(take_out(out, x, overlapping));
        if (inputs.viewable() && (wanted_ ? fits_wanted(inputs) : fits_fresh(inputs, x))) return;
        inputs.make_walkable();  // x is one of them
        if (wanted_ && fits_wanted(inputs)) return;
        if (!fits_fresh(inputs, x)) {
            inputs.copy_all();
            fits_fresh(inputs, x);
        }
        BNEXT_CHECK(description_.accepted(), "out: ", description_.refusal);
    }

    [[nodiscard]] const Description& description() const { return description_; }
    Array& target() { return direct_ ? *wanted_ : fresh_; }

    py::object result() {
        if (!wanted_) return fresh_.object();
        if (!direct_) copy_into(*wanted_, fresh_);
        return wanted_->object();
    }

private:
    bool fits_wanted(const Inputs& inputs) {
        if (!wanted_->viewable()) return false;
        description_ = inputs.describe_with(wanted_->strides());
        return direct_ = description_.accepted();
    }
    bool fits_fresh(const Inputs& inputs, const Array& x) {
        const Axes strides = dense_strides(x);
        description_ = inputs.describe_with(strides.span());
        if (description_.accepted()) fresh_ = empty_like(x, strides);
        return description_.accepted();
    }

    std::optional<Array> wanted_;
    Array fresh_;
    bool direct_ = false;
    Description description_;
};

}  // namespace bnext::bindings
