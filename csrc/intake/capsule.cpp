// Arrays of other libraries through their capsules, in and out.
#include "intake/dlpack.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "core/error.hpp"
#include "intake/arguments.hpp"
#include "intake/numpy.hpp"

namespace bnext::intake::dlpack {

py::object descr_for(DType dtype, const std::string& name) {
    if (dtype == DType::bfloat16 && descr_of(dtype).ptr() == nullptr) {
        try {
            const auto scalar = py::module_::import("ml_dtypes").attr("bfloat16");
            is_data_dtype(py::dtype::from_args(scalar));  // from here on it is known
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_ImportError)) throw;
            raise_from(error, PyExc_ImportError,
                       concat(name,
                              ": bfloat16 on the CPU needs ml_dtypes, not installed here: pip "
                              "install 'bnext[bfloat16]'"));
        }
    }
    return descr_of(dtype);
}

namespace {

bool read_by_the_cpu(std::int32_t type) {
    return type == kCPU || type == kCUDAHost || type == kROCmHost;
}

// What a capsule described, taken over from it.
struct Taken {
    Tensor tensor;
    bool read_only;
    py::object keepalive;  // gives the memory back when it dies

    [[nodiscard]] std::span<const Index> shape() const {
        return {tensor.shape, static_cast<std::size_t>(tensor.ndim)};
    }
    [[nodiscard]] void* data() const {
        return tensor.data != nullptr ? static_cast<char*>(tensor.data) + tensor.byte_offset
                                      : nullptr;
    }
    [[nodiscard]] std::vector<Index> strides() const {
        const auto rank = static_cast<std::size_t>(tensor.ndim);
        if (tensor.strides != nullptr) return {tensor.strides, tensor.strides + rank};
        std::vector<Index> strides(rank);
        dense_strides_like(shape(), {}, strides);
        return strides;
    }
};

template <class Form>
std::optional<Taken> take_form(py::handle capsule, const std::string& name) {
    if (PyCapsule_IsValid(capsule.ptr(), Form::kName) == 0) return std::nullopt;
    auto* managed = static_cast<Form*>(PyCapsule_GetPointer(capsule.ptr(), Form::kName));
    bool read_only = false;
    if constexpr (std::is_same_v<Form, ManagedVersioned>) {
        if (managed->version.major != ManagedVersioned::kVersion.major) {
            throw py::buffer_error(concat(name, ": expected version 1 of DLPack, got ",
                                          managed->version.major, ".", managed->version.minor));
        }
        read_only = (managed->flags & ManagedVersioned::kReadOnly) != 0;
    }
    const Tensor& tensor = managed->tensor;
    if (tensor.ndim < 0 || static_cast<std::size_t>(tensor.ndim) > kMaxAxes) {
        value_error(name, ": expected at most 64 dimensions, got ", tensor.ndim);
    }
    py::capsule keepalive(static_cast<void*>(managed), [](void* pointer) {
        auto* held = static_cast<Form*>(pointer);
        if (held->deleter != nullptr) held->deleter(held);
    });
    PyCapsule_SetName(capsule.ptr(), Form::kUsed);
    return Taken{tensor, read_only, std::move(keepalive)};
}

Taken take(py::handle capsule, const std::string& name) {
    if (auto taken = take_form<ManagedVersioned>(capsule, name)) return *std::move(taken);
    if (auto taken = take_form<Managed>(capsule, name)) return *std::move(taken);
    type_error(name, ": expected a DLPack capsule that nobody has used, got ",
               std::string(py::repr(capsule)));
}

// NumPy would make memory of its own, and leave in it what was there.
void check_memory(const Taken& taken, const std::string& name) {
    if (taken.data() != nullptr || std::ranges::count(taken.shape(), 0) > 0) return;
    type_error(name,
               ": expected an array whose memory holds its values, got one without memory: "
               "it is a wrapper of others, was freed, or is not computed yet");
}

// A NumPy array as others take it over: the description, and a reference to the array, for as long
// as they keep the memory.
template <class Form>
struct Lent {
    Form managed{};
    PyObject* array = nullptr;
    std::vector<std::int64_t> shape, strides;

