// The arrays of one call, seen as one Problem: copies are made here, of what the kernels cannot
// walk.
#pragma once

#include "bindings/arrays.hpp"

namespace bnext::bindings {

// Inputs of one call, described together. An input that does not fit is replaced by a copy: in x's
// memory order if the kernels can walk that, else in C order.
class Inputs {
public:
    Inputs(Array& x, Index axis) : Inputs(x, nullptr, axis) {}
    Inputs(Array& x, Array* dy, Index axis) : x_(x), dy_(dy), axis_(axis) {
        if (!x_.viewable() || !described({x_.strides()}).accepted()) {
            x_ = copy_of(x_);
            if (!described({x_.strides()}).accepted()) x_ = c_ordered_copy_of(x_);
        }
        if (dy_ != nullptr && (!dy_->viewable() || !described(all()).accepted())) {
            *dy_ = copy_like(*dy_, x_);
        }
    }

    // For inputs that can be read where they are, but whose order no dense output can have:
    // repeated or overlapping elements (broadcast_to, sliding windows).
    void copy_all() {
        x_ = c_ordered_copy_of(x_);
        if (dy_ != nullptr) *dy_ = copy_like(*dy_, x_);
    }

    Description describe_inputs() const { return described(all()); }

    // With an output, which must be viewable; refuses where its layout is another than x's.
    Description describe_with(const Array& out) const {
        auto strides = all();
        strides.push_back(out.strides());
        return described(strides);
    }

private:
    std::vector<AxisStrides> all() const {
        if (dy_ == nullptr) return {x_.strides()};
        return {x_.strides(), dy_->strides()};
    }
    Description described(const std::vector<AxisStrides>& strides) const {
        return describe(*x_.dtype(), x_.shape(), axis_, strides);
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
        if (!out.is_none()) {
            wanted_ = take_out(out, x, overlapping);
            if (wanted_->viewable()) {
                description_ = inputs.describe_with(*wanted_);
                if (description_.accepted()) {
                    target_ = *wanted_;
                    direct_ = true;
                    return;
                }
            }
        }
        target_ = empty_like(x);
        description_ = inputs.describe_with(target_);
        if (!description_.accepted()) {
            inputs.copy_all();  // x is one of them
            target_ = empty_like(x);
            description_ = inputs.describe_with(target_);
        }
        BNEXT_CHECK(description_.accepted(), "out: ", description_.refusal);
    }

    [[nodiscard]] const Description& description() const { return description_; }
    Array& target() { return target_; }

    py::object result() {
        if (!wanted_) return target_.object();
        if (!direct_) copy_into(*wanted_, target_);
        return wanted_->object();
    }

private:
    std::optional<Array> wanted_;
    Array target_;
    bool direct_ = false;
    Description description_;
};

}  // namespace bnext::bindings
