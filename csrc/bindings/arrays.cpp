#include "bindings/arrays.hpp"

#include <cstring>
#include <limits>

#include "bindings/dlpack.hpp"
#include "bindings/pooled.hpp"

namespace bnext::bindings {
namespace {

// What is used of NumPy, looked up once and kept until the process ends.
struct NumPy {
    py::object asarray, copyto, shares_memory;
    // the dtypes in native byte order, of which there is one each
    py::object float16, float32, float64, int64;
    const py::detail::npy_api& api;
};

const NumPy& numpy() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<NumPy> storage;
    const auto look_up = [] {
        const auto np = py::module_::import("numpy");
        return NumPy{np.attr("asarray"),
                     np.attr("copyto"),
                     np.attr("shares_memory"),
                     np.attr("dtype")("float16"),
                     py::dtype::of<float>(),
                     py::dtype::of<double>(),
                     py::dtype::of<std::int64_t>(),
                     py::detail::npy_api::get()};
    };
    return storage.call_once_and_store_result(look_up).get_stored();
}

void check_is_on_the_cpu(py::handle object, const char* name) {
    if (const auto where = dlpack::elsewhere(object)) {
        type_error(concat(name, ": expected an array on the CPU, like x, got one on ", *where));
    }
}

bool is_plain_array(py::handle object) {  // no subclass
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) ==
           reinterpret_cast<PyObject*>(numpy().api.PyArray_Type_);
}

// NumPy has no bfloat16. The package ml_dtypes registers one, which JAX and others use; it is here
// as soon as somebody has such an array, and null before.
py::object& known_bfloat16() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> storage;
    return storage.call_once_and_store_result([] { return py::object(); }).get_stored();
}

bool is_bfloat16(const py::dtype& dtype) {
    if (dtype.itemsize() != 2 || dtype.num() < 256) return false;  // NumPy's own are below
    if (py::cast<std::string>(dtype.attr("name")) != "bfloat16") return false;
    known_bfloat16() = dtype;
    return true;
}

std::optional<DType> supported(const py::dtype& dtype) {
    constexpr int kHalf = 23;  // NPY_HALF, which pybind11 does not name
    const char order = dtype.byteorder();
    if (order != '=' && order != '|') return std::nullopt;
    switch (dtype.num()) {
        case py::detail::npy_api::NPY_FLOAT_: return DType::float32;
        case py::detail::npy_api::NPY_DOUBLE_: return DType::float64;
        case kHalf: return DType::float16;
        default: break;
    }
    if (is_bfloat16(dtype)) return DType::bfloat16;
    return std::nullopt;
}

std::optional<DType> dtype_of(const PyObject* descr) {
    if (descr == numpy().float32.ptr()) return DType::float32;
    if (descr == numpy().float64.ptr()) return DType::float64;
    if (descr == numpy().float16.ptr()) return DType::float16;
    if (descr == known_bfloat16().ptr()) return DType::bfloat16;
    return supported(py::reinterpret_borrow<py::dtype>(const_cast<PyObject*>(descr)));
}

// For a vector that does not fit the channels of x: the axis it fits, where libraries have them.
std::string remedy_of(const Array& vector, std::span<const Index> x) {
    if (vector.rank() != 1 || x.empty()) return {};
    const Index size = vector.extent(0);
    const bool last = x.back() == size;
    if (!last && (x.size() < 2 || x[1] != size)) return {};
    const char* axis = last ? "-1" : "1";
    return concat(" (axis ", axis, " of x has ", size, ": channel_axis=", axis, ")");
}

// `x`: the shape that a vector of channels goes with.
void check_shape(const Array& array, const char* name, std::span<const Index> expected,
                 std::span<const Index> x = {}) {
    const auto shape = array.shape();
    if (!std::equal(shape.begin(), shape.end(), expected.begin(), expected.end())) {
        value_error(concat(name, ": expected shape ", shape_text(expected), ", got ",
                           shape_text(shape), remedy_of(array, x)));
    }
}

void check_dtype(const Array& array, const char* name, DType expected) {
    if (array.dtype() != expected) {
        type_error(
            concat(name, ": expected dtype ", name_of(expected), ", got ", array.dtype_text()));
    }
}

