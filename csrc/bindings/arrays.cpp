#include "bindings/arrays.hpp"

#include <cmath>
#include <cstring>

#include "bindings/pooled.hpp"

namespace bnext::bindings {
namespace {

// NumPy's own functions, looked up once and kept until the process ends.
struct NumPy {
    py::object asarray, copyto, shares_memory, masked_array;
};

const NumPy& numpy() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<NumPy> storage;
    const auto look_up = [] {
        const auto np = py::module_::import("numpy");
        return NumPy{np.attr("asarray"), np.attr("copyto"), np.attr("shares_memory"),
                     np.attr("ma").attr("MaskedArray")};
    };
    return storage.call_once_and_store_result(look_up).get_stored();
}

std::optional<DType> supported(const py::dtype& dtype) {
    const char order = dtype.byteorder();
    if (order != '=' && order != '|') return std::nullopt;
    switch (dtype.num()) {
        case py::detail::npy_api::NPY_FLOAT_: return DType::float32;
        case py::detail::npy_api::NPY_DOUBLE_: return DType::float64;
        default: return std::nullopt;
    }
}

std::string number_text(double value) { return py::str(py::float_(value)); }

void check_shape(const Array& array, const char* name, std::span<const Index> expected) {
    const auto shape = array.shape();
    if (!std::equal(shape.begin(), shape.end(), expected.begin(), expected.end())) {
        value_error(
            concat(name, ": expected shape ", shape_text(expected), ", got ", shape_text(shape)));
    }
}

void check_dtype(const Array& array, const char* name, DType expected) {
    if (array.dtype() != expected) {
        type_error(
            concat(name, ": expected dtype ", name_of(expected), ", got ", array.dtype_text()));
    }
}

// First and one past the last byte that the array can touch.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const py::array& array) {
    auto begin = reinterpret_cast<std::uintptr_t>(array.data());
    auto end = begin + static_cast<std::uintptr_t>(array.itemsize());
    for (py::ssize_t a = 0; a < array.ndim(); ++a) {
        if (array.shape(a) == 0) return {begin, begin};
        const py::ssize_t reach = array.strides(a) * (array.shape(a) - 1);
        (reach < 0 ? begin : end) += static_cast<std::uintptr_t>(reach);
    }
    return {begin, end};
}

bool overlap(const py::array& a, const py::array& b) {
    const auto [a_begin, a_end] = bounds(a);
    const auto [b_begin, b_end] = bounds(b);
    if (a_begin == a_end || b_begin == b_end || a_end <= b_begin || b_end <= a_begin) return false;
    // The bounds of two slices of one array may overlap without the slices doing so. The exact
    // answer can be slow to find in theory; past this much work it counts as an overlap.
    try {
        return py::cast<bool>(numpy().shares_memory(a, b, py::arg("max_work") = 10000));
    } catch (py::error_already_set&) {
        return true;
    }
}

// Not initialised; without strides, in C order.
Array fresh(const Array& x, std::span<const Index> byte_strides) {
    using Extents = std::vector<py::ssize_t>;
    const auto shape = x.shape();
    const FromPool from_pool(static_cast<std::size_t>(x.size() * size_of(*x.dtype())));
    return Array(py::array(x.object().dtype(), Extents(shape.begin(), shape.end()),
                           Extents(byte_strides.begin(), byte_strides.end())));
}

}  // namespace

