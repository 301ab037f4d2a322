#include "intake/numpy.hpp"

#include <array>
#include <bit>

#include "core/error.hpp"
#include "intake/arguments.hpp"
#include "intake/dlpack.hpp"
#include "intake/pooled.hpp"

namespace bnext::intake {
namespace {

namespace flags {
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}  // namespace flags

// What is used of NumPy, looked up once and kept until the process ends.
struct NumPy {
    py::object asarray, copyto, shares_memory;
    // the dtypes in native byte order, of which there is one each
    py::object float16, float32, float64, int64;
    py::object bytes2, bytes4, bytes8;  // elements of these sizes, whatever they mean
    const py::detail::npy_api& api;
};

const NumPy* found = nullptr;

const NumPy& numpy() { return *found; }

// NumPy has no bfloat16. The package ml_dtypes registers one, which JAX and others use; it is here
// as soon as somebody has such an array, and null before. Never destroyed.
py::object& known_bfloat16() {
    static auto& known = *new py::object;  // NOLINT
    return known;
}

Element supported(const py::dtype& dtype) {
    constexpr int kHalf = 23;  // NPY_HALF, which pybind11 does not name
    // Arrays of h5py, and arrays from files, may spell the native order out.
    constexpr char kNative = std::endian::native == std::endian::little ? '<' : '>';
    const char order = dtype.byteorder();
    if (order != '=' && order != '|' && order != kNative) return Element::other;
    switch (dtype.num()) {
        case py::detail::npy_api::NPY_FLOAT_: return Element::float32;
        case py::detail::npy_api::NPY_DOUBLE_: return Element::float64;
        case kHalf: return Element::float16;
        default: break;
    }
    // NumPy's own numbers are below 256.
    if (dtype.itemsize() != 2 || dtype.num() < 256) return Element::other;
    if (py::cast<std::string>(dtype.attr("name")) != "bfloat16") return Element::other;
    known_bfloat16() = dtype;
    return Element::bfloat16;
}

Element element_of(const PyObject* descr) {
    const NumPy& np = numpy();
    if (descr == np.float32.ptr()) return Element::float32;
    if (descr == np.float64.ptr()) return Element::float64;
    if (descr == np.float16.ptr()) return Element::float16;
    if (descr == known_bfloat16().ptr()) return Element::bfloat16;
    if (descr == np.int64.ptr()) return Element::int64;
    return supported(py::reinterpret_borrow<py::dtype>(const_cast<PyObject*>(descr)));
}

const py::detail::PyArray_Proxy* proxy(py::handle array) {
    return py::detail::array_proxy(array.ptr());
}

py::handle handle_of(const void* object) {
    return const_cast<PyObject*>(static_cast<const PyObject*>(object));
}

std::string dtype_text(const void* array) {
    return py::str(py::handle(proxy(handle_of(array))->descr));
}
std::string type_of_text(const void* object) {
    const py::handle other = handle_of(object);
    return other.is_none() ? "None" : type_name(other);
}
std::string repr_text(const void* object) { return py::repr(handle_of(object)); }

// An array over memory, or if there is none, over new memory.
py::object array_over(const py::object& descr, std::span<const Index> shape,
                      const Index* byte_strides, void* data) {
    std::array<py::ssize_t, kMaxAxes> extents;
    std::array<py::ssize_t, kMaxAxes> strides;
    for (std::size_t a = 0; a < shape.size(); ++a) {
        extents[a] = static_cast<py::ssize_t>(shape[a]);
        if (byte_strides != nullptr) strides[a] = static_cast<py::ssize_t>(byte_strides[a]);
    }
    const NumPy& np = numpy();
    auto array = py::reinterpret_steal<py::object>(np.api.PyArray_NewFromDescr_(
        np.api.PyArray_Type_, py::object(descr).release().ptr(), static_cast<int>(shape.size()),
        extents.data(), byte_strides != nullptr ? strides.data() : nullptr, data,
        data != nullptr ? flags::kWriteable : 0, nullptr));
    if (!array) throw py::error_already_set();
    return array;
}

// NumPy's view of the elements of an array as so many bytes.
py::object bytes_view(const ArrayRef& array) {
    const NumPy& np = numpy();
    const Index item = array.item();
    const py::object& bytes = item == 8 ? np.bytes8 : item == 4 ? np.bytes4 : np.bytes2;
    return array_over(bytes, array.shape(), array.steps, array.data);
}

}  // namespace

bool is_plain_array(py::handle object) {
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) ==
           reinterpret_cast<PyObject*>(numpy().api.PyArray_Type_);
}

bool is_array(py::handle object) {
    return is_plain_array(object) || py::isinstance<py::array>(object);
}

std::optional<std::span<const py::ssize_t>> shape_if_plain(py::handle object, py::handle dtype) {
    if (!is_plain_array(object)) return {};
    const auto* of = proxy(object);
    if (of->descr != dtype.ptr()) return {};
    return std::span(of->dimensions, static_cast<std::size_t>(of->nd));
}