// First and one past the last byte that the array, of a supported dtype, can touch.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const py::object& object) {
    const auto* array = py::detail::array_proxy(object.ptr());
    auto begin = reinterpret_cast<std::uintptr_t>(array->data);
    auto end = begin + static_cast<std::uintptr_t>(size_of(*dtype_of(array->descr)));
    for (int a = 0; a < array->nd; ++a) {
        if (array->dimensions[a] == 0) return {begin, begin};
        const py::ssize_t reach = array->strides[a] * (array->dimensions[a] - 1);
        (reach < 0 ? begin : end) += static_cast<std::uintptr_t>(reach);
    }
    return {begin, end};
}

bool overlap(const py::object& a, const py::object& b) {
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
py::object fresh(DType dtype, std::span<const Index> shape, const Index* byte_strides) {
    std::array<py::ssize_t, kMaxAxes> extents;
    std::array<py::ssize_t, kMaxAxes> strides;
    Index bytes = size_of(dtype);
    for (std::size_t a = 0; a < shape.size(); ++a) {
        extents[a] = static_cast<py::ssize_t>(shape[a]);
        if (byte_strides != nullptr) strides[a] = static_cast<py::ssize_t>(byte_strides[a]);
        bytes *= shape[a];
    }
    const NumPy& np = numpy();
    const FromPool from_pool(static_cast<std::size_t>(bytes));
    PyObject* array = np.api.PyArray_NewFromDescr_(
        np.api.PyArray_Type_, py::object(descr_of(dtype)).release().ptr(),
        static_cast<int>(shape.size()), extents.data(),
        byte_strides != nullptr ? strides.data() : nullptr, nullptr, 0, nullptr);
    if (array == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(array);
}

// The values of a vector of `size` elements of `dtype` if they lie as in C, one behind the other;
// else null. What nearly every parameter is, told apart from the rest in a few instructions.
void* plain_values(py::handle object, DType dtype, Index size) {
    if (!is_plain_array(object)) return nullptr;
    const auto* array = py::detail::array_proxy(object.ptr());
    const Index item = size_of(dtype);
    const bool plain =
        array->descr == descr_of(dtype).ptr() && array->nd == 1 && array->dimensions[0] == size &&
        (array->strides[0] == item || size <= 1) &&
        reinterpret_cast<std::uintptr_t>(array->data) % static_cast<std::uintptr_t>(item) == 0;
    return plain ? array->data : nullptr;
}

}  // namespace

const py::object& descr_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return numpy().float32;
        case DType::float64: return numpy().float64;
        case DType::float16: return numpy().float16;
        case DType::bfloat16: break;
    }
    return known_bfloat16();
}

bool is_data_dtype(const py::dtype& dtype) { return dtype_of(dtype.ptr()).has_value(); }

void prepare_arrays() {
    numpy();
    known_bfloat16();
}

Array::Array(py::object array) : array_(std::move(array)) {
    const auto* of = proxy();
    const auto rank = static_cast<std::size_t>(of->nd);
    BNEXT_CHECK(rank <= kMaxAxes, "x: expected at most 64 dimensions, got ", rank);
    dtype_ = dtype_of(of->descr);
    const Index item = dtype_ ? size_of(*dtype_) : 1;
    viewable_ = dtype_.has_value() &&
                reinterpret_cast<std::uintptr_t>(of->data) % static_cast<std::uintptr_t>(item) == 0;
    shape_ = byte_strides_ = strides_ = Axes(rank);
    for (std::size_t a = 0; a < rank; ++a) {
        shape_[a] = of->dimensions[a];
        byte_strides_[a] = of->strides[a];
        viewable_ = viewable_ && (byte_strides_[a] % item == 0 || shape_[a] == 1);
        strides_[a] = viewable_ ? byte_strides_[a] / item : 0;
    }
}

Index Array::size() const {
    Index product = 1;
    for (const Index extent : shape()) product *= extent;
    return product;
}