std::string shape_text(std::span<const Index> shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

Array::Array(py::array array) : array_(std::move(array)) {
    rank_ = static_cast<std::size_t>(array_.ndim());
    BNEXT_CHECK(rank_ <= kMaxAxes, "x: expected at most 64 dimensions, got ", rank_);
    dtype_ = supported(array_.dtype());
    const Index item = array_.itemsize();
    viewable_ =
        dtype_.has_value() &&
        reinterpret_cast<std::uintptr_t>(array_.data()) % static_cast<std::uintptr_t>(item) == 0;
    for (std::size_t a = 0; a < rank_; ++a) {
        const auto axis = static_cast<py::ssize_t>(a);
        shape_[a] = array_.shape(axis);
        byte_strides_[a] = array_.strides(axis);
        viewable_ = viewable_ && (byte_strides_[a] % item == 0 || shape_[a] == 1);
        strides_[a] = viewable_ ? byte_strides_[a] / item : 0;
    }
}

py::array as_array(py::handle object, const char* name) {
    if (py::isinstance<py::array>(object)) {
        if (py::isinstance(object, numpy().masked_array)) {
            type_error(concat(name, ": expected an array without a mask, got a MaskedArray"));
        }
        return py::reinterpret_borrow<py::array>(object);
    }
    try {
        return py::reinterpret_steal<py::array>(numpy().asarray(object).release());
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
        py::raise_from(error, PyExc_TypeError,
                       concat(name, ": expected an array, got ", type_name(object)).c_str());
        throw py::error_already_set();
    }
}

Array take_data(py::handle object, const char* name) {
    Array array(as_array(object, name));
    if (!array.dtype()) {
        type_error(concat(name, ": expected dtype float32 or float64, got ", array.dtype_text()));
    }
    if (array.rank() == 0) value_error(concat(name, ": expected at least 1 dimension, got 0"));
    return array;
}

Array take_like(py::handle object, const char* name, const Array& x) {
    Array array(as_array(object, name));
    check_dtype(array, name, *x.dtype());
    check_shape(array, name, x.shape());
    return array;
}

Array take_out(py::handle object, const Array& x, std::initializer_list<Named> inputs) {
    if (!py::isinstance<py::array>(object)) {
        type_error(concat("out: expected a numpy array, got ", type_name(object)));
    }
    Array out = take_like(object, "out", x);
    if (!out.object().writeable()) {
        value_error("out: expected a writeable array, got a read-only one");
    }
    const auto no_overlap = [](bool overlaps, const char* what) {
        if (overlaps) {
            value_error(
                concat("out: expected memory of its own, got an array that overlaps ", what));
        }
    };
    // Strides in bytes, since an array that is not aligned has none in elements.
    no_overlap(may_overlap_itself(out.shape(), out.byte_strides()), "itself");
    for (const Named& input : inputs) {
        if (input.array != nullptr && input.array->ptr() != nullptr) {
            no_overlap(overlap(out.object(), *input.array), input.name);
        }
    }
    return out;
}

template <class T>
Vector<T> take_parameter(py::handle object, const char* name, Index channels) {
    Vector<T> vector;
    if (object.is_none()) return vector;
    const Array array(as_array(object, name));
    check_dtype(array, name, DTypeOf<T>::value);
    check_shape(array, name, std::array{channels});
    vector.array = array.object();
    const bool contiguous = array.viewable() && (channels <= 1 || array.strides()[0] == 1);
    if (contiguous) {
        vector.data = static_cast<const T*>(array.object().data());
        return vector;
    }
    vector.copy.resize(static_cast<std::size_t>(channels));
    for (Index c = 0; c < channels; ++c) {
        std::memcpy(&vector.copy[static_cast<std::size_t>(c)], array.object().data(c), sizeof(T));
    }
    vector.data = vector.copy.data();
    return vector;
}

Statistics take_statistics(py::handle object, const char* name, Index channels, DType dtype) {
    if (object.is_none()) {
        type_error(concat(name, ": expected an array of shape (", channels, ",), got None"));
    }
    const Array array(as_array(object, name));
    if (array.dtype() != dtype && array.dtype() != DType::float64) {
        const char* expected = dtype == DType::float64 ? "float64" : "float32 or float64";
        type_error(concat(name, ": expected dtype ", expected, ", got ", array.dtype_text()));
    }
    check_shape(array, name, std::array{channels});
    std::vector<double> values(static_cast<std::size_t>(channels));
    with_dtype(*array.dtype(), [&](auto type) {
        for (Index c = 0; c < channels; ++c) {
            decltype(type) value;
            std::memcpy(&value, array.object().data(c), sizeof value);
            values[static_cast<std::size_t>(c)] = static_cast<double>(value);
        }
    });
    return {array.object(), std::move(values)};
}

template <class T>
Buffer<T> take_buffer(py::handle object, const char* name, Index channels) {
    if (!py::isinstance<py::array>(object)) {
        type_error(concat(name, ": expected an array of shape (", channels, ",), got ",
                          object.is_none() ? "None" : type_name(object)));
    }
    Array array(py::reinterpret_borrow<py::array>(object));
    check_dtype(array, name, DTypeOf<T>::value);
    check_shape(array, name, std::array{channels});
    if (!array.object().writeable() || !array.viewable()) {
        value_error(concat(name, ": expected a writeable, aligned array, got one that is not"));
    }
    T* data = array.mutable_view<T>({}).data;
    return {data, array.strides()[0], array.object()};
}

double take_real(py::handle object, const char* name) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        type_error(concat(name, ": expected a real number, got ", type_name(object)));
    }
    return value;
}

double take_eps(py::handle object) {
    const double eps = take_real(object, "eps");
    if (!(eps >= 0.0) || std::isinf(eps)) {
        value_error(concat("eps: expected a finite number >= 0, got ", number_text(eps)));
    }
    return eps;
}

double take_momentum(py::handle object) {
    const double momentum = take_real(object, "momentum");
    if (!std::isfinite(momentum)) {
        value_error(
            concat("momentum: expected a finite number or None, got ", number_text(momentum)));
    }
    return momentum;
}

Index take_axis(py::handle object, std::size_t rank) {
    if (PyIndex_Check(object.ptr()) == 0) {
        type_error(concat("channel_axis: expected an integer, got ", type_name(object)));
    }
    // Out of range for a C long clips, and is out of range here too.
    const auto axis = static_cast<Index>(PyNumber_AsSsize_t(object.ptr(), nullptr));
    const auto n = static_cast<Index>(rank);
    if (axis < -n || axis >= n) {
        value_error(concat("channel_axis: expected an axis of a ", n, "-dimensional array (", -n,
                           " to ", n - 1, "), got ", std::string(py::str(object))));
    }
    return axis < 0 ? axis + n : axis;
}

Array empty_like(const Array& x) {
    std::array<Index, kMaxAxes> strides{};
    dense_strides_like(x.shape(), x.byte_strides(), {strides.data(), x.rank()});
    const Index item = size_of(*x.dtype());
    for (std::size_t a = 0; a < x.rank(); ++a) strides[a] *= item;
    return fresh(x, {strides.data(), x.rank()});
}

Array copy_of(const Array& x) { return copy_like(x, x); }

Array c_ordered_copy_of(const Array& x) {
    Array copy = fresh(x, {});
    copy_into(copy, x);
    return copy;
}

Array copy_like(const Array& a, const Array& x) {
    Array copy = empty_like(x);
    copy_into(copy, a);
    return copy;
}

void copy_into(const Array& destination, const Array& source) {
    numpy().copyto(destination.object(), source.object());
}

template Vector<float> take_parameter<float>(py::handle, const char*, Index);
template Vector<double> take_parameter<double>(py::handle, const char*, Index);
template Buffer<float> take_buffer<float>(py::handle, const char*, Index);
template Buffer<double> take_buffer<double>(py::handle, const char*, Index);

}  // namespace bnext::bindings
