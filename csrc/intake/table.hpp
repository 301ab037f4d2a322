// Tensors of a library with DLPack's table of C functions, read by operations: on the CPU, and on
// a GPU.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "core/array_ref.hpp"
#include "core/error.hpp"
#include "intake/dlpack.hpp"

namespace bnext::intake {

namespace py = pybind11;

constexpr std::size_t kMaxRank = 8;

enum class Order : std::uint8_t { none, c, channels_last };

// A tensor as the library describes it. Its extents are the tensor's own memory, which is its
// library's to change once the GIL is given away.
struct TensorView {
    dlpack::Tensor tensor;

    [[nodiscard]] std::size_t rank() const { return static_cast<std::size_t>(tensor.ndim); }
    [[nodiscard]] std::span<const Index> shape() const { return {tensor.shape, rank()}; }
    [[nodiscard]] AxisStrides strides() const { return {tensor.strides, rank()}; }
    [[nodiscard]] void* data() const {
        return static_cast<char*>(tensor.data) + tensor.byte_offset;
    }
    [[nodiscard]] bool aligned_to(Index bytes) const {
        return reinterpret_cast<std::uintptr_t>(data()) % static_cast<std::uintptr_t>(bytes) == 0;
    }
};

// In which order a tensor is dense, with the strides that an allocator would give it: where an axis
// has one element, others would do as well, but results would have to be given them back.
inline Order order_of(const TensorView& x) {
    const auto shape = x.shape();
    const auto strides = x.strides();
    Index expected = 1;
    bool is_c = true;
    for (std::size_t a = x.rank(); a-- > 0;) {
        is_c = is_c && strides[a] == expected;
        expected *= shape[a];
    }
    if (is_c) return Order::c;
    if (x.rank() != 4 && x.rank() != 5) return Order::none;
    if (strides[1] != 1) return Order::none;
    expected = shape[1];
    for (std::size_t a = x.rank(); a-- > 2;) {
        if (strides[a] != expected) return Order::none;
        expected *= shape[a];
    }
    return strides[0] == expected ? Order::channels_last : Order::none;
}

// A new reference to what a function of the library returns; its error is thrown.
template <class... Arguments>
py::object call(const py::object& function, Arguments... arguments) {
    PyObject* const all[] = {arguments.ptr()...};
    auto result = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(function.ptr(), all, sizeof...(arguments), nullptr));
    if (!result) throw py::error_already_set();
    return result;
}

// What PyTorch's autograd would have to record. Functions refuse it; layers of PyTorch's own have
// seen to it before.
class Autograd {
public:
    explicit Autograd(const py::object& torch)
        : is_grad_enabled_(torch.attr("is_grad_enabled")),
          forward_ad_(torch.attr("autograd").attr("forward_ad")) {}

    [[nodiscard]] bool records(py::handle tensor) const {
        return tensor.attr(requires_grad_).ptr() == Py_True &&
               call(is_grad_enabled_).ptr() == Py_True;
    }
    // Whether forward-mode differentiation is at work.
    [[nodiscard]] bool has_dual_level() const {
        const py::object level = py::getattr(forward_ad_, current_level_, py::none());
        return !level.is_none() && level.cast<long>() >= 0;
    }

private:
    py::object is_grad_enabled_, forward_ad_;
    py::str requires_grad_{"requires_grad"}, current_level_{"_current_level"};  // made once
};

// Takes PyTorch's tensors and parameters, and no subclasses, on one type of device, whose memory
// holds their values. Every function says false, or null, of the others.
class TensorReader {
public:
    TensorReader(const py::object& torch, std::int32_t device_type)
        : type_(torch.attr("Tensor")),
          parameter_(torch.attr("nn").attr("Parameter")),
          is_negative_(type_.attr("is_neg")),
          is_inference_(type_.attr("is_inference")),
          table_(dlpack::exchange_table(type_)),
          device_type_(device_type) {
        if (table_ == nullptr) {
            type_error("torch: expected one with DLPack's table of C functions");
        }
    }

    [[nodiscard]] const dlpack::ExchangeTable& table() const { return *table_; }

    // Of a rank that can be. A tensor of zeros may have no memory, as may one that is computed
    // later.
    bool take(py::handle object, TensorView& view) const {
        // A lazy negation, of which DLPack knows nothing: memory has the negated values.
        return take_new(object, view) && call(is_negative_, object).ptr() == Py_False;
    }

    // A tensor that the library has just made, of which nothing can be lazy.
    bool take_new(py::handle object, TensorView& view) const {
        const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        if (type != type_.ptr() && type != parameter_.ptr()) return false;
        if (table_->describe(object.ptr(), &view.tensor) != 0) {
            PyErr_Clear();  // it is sparse, say
            return false;
        }
        return view.tensor.device.type == device_type_ && view.rank() <= kMaxRank &&
               view.tensor.ndim >= 0 && (view.tensor.ndim == 0 || view.tensor.strides != nullptr) &&
               view.tensor.data != nullptr;
    }

    // An int64 of shape () on the device with that number. (Lazy negation is of imaginary parts,
    // which are no integers.)
    std::int64_t* take_counter(py::handle object, std::int32_t device = 0) const {
        TensorView view;
        if (!take_new(object, view) || view.rank() != 0 || view.tensor.dtype.code != dlpack::kInt ||
            view.tensor.dtype.bits != 64 || view.tensor.device.id != device ||
            !view.aligned_to(sizeof(std::int64_t))) {
            return nullptr;
        }
        return static_cast<std::int64_t*>(view.data());
    }

    // Autograd counts no writes to an inference tensor, and PyTorch refuses them outside its mode.
    [[nodiscard]] bool is_inference(py::handle object) const {
        return call(is_inference_, object).ptr() != Py_False;
    }

private:
    py::object type_, parameter_, is_negative_, is_inference_;
    const dlpack::ExchangeTable* table_;
    std::int32_t device_type_;
};

}  // namespace bnext::intake