py::array as_array(py::handle object, const char* name) {
    if (is_plain_array(object)) return py::reinterpret_borrow<py::array>(object);
    refuse_mask(object, name);
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    check_is_on_the_cpu(object, name);
    try {
        auto array = py::reinterpret_steal<py::array>(numpy().asarray(object).release());
        dlpack::check_has_memory(object, name);
        return array;
    } catch (py::error_already_set& error) {
        if (error.matches(PyExc_RuntimeError)) {  // a library says what is wrong with its array
            py::raise_from(error, PyExc_TypeError,
                           concat(name, ": expected an array that NumPy can read, got ",
                                  type_name(object), ": ", std::string(py::str(error.value())))
                               .c_str());
            throw py::error_already_set();
        }
        if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
        const std::string got =
            !is_tracer(object)
                ? type_name(object)
                : concat("a tracer of JAX (", type_name(object),
                         "), which has no values: call bnext outside of jax.jit, jax.grad and "
                         "jax.vmap, or inside of them by jax.pure_callback");
        py::raise_from(error, PyExc_TypeError,
                       concat(name, ": expected an array, got ", got).c_str());
        throw py::error_already_set();
    }
}

Array take_data(py::handle object, const char* name) {
    Array array(as_array(object, name));
    if (!array.dtype()) {
        type_error(concat(name, ": expected dtype float16, bfloat16, float32 or float64, got ",
                          array.dtype_text()));
    }
    if (array.rank() == 0) value_error(concat(name, ": expected at least 1 dimension, got 0"));
    return array;
}

Array take_like(py::handle object, const char* name, DType dtype, std::span<const Index> shape) {
    Array array(as_array(object, name));
    check_dtype(array, name, dtype);
    check_shape(array, name, shape);
    return array;
}

Array take_like(py::handle object, const char* name, const Array& x) {
    return take_like(object, name, *x.dtype(), x.shape());
}

Array take_out(py::handle object, const Array& x, std::initializer_list<Named> inputs) {
    if (!is_plain_array(object) && !py::isinstance<py::array>(object)) {
        check_is_on_the_cpu(object, "out");
        type_error(concat("out: expected a numpy array, got ", type_name(object)));
    }
    Array out = take_like(object, "out", x);
    if (!out.writeable()) {
        value_error("out: expected a writeable array, got a read-only one");
    }
    const auto no_overlap = [](bool overlaps, const char* what) {
        if (overlaps) {
            value_error(
                concat("out: expected memory of its own, got an array that overlaps ", what));
        }
    };
    // Strides in bytes, since an array that is not aligned has none in elements.
    no_overlap(!out.contiguous() && may_overlap_itself(out.shape(), out.byte_strides()), "itself");
    for (const Named& input : inputs) {
        if (input.array != nullptr && input.array->ptr() != nullptr) {
            no_overlap(overlap(out.object(), *input.array), input.name);
        }
    }
    return out;
}

template <class T>
Vector<T> take_parameter(py::handle object, const char* name, Index channels,
                         std::span<const Index> x) {
    Vector<T> vector;
    if (object.is_none()) return vector;
    if (const void* values = plain_values(object, DTypeOf<T>::value, channels)) {
        vector.array = py::reinterpret_borrow<py::object>(object);
        vector.data = static_cast<const T*>(values);
        return vector;
    }
    const Array array(as_array(object, name));
    check_dtype(array, name, DTypeOf<T>::value);
    check_shape(array, name, std::array{channels}, x);
    vector.array = array.object();
    const bool contiguous = array.viewable() && (channels <= 1 || array.strides()[0] == 1);
    if (contiguous) {
        vector.data = static_cast<const T*>(array.data());
        return vector;
    }
    vector.copy = cpu::PoolArray<T>(static_cast<std::size_t>(channels));
    for (Index c = 0; c < channels; ++c) {
        std::memcpy(vector.copy.data() + c, array.data(c), sizeof(T));
    }
    vector.data = vector.copy.data();
    return vector;
}

