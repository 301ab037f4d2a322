// The arrays of a call of layer or RMS normalization, as matrices whose rows are normalized.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "bindings/bodies.hpp"
#include "bindings/row_saved.hpp"
#include "cpu/rows.hpp"

namespace bnext::bindings {

// The strides of an array in C order.
inline std::vector<Index> c_strides(std::span<const Index> shape) {
    std::vector<Index> strides(shape.size());
    Index step = 1;
    for (std::size_t a = shape.size(); a-- > 0; step *= shape[a]) strides[a] = step;
    return strides;
}

// How far rows are apart, if their values lie side by side and all rows are equally far apart; else
// negative.
inline Index pitch_of(const ArrayRef& array, Index first) {
    Index expected = 1, pitch = 0;
    for (Index a = array.rank; a-- > 0;) {
        if (a + 1 == first) expected = 0;  // any
        const Index extent = array.extents[a];
        if (extent == 1) continue;
        const Index step = array.strides[a];
        if (a >= first) {
            if (step != expected) return -1;
            expected *= extent;
        } else {
            if (pitch != 0 && step != expected) return -1;
            if (pitch == 0) pitch = step;
            if (pitch <= 0) return -1;
            expected = step * extent;
        }
    }
    if (pitch > 0) return pitch;
    Index width = 1;
    for (Index a = first; a < array.rank; ++a) width *= array.extents[a];
    return width;
}

// The arrays of one call as matrices: copies of those that are none.
class RowOperands {
public:
    RowOperands(Intake& call, Index first) : call_(call), first_(first) {}

    template <class T>
    cpu::Matrix<const T> matrix(Role role) {
        ArrayRef array = call_[role];
        if (array.size() == 0) return {array.as<const T>(), 1};
        const Index pitch = array.viewable ? pitch_of(array, first_) : -1;
        if (pitch > 0) return {array.as<const T>(), pitch};
        const ArrayRef copy = copy_of(array);
        return {copy.as<const T>(), pitch_of(copy, first_)};
    }
    // The values of a parameter in C order; null where it is not given.
    template <class P>
    const P* values(Role role) {
        if (!call_.call.has(role)) return nullptr;
        const ArrayRef& array = call_[role];
        const bool dense = array.viewable && (array.c_contiguous || array.size() <= 1);
        return dense ? array.as<const P>() : copy_of(array).as<const P>();
    }
    // The same, in float64; empty where it is not given.
    template <class P>
    std::vector<double> copy_of_values(Role role, Index width) {
        const P* const given = values<P>(role);
        return given == nullptr ? std::vector<double>() : std::vector<double>(given, given + width);
    }
    // Where the result goes: `out` if it is a matrix, else new memory.
    template <class T>
    cpu::Matrix<T> target(const Results& results) {
        const ArrayRef& x = call_[Role::x];
        if (call_.call.has(Role::out)) {
            const ArrayRef& out = call_[Role::out];
            const Index pitch = out.viewable ? pitch_of(out, first_) : -1;
            direct_ = pitch > 0;
            if (direct_) return {out.as<T>(), pitch};
        }
        const auto strides = c_strides(x.shape());
        fresh_ =
            (call_.call.has(Role::out) ? Results() : results).make(x.dtype(), x.shape(), strides);
        return matrix_of<T>(fresh_);
    }
    // Another result of the shape of x.
    template <class T>
    cpu::Matrix<T> make(const Results& results, Fresh& fresh) {
        const ArrayRef& x = call_[Role::x];
        fresh = results.make(x.dtype(), x.shape(), c_strides(x.shape()));
        return matrix_of<T>(fresh);
    }
    py::object result(const Results& results) {
        if (!call_.call.has(Role::out)) return results.give(std::move(fresh_));
        if (!direct_) {
            ArrayRef from = call_[Role::x];
            dense_like(from, fresh_.data);
            intake::copy_values(call_[Role::out], from);
        }
        return py::reinterpret_borrow<py::object>(call_.out());
    }

private:
    template <class T>
    cpu::Matrix<T> matrix_of(const Fresh& fresh) {
        const auto normalized = call_[Role::x].shape().subspan(static_cast<std::size_t>(first_));
        return {static_cast<T*>(fresh.data), std::max<Index>(RowSaved::product(normalized), 1)};
    }
    // Makes `array` refer to memory in C order.
    void dense_like(ArrayRef& array, void* data) {
        Index* const steps = call_.extents().take(array.rank);
        const auto strides = c_strides(array.shape());
        std::ranges::transform(strides, steps, [&](Index s) { return s * array.item(); });
        array.data = data;
        array.steps = steps;
        complete(array, call_.extents());
    }
    ArrayRef copy_of(const ArrayRef& array) {
        ArrayRef copy = array;
        auto& memory = copies_[copy_count_++];
        memory = cpu::PoolArray<char>(static_cast<std::size_t>(array.size() * array.item()));
        dense_like(copy, memory.data());
        intake::copy_values(copy, array);
        return copy;
    }

    Intake& call_;
    Index first_;
    std::array<cpu::PoolArray<char>, 5> copies_;
    std::size_t copy_count_ = 0;
    Fresh fresh_;
    bool direct_ = false;
};

}  // namespace bnext::bindings
