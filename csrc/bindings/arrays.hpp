// From Python objects to checked arrays. Every function names the argument, what was expected and
// what came, and runs before any memory is touched. All of this needs the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <string>

#include "bindings/arguments.hpp"
#include "core/errors.hpp"
#include "core/float_mode.hpp"
#include "core/problem.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/view.hpp"

namespace bnext::bindings {

// Looks up what is used of NumPy; called once, at import. Threads that came here together later
// would wait for each other without the GIL, and one that asks for it back while the interpreter
// ends does not survive that (gil.hpp).
void prepare_arrays();

bool is_data_dtype(const py::dtype& dtype);
const py::object& descr_of(DType dtype);  // NumPy's; of bfloat16, once an array of it was taken

// As many numbers as an array has axes. The rest of the room is neither cleared nor copied.
class Axes {
public:
    Axes() = default;
    explicit Axes(std::size_t size) : size_(size) {}
    Axes(const Axes& other) : size_(other.size_) { copy(other); }
    Axes& operator=(const Axes& other) {
        size_ = other.size_;
        copy(other);
        return *this;
    }
    ~Axes() = default;

    Index& operator[](std::size_t a) { return values_[a]; }
    const Index& operator[](std::size_t a) const { return values_[a]; }
    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] std::span<Index> span() { return {values_.data(), size_}; }
    [[nodiscard]] std::span<const Index> span() const { return {values_.data(), size_}; }

private:
    void copy(const Axes& other) { std::copy_n(other.values_.begin(), size_, values_.begin()); }

    std::size_t size_ = 0;
    std::array<Index, kMaxAxes> values_;  // NOLINT: not initialised on purpose
};

// Where the elements of an array of one of the supported dtypes are, whoever's array it is.
struct Strided {
    const void* data;
    DType dtype;
    std::span<const Index> shape, byte_strides;
    bool c_contiguous;

    [[nodiscard]] Index size() const {
        Index product = 1;
        for (const Index extent : shape) product *= extent;
        return product;
    }
};

// A NumPy array with its shape and strides at hand. (The object is kept as py::object: a py::array
// that is constructed empty is an array, which takes longer to make than a small call to compute.)
class Array {
public:
    Array() = default;
    explicit Array(py::object array);  // of ndarray, or of a subclass

    [[nodiscard]] const py::object& object() const { return array_; }
    [[nodiscard]] const void* data() const { return proxy()->data; }
    // The element with that index along the first axis.
    [[nodiscard]] const void* data(Index i) const { return proxy()->data + i * byte_strides_[0]; }
    [[nodiscard]] std::span<const Index> shape() const { return shape_.span(); }
    [[nodiscard]] std::span<const Index> strides() const { return strides_.span(); }
    [[nodiscard]] std::span<const Index> byte_strides() const { return byte_strides_.span(); }
    [[nodiscard]] std::size_t rank() const { return shape_.size(); }
    [[nodiscard]] Index extent(Index axis) const { return shape_[static_cast<std::size_t>(axis)]; }
    [[nodiscard]] Index size() const;
    [[nodiscard]] bool viewable() const { return viewable_; }
    [[nodiscard]] bool writeable() const {
        return (proxy()->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
    }
    [[nodiscard]] bool contiguous() const {  // in C or in Fortran order
        constexpr int either = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ |
                               py::detail::npy_api::NPY_ARRAY_F_CONTIGUOUS_;
        return (proxy()->flags & either) != 0;
    }
    [[nodiscard]] bool c_contiguous() const {
        return (proxy()->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0;
    }
    [[nodiscard]] std::optional<DType> dtype() const { return dtype_; }
    [[nodiscard]] Strided strided() const {  // of a supported dtype
        return {data(), *dtype_, shape(), byte_strides(), c_contiguous()};
    }
    [[nodiscard]] std::string dtype_text() const { return py::str(py::handle(proxy()->descr)); }

    template <class T>
    [[nodiscard]] cpu::View<const T> view(const Strides& strides) const {
        return {static_cast<const T*>(data()), strides};
    }
    template <class T>
    [[nodiscard]] cpu::View<T> mutable_view(const Strides& strides) {
        return {reinterpret_cast<T*>(proxy()->data), strides};
    }

private:
    [[nodiscard]] const py::detail::PyArray_Proxy* proxy() const {
        return py::detail::array_proxy(array_.ptr());
    }

    py::object array_;
    Axes shape_;
    Axes byte_strides_;
    Axes strides_;                // in elements, if viewable
    bool viewable_ = false;       // aligned, strides multiples of the element
    std::optional<DType> dtype_;  // of the supported ones, in native byte order
};

// x: anything that numpy.asarray takes without changing its precision.
Array take_data(py::handle object, const char* name);
// Another array that must agree with x in dtype and shape.
Array take_like(py::handle object, const char* name, const Array& x);
Array take_like(py::handle object, const char* name, DType dtype, std::span<const Index> shape);
// The destination: a NumPy array, writeable, free of overlap with itself and with `inputs`.
struct Named {
    const char* name;
    const py::object* array;  // a null object: not given
};
Array take_out(py::handle object, const Array& x, std::initializer_list<Named> inputs);

// A per-channel vector: a pointer to contiguous values, copied only where they are not.
template <class T>
struct Vector {
    py::object array;  // null: None was given
    cpu::PoolArray<T> copy;
    const T* data = nullptr;
};
// None is allowed. dtype must be T. Given the shape of x, errors name the axis that would fit.
template <class T>
Vector<T> take_parameter(py::handle object, const char* name, Index channels,
                         std::span<const Index> x = {});
// None is not allowed; `dtype` or `other`. The values go to `values`, whose size is expected.
py::object take_statistics(py::handle object, const char* name, DType dtype, DType other,
                           std::span<double> values, std::span<const Index> x = {});
// A writeable vector of T that is updated in place (any stride).
template <class T>
struct Buffer {
    T* data = nullptr;
    Index stride = 0;  // in elements
    py::object array;
};
template <class T>
Buffer<T> take_buffer(py::handle object, const char* name, Index channels);

// A writeable int64 array of shape (), whose number can be counted on.
std::int64_t* take_count(py::handle object);

py::array as_array(py::handle object, const char* name);

py::object empty_vector(DType dtype, Index size);
// The values, each times its factor if there are any, rounded once.
template <class T>
void round_each(std::span<const double> values, const double* factor, T* out) {
    const FloatMode mode;
    for (std::size_t c = 0; c < values.size(); ++c) {
        out[c] = static_cast<T>(factor != nullptr ? values[c] * factor[c] : values[c]);
    }
}
template <class T>
py::object vector_of(std::span<const double> values, const double* factor = nullptr) {
    py::object result = empty_vector(DTypeOf<T>::value, static_cast<Index>(values.size()));
    round_each(values, factor, reinterpret_cast<T*>(py::detail::array_proxy(result.ptr())->data));
    return result;
}
Axes dense_strides(const Array& x);  // in elements, of an array in x's memory order
Array empty_like(const Array& x, Axes strides);
Array empty_like(const Array& x);  // with those
Array copy_of(const Array& x);     // likewise
Array c_ordered_copy_of(const Array& x);
Array copy_like(const Array& a, const Array& x);  // a's values, in x's memory order
void copy_into(const Array& destination, const Array& source);

}  // namespace bnext::bindings