py::object take_statistics(py::handle object, const char* name, DType dtype, DType other,
                           std::span<double> values, std::span<const Index> x) {
    const auto channels = static_cast<Index>(values.size());
    if (object.is_none()) {
        type_error(concat(name, ": expected an array of shape (", channels, ",), got None"));
    }
    const Array array(as_array(object, name));
    if (array.dtype() != dtype && array.dtype() != other) {
        type_error(concat(name, ": expected dtype ", name_of(dtype), other != dtype ? " or " : "",
                          other != dtype ? name_of(other) : "", ", got ", array.dtype_text()));
    }
    check_shape(array, name, std::array{channels}, x);
    with_dtype(*array.dtype(), [&](auto type) {
        for (Index c = 0; c < channels; ++c) {
            decltype(type) value;
            std::memcpy(&value, array.data(c), sizeof value);
            values[static_cast<std::size_t>(c)] = static_cast<double>(value);
        }
    });
    return array.object();
}

template <class T>
Buffer<T> take_buffer(py::handle object, const char* name, Index channels) {
    if (!py::isinstance<py::array>(object)) {
        check_is_on_the_cpu(object, name);
        type_error(concat(name, ": expected an array of shape (", channels, ",), got ",
                          object.is_none() ? "None" : type_name(object)));
    }
    if (!is_plain_array(object)) refuse_mask(object, name);
    Array array(py::reinterpret_borrow<py::object>(object));
    check_dtype(array, name, DTypeOf<T>::value);
    check_shape(array, name, std::array{channels});
    if (!array.writeable()) {
        value_error(concat(name, ": expected a writeable array, got a read-only one (", name,
                           ".copy() is writeable)"));
    }
    if (!array.viewable()) {
        value_error(concat(name, ": expected an aligned array, got one that is not (", name,
                           ".copy() is aligned)"));
    }
    if (channels > 1 && array.strides()[0] == 0) {
        value_error(concat(name, ": expected an element for each channel, got one for all"));
    }
    T* data = array.mutable_view<T>({}).data;
    return {data, array.strides()[0], array.object()};
}

std::int64_t* take_count(py::handle object) {
    if (is_plain_array(object) || (py::isinstance<py::array>(object) && !has_mask(object))) {
        auto* array = py::detail::array_proxy(object.ptr());
        constexpr int wanted =
            py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        // Arrays that come out of a pickle have a dtype object of their own.
        const auto is_int64 = [&] {
            return array->descr == numpy().int64.ptr() ||
                   py::detail::npy_api::get().PyArray_EquivTypes_(array->descr,
                                                                  numpy().int64.ptr());
        };
        if (array->nd == 0 && (array->flags & wanted) == wanted && is_int64()) {
            auto* count = reinterpret_cast<std::int64_t*>(array->data);
            constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max() - 1;
            if (*count < 0 || *count > largest) {
                value_error(concat("num_batches_tracked: expected a count of batches from 0 to ",
                                   largest, ", got ", *count));
            }
            return count;
        }
    }
    type_error(concat("num_batches_tracked: expected a writeable int64 array of shape (), got ",
                      std::string(py::repr(object))));
}

py::object empty_vector(DType dtype, Index size) { return fresh(dtype, std::array{size}, nullptr); }

Axes dense_strides(const Array& x) {
    Axes strides(x.rank());
    dense_strides_like(x.shape(), x.byte_strides(), strides.span());
    return strides;
}

Array empty_like(const Array& x) { return empty_like(x, dense_strides(x)); }

Array empty_like(const Array& x, Axes strides) {
    const Index item = size_of(*x.dtype());
    for (Index& stride : strides.span()) stride *= item;
    return Array(fresh(*x.dtype(), x.shape(), strides.span().data()));
}

Array copy_of(const Array& x) { return copy_like(x, x); }

Array c_ordered_copy_of(const Array& x) {
    Array copy(fresh(*x.dtype(), x.shape(), nullptr));
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

template Vector<float> take_parameter<float>(py::handle, const char*, Index,
                                             std::span<const Index>);
template Vector<double> take_parameter<double>(py::handle, const char*, Index,
                                               std::span<const Index>);
template Buffer<float> take_buffer<float>(py::handle, const char*, Index);
template Buffer<double> take_buffer<double>(py::handle, const char*, Index);

}  // namespace bnext::bindings
