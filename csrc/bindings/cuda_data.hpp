// The operands of a call over PyTorch's tensors on a GPU, and the memory that a call needs besides.
#pragma once

#include <cmath>
#include <optional>

#include "intake/table.hpp"

namespace bnext::bindings::tensors {

using namespace intake;  // NOLINT: of tensors

#ifdef BNEXT_CUDA_EMULATION
constexpr std::int32_t kDeviceMemory = dlpack::kCPU;
#else
constexpr std::int32_t kDeviceMemory = dlpack::kCUDA;
#endif

// Data with extents of its own, which stay as they are while PyTorch gives the GIL away.
struct Data : TensorView {
    Data() = default;
    Data(const Data&) = delete;
    Data& operator=(const Data&) = delete;

    void keep(Index axis) {
        channel_axis = axis;
        std::ranges::copy(shape(), own_shape.begin());
        std::ranges::copy(strides(), own_strides.begin());
        tensor.shape = own_shape.data();
        tensor.strides = own_strides.data();
    }
    [[nodiscard]] Index channels() const { return tensor.shape[channel_axis]; }
    [[nodiscard]] Index count() const { return size / channels(); }
    [[nodiscard]] DType parameters() const { return param_dtype(dtype); }
    [[nodiscard]] std::int32_t device() const { return tensor.device.id; }

    Index channel_axis = 0;
    std::array<Index, kMaxRank> own_shape{}, own_strides{};
};

// A tensor that an operation writes; without data where it could not be made or taken.
struct Output {
    py::object tensor;
    void* data = nullptr;
};

// Memory from the library's allocator for the time of a call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() {
        if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
    }

    bool allocate(const dlpack::ExchangeTable& table, dlpack::Device device, Index bytes) {
        std::int64_t size = bytes + static_cast<Index>(kAlignment);
        dlpack::Tensor wanted{};
        wanted.device = device;
        wanted.ndim = 1;
        wanted.dtype = {dlpack::kUInt, 8, 1};
        wanted.shape = &size;
        const auto ignore = [](void*, const char*, const char*) {};
        if (table.allocate(&wanted, &managed_, nullptr, ignore) == 0) return true;
        managed_ = nullptr;
        PyErr_Clear();
        return false;
    }

    [[nodiscard]] void* data() const {
        const auto begin =
            reinterpret_cast<std::uintptr_t>(managed_->tensor.data) + managed_->tensor.byte_offset;
        return reinterpret_cast<void*>((begin + kAlignment - 1) / kAlignment * kAlignment);
    }

private:
    static constexpr std::size_t kAlignment = 256;
    dlpack::ManagedVersioned* managed_ = nullptr;
};

inline std::optional<double> exact_float(py::handle object) {
    if (PyFloat_CheckExact(object.ptr()) == 0) return {};
    return PyFloat_AS_DOUBLE(object.ptr());
}

inline bool take_eps(py::handle object, double& eps) {
    const auto value = exact_float(object);
    if (!value || !(*value >= 0) || !std::isfinite(*value)) return false;
    eps = *value;
    return true;
}

inline py::tuple tuple_of(std::span<const Index> values) {
    py::tuple tuple(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) {
        PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(k), PyLong_FromLongLong(values[k]));
    }
    return tuple;
}

}  // namespace bnext::bindings::tensors