const py::object& descr_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return numpy().float32;
        case DType::float64: return numpy().float64;
        case DType::float16: return numpy().float16;
        case DType::bfloat16: break;
    }
    return known_bfloat16();
}

void check_is_on_the_cpu(py::handle object, const char* name) {
    if (const auto where = dlpack::elsewhere(object)) {
        type_error(name, ": expected an array on the CPU, like x, got one on ", *where);
    }
}

bool is_data_dtype(const py::dtype& dtype) { return element_of(dtype.ptr()) < Element::int64; }

void prepare_numpy() {
    if (found != nullptr) return;
    const auto np = py::module_::import("numpy");
    const auto dtype = [&](const char* name) -> py::object { return np.attr("dtype")(name); };
    found = new NumPy{np.attr("asarray"), np.attr("copyto"),         np.attr("shares_memory"),
                      dtype("float16"),   dtype("float32"),          dtype("float64"),
                      dtype("int64"),     dtype("uint16"),           dtype("uint32"),
                      dtype("uint64"),    py::detail::npy_api::get()};
}

py::object as_array(py::handle object, const char* name) {
    if (is_plain_array(object)) return py::reinterpret_borrow<py::object>(object);
    refuse_mask(object, name);
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::object>(object);
    check_is_on_the_cpu(object, name);
    try {
        py::object array = numpy().asarray(object);
        dlpack::check_has_memory(object, name);
        return array;
    } catch (py::error_already_set& error) {
        if (error.matches(PyExc_RuntimeError)) {  // a library says what is wrong with its array
            raise_from(error, PyExc_TypeError,
                       concat(name, ": expected an array that NumPy can read, got ",
                              type_name(object), ": ", std::string(py::str(error.value()))));
        }
        if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
        const std::string got =
            !is_tracer(object)
                ? type_name(object)
                : concat("a tracer of JAX (", type_name(object),
                         "), which has no values: inside of jax.jit, jax.grad and jax.vmap, call "
                         "bnext.jax.batch_norm (other functions by jax.pure_callback)");
        raise_from(error, PyExc_TypeError, concat(name, ": expected an array, got ", got));
    }
}

void refer(py::handle array, Extents& extents, ArrayRef& result) {
    const auto* of = proxy(array);
    const auto rank = static_cast<std::size_t>(of->nd);
    BNEXT_CHECK(rank <= kMaxAxes, "x: expected at most 64 dimensions, got ", rank);
    Index* const shape = extents.take(2 * rank);
    Index* const steps = shape + rank;
    for (std::size_t a = 0; a < rank; ++a) {
        shape[a] = of->dimensions[a];
        steps[a] = of->strides[a];
    }
    result = {of->data,
              shape,
              steps,
              nullptr,
              static_cast<std::uint8_t>(rank),
              element_of(of->descr),
              Place::cpu,
              true,
              (of->flags & flags::kWriteable) != 0,
              false,
              false,
              array.ptr(),
              &dtype_text};
    complete(result, extents);
}

void refer_to_none(py::handle object, ArrayRef& result) {
    result = {};
    result.object = object.ptr();
    result.text = &type_of_text;
}

void refer_to_counter(py::handle object, Extents& extents, ArrayRef& result) {
    if (is_plain_array(object) || (py::isinstance<py::array>(object) && !has_mask(object))) {
        refer(object, extents, result);
        // Arrays that come out of a pickle have a dtype object of their own.
        const bool is_int64 =
            numpy().api.PyArray_EquivTypes_(proxy(object)->descr, numpy().int64.ptr());
        result.element = is_int64 ? Element::int64 : Element::other;
    } else {
        refer_to_none(object, result);
    }
    result.text = &repr_text;
}

py::object new_array(DType dtype, std::span<const Index> shape, const Index* byte_strides) {
    Index bytes = size_of(dtype);
    bool in_c_order = true;
    for (std::size_t a = shape.size(); a-- > 0;) {
        in_c_order = in_c_order && (byte_strides == nullptr || byte_strides[a] == bytes);
        bytes *= shape[a];
    }
    if (in_c_order && bytes > 0) byte_strides = nullptr;  // NumPy is faster without
    ArrayMemory memory = memory_for(static_cast<std::size_t>(bytes));
    py::object array = array_over(descr_of(dtype), shape, byte_strides, memory.get());
    if (memory) give(std::move(memory), static_cast<std::size_t>(bytes), array);
    return array;
}

void* data_of(const py::object& array) { return proxy(array)->data; }

bool share_memory(const ArrayRef& a, const ArrayRef& b) {
    // The bounds of two slices of one array may overlap without the slices doing so. The exact
    // answer can be slow to find in theory; past this much work it counts as an overlap.
    try {
        return py::cast<bool>(
            numpy().shares_memory(bytes_view(a), bytes_view(b), py::arg("max_work") = 10000));
    } catch (py::error_already_set&) {
        return true;
    }
}

void copy_values(const ArrayRef& to, const ArrayRef& from) {
    numpy().copyto(bytes_view(to), bytes_view(from));
}

}  // namespace bnext::intake