    // By whoever took the description over: in any thread, with or without the GIL.
    static void give_back(Form* managed) {
        auto* lent = static_cast<Lent*>(managed->context);
        if (Py_IsInitialized() == 0) return;  // nobody is left to free it for
        const py::gil_scoped_acquire gil;
        Py_XDECREF(lent->array);
        delete lent;
    }
};

template <class Form>
py::object lend(const py::object& object, const ArrayRef& array) {
    auto lent = std::make_unique<Lent<Form>>();
    lent->shape.assign(array.extents, array.extents + array.rank);
    lent->strides.assign(array.strides, array.strides + array.rank);
    lent->managed.tensor = {.data = array.data,
                            .device = {kCPU, 0},
                            .ndim = array.rank,
                            .dtype = type_of(array.dtype()),
                            .shape = lent->shape.data(),
                            .strides = lent->strides.data(),
                            .byte_offset = 0};
    lent->managed.context = lent.get();
    lent->managed.deleter = &Lent<Form>::give_back;
    if constexpr (std::is_same_v<Form, ManagedVersioned>) {
        lent->managed.version = ManagedVersioned::kVersion;
        lent->managed.flags = array.writeable ? 0 : ManagedVersioned::kReadOnly;
    }
    PyObject* capsule = PyCapsule_New(&lent->managed, Form::kName, [](PyObject* self) {
        if (PyCapsule_IsValid(self, Form::kName) == 0) return;  // somebody took it over
        auto* managed = static_cast<Form*>(PyCapsule_GetPointer(self, Form::kName));
        managed->deleter(managed);
    });
    if (capsule == nullptr) throw py::error_already_set();
    lent->array = py::object(object).release().ptr();
    lent.release();  // NOLINT: give_back deletes it
    return py::reinterpret_steal<py::object>(capsule);
}

[[noreturn]] void refuse(const char* why) { throw py::buffer_error(why); }

}  // namespace

py::object from_dlpack(py::handle capsule, const std::string& name) {
    const Taken taken = take(capsule, name);
    if (!read_by_the_cpu(taken.tensor.device.type)) {
        type_error(name, ": expected an array on the CPU, got one on ",
                   device_name(taken.tensor.device.type, taken.tensor.device.id));
    }
    const auto dtype = supported(taken.tensor.dtype);
    if (!dtype) {
        type_error(name, ": expected dtype float16, bfloat16, float32 or float64, got ",
                   text_of(taken.tensor.dtype));
    }
    check_memory(taken, name);
    const py::object descr = descr_for(*dtype, name);
    std::vector<Index> strides = taken.strides();
    for (Index& stride : strides) stride *= size_of(*dtype);
    const std::vector<Index> shape(taken.shape().begin(), taken.shape().end());
    py::array array(py::reinterpret_borrow<py::dtype>(descr), shape, strides, taken.data(),
                    taken.keepalive);
    if (taken.read_only) array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::tuple describe_dlpack(py::handle capsule, const std::string& name) {
    const Taken taken = take(capsule, name);
    return py::make_tuple(reinterpret_cast<std::uintptr_t>(taken.data()),
                          tuple_of_integers(taken.shape()), tuple_of_integers(taken.strides()),
                          text_of(taken.tensor.dtype), taken.tensor.device.type,
                          taken.tensor.device.id, taken.read_only, taken.keepalive);
}

Exported::Exported(py::handle array) : array_(as_array(array, "array")) {
    Extents extents;
    ArrayRef of;
    refer(array_, extents, of);
    if (of.supported()) return;
    type_error("array: expected dtype float16, bfloat16, float32 or float64, got ", of.type_text());
}

py::object Exported::capsule(const py::object& stream, const py::object& max_version,
                             const py::object& dl_device, const py::object& copy) const {
    if (!stream.is_none()) refuse("the CPU has no streams: expected stream=None");
    if (!dl_device.is_none() && !py::make_tuple(kCPU + 0, 0).equal(dl_device)) {
        refuse("the array is on the CPU: expected dl_device=(1, 0)");
    }
    if (!copy.is_none() && py::cast<bool>(copy)) refuse("expected copy=False");
    Extents extents;
    ArrayRef array;
    refer(array_, extents, array);
    if (!array.viewable) refuse("expected elements at multiples of their size");
    const bool versioned =
        !max_version.is_none() && py::cast<std::pair<int, int>>(max_version).first >= 1;
    if (versioned) return lend<ManagedVersioned>(array_, array);
    if (!array.writeable) refuse("the array is read-only: expected max_version=(1, 0)");
    return lend<Managed>(array_, array);
}

void check_has_memory(py::handle object, const char* name) {
    if (!py::hasattr(object, "__dlpack__")) return;
    py::object capsule;
    try {
        capsule = object.attr("__dlpack__")();
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
        return;  // no question of memory: NumPy has read the values in another way
    }
    if (PyCapsule_CheckExact(capsule.ptr()) != 0) check_memory(take(capsule, name), name);
}

std::optional<std::string> elsewhere(py::handle object) {
    if (py::hasattr(object, "__dlpack_device__")) {
        py::object answer;
        try {
            answer = object.attr("__dlpack_device__")();
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_Exception)) throw;
            return std::nullopt;  // a deleted array: its library says so where values are asked for
        }
        const auto where = py::cast<std::pair<int, int>>(answer);
        if (read_by_the_cpu(where.first)) return std::nullopt;
        return device_name(where.first, where.second);
    }
    if (py::hasattr(object, "__cuda_array_interface__")) return "a CUDA device";
    return std::nullopt;
}

}  // namespace bnext::intake::dlpack
