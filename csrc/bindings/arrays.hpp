// From Python objects to checked arrays. Every function names the argument, what was expected and
// what came, and runs before any memory is touched. All of this needs the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/errors.hpp"
#include "core/problem.hpp"
#include "cpu/view.hpp"

namespace bnext::bindings {

namespace py = pybind11;

[[noreturn]] inline void type_error(const std::string& text) { throw py::type_error(text); }
[[noreturn]] inline void value_error(const std::string& text) { throw py::value_error(text); }

std::string shape_text(std::span<const Index> shape);  // as Python prints a tuple
std::string type_name(py::handle object);

// A NumPy array with its shape and strides at hand.
class Array {
public:
    Array() = default;
    explicit Array(py::array array);

    [[nodiscard]] const py::array& object() const { return array_; }
    [[nodiscard]] std::span<const Index> shape() const { return {shape_.data(), rank_}; }
    [[nodiscard]] std::span<const Index> strides() const { return {strides_.data(), rank_}; }
    [[nodiscard]] std::span<const Index> byte_strides() const {
        return {byte_strides_.data(), rank_};
    }
    [[nodiscard]] std::size_t rank() const { return rank_; }
    [[nodiscard]] Index size() const { return array_.size(); }
    [[nodiscard]] bool viewable() const { return viewable_; }
    [[nodiscard]] std::optional<DType> dtype() const { return dtype_; }
    [[nodiscard]] std::string dtype_text() const { return py::str(array_.dtype()); }

    template <class T>
    [[nodiscard]] cpu::View<const T> view(const Strides& strides) const {
        return {static_cast<const T*>(array_.data()), strides};
    }
    template <class T>
    [[nodiscard]] cpu::View<T> mutable_view(const Strides& strides) {
        return {static_cast<T*>(array_.mutable_data()), strides};
    }

private:
    py::array array_;
    std::size_t rank_ = 0;
    std::array<Index, kMaxAxes> shape_{};
    std::array<Index, kMaxAxes> byte_strides_{};
    std::array<Index, kMaxAxes> strides_{};  // in elements, if viewable
    bool viewable_ = false;                  // aligned, strides multiples of the element
    std::optional<DType> dtype_;             // of the supported ones, in native byte order
};

// x: anything that numpy.asarray takes without changing its precision.
Array take_data(py::handle object, const char* name);
// Another array that must agree with x in dtype and shape.
Array take_like(py::handle object, const char* name, const Array& x);
// The destination: a NumPy array, writeable, free of overlap with itself and with `inputs`.
struct Named {
    const char* name;
    const py::array* array;  // null: not given
};
Array take_out(py::handle object, const Array& x, std::initializer_list<Named> inputs);

// A per-channel vector: a pointer to contiguous values, copied only where they are not.
template <class T>
struct Vector {
    py::array array;
    std::vector<T> copy;
    const T* data = nullptr;  // null: None was given
};
// None is allowed. dtype must be T.
template <class T>
Vector<T> take_parameter(py::handle object, const char* name, Index channels);
// None is not allowed; T or float64, given back in double.
struct Statistics {
    py::array array;
    std::vector<double> values;
};
Statistics take_statistics(py::handle object, const char* name, Index channels, DType dtype);
// A writeable vector of T that is updated in place (any stride).
template <class T>
struct Buffer {
    T* data = nullptr;
    Index stride = 0;  // in elements
    py::array array;
};
template <class T>
Buffer<T> take_buffer(py::handle object, const char* name, Index channels);

py::array as_array(py::handle object, const char* name);
double take_real(py::handle object, const char* name);
double take_eps(py::handle object);
double take_momentum(py::handle object);
Index take_axis(py::handle object, std::size_t rank);  // normalised to 0..rank-1

Array empty_like(const Array& x);  // dense, in x's memory order
Array copy_of(const Array& x);     // likewise
Array c_ordered_copy_of(const Array& x);
Array copy_like(const Array& a, const Array& x);  // a's values, in x's memory order
void copy_into(const Array& destination, const Array& source);

}  // namespace bnext::bindings
