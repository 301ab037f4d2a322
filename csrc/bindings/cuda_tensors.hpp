// What every operation over PyTorch's tensors on a GPU has in common: arguments, results, the
// launch.
//
// Results are PyTorch's own tensors, since record_stream, CUDA graphs and resizing need its
// storage. The workspace, which no caller sees, is allocated by the table. Both come from PyTorch's
// stream-ordered allocator, on the stream that the kernel runs on.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/cuda_data.hpp"
#include "core/statistics.hpp"
#include "cuda/launch.hpp"
#include "cuda/plan_cache.hpp"

namespace bnext::bindings::tensors {

class CudaTensors {
public:
    // `problem_of(device)` says why kernels cannot run there. `guarded`: what autograd would have
    // to record is refused; otherwise the caller has seen to it.
    CudaTensors(const py::object& torch, py::object saved_type, py::object problem_of, bool guarded)
        : reader_(torch.attr("Tensor").cast<py::type>(),
                  torch.attr("nn").attr("Parameter").cast<py::type>(), kDeviceMemory),
          torch_(torch),
          empty_like_(torch.attr("empty_like")),
          new_empty_(torch.attr("Tensor").attr("new_empty")),
          new_zeros_(torch.attr("Tensor").attr("new_zeros")),
          is_inference_(torch.attr("Tensor").attr("is_inference")),
          saved_type_(std::move(saved_type)),
          problem_of_(std::move(problem_of)),
          autograd_(guarded ? std::make_optional<Autograd>(torch) : std::nullopt) {
        if (reader_.table().allocate == nullptr || reader_.table().current_stream == nullptr) {
            type_error("torch: expected DLPack's whole table of C functions");
        }
        for (std::size_t k = 0; k < kSlots.size(); ++k) slots_[k] = saved_type_.attr(kSlots[k]);
        for (const auto dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
            names_[static_cast<std::size_t>(dtype)] = py::str(name_of(dtype));
        }
    }

    // --- arguments ---------------------------------------------------

    // Data on a device with kernels; a negative axis counts from the end.
    bool take_x(py::handle object, Index axis, void*& address, Data& x) const {
        if ((autograd_ && autograd_->has_dual_level()) || !take_data(object, x)) return false;
        const auto rank = static_cast<Index>(x.rank());
        if (axis < -rank || axis >= rank) return false;
        x.keep(axis < 0 ? axis + rank : axis);
        address = x.data();
        return device_of(x).usable;
    }

    bool take_like(py::handle object, const Data& x, void*& address) const {
        TensorView view;
        if (!take_data(object, view) || !lies_as(view, x)) return false;
        address = view.data();
        return true;
    }

    void* take_vector(py::handle object, const Data& x, DType dtype) const {
        void* const data = reader_.take_vector(object, x.channels(), dtype, x.device());
        return data == nullptr || is_recorded(object) ? nullptr : data;
    }

    // What None leaves null; false: it is another.
    bool take_parameter(py::handle object, const Data& x, const void*& address) const {
        if (object.is_none()) return true;
        address = take_vector(object, x, x.parameters());
        return address != nullptr;
    }

    // A vector that is written behind the library's back.
    void* take_written(py::handle object, const Data& x) const {
        void* const data = take_vector(object, x, x.parameters());
        return data == nullptr || is_inference(object) ? nullptr : data;
    }

    bool take_counter(py::handle object, const Data& x, std::int64_t*& address) const {
        if (object.is_none()) return true;
        address = reader_.take_counter(object, x.device());
        return address != nullptr && !is_inference(object);
    }

    // x, or dy where there is no x, of the forward call that left `saved`.
    struct OfForward {
        double* statistics = nullptr;
        double eps = 0;
        bool by_batch = false;
    };
    bool take_saved(py::handle saved, py::handle object, Data& x, void*& address,
                    OfForward& of) const {
        if (reinterpret_cast<PyObject*>(Py_TYPE(saved.ptr())) != saved_type_.ptr()) return false;
        if (!take_x(object, slot(saved, kChannelAxis).cast<Index>(), address, x)) return false;
        const py::str& name = names_[static_cast<std::size_t>(x.dtype)];
        const py::object dtype = slot(saved, kDTypeName);
        if (!dtype.is(name) && !dtype.equal(name)) return false;
        if (!slot(saved, kShape).equal(tuple_of(x.shape()))) return false;
        TensorView rows;
        if (!take_data(slot(saved, kStatistics), rows) || rows.dtype != DType::float64 ||
            rows.order != Order::c || rows.rank() != 2 || rows.shape()[0] != kRows ||
            rows.shape()[1] != x.channels() || rows.tensor.device.id != x.device()) {
            return false;
        }
        of.statistics = static_cast<double*>(rows.data());
        of.eps = slot(saved, kEps).cast<double>();
        of.by_batch = slot(saved, kBatchStatistics).ptr() == Py_True;
        return true;
    }

    // --- results -----------------------------------------------------

    // A new tensor like x, or `out` if it lies as x does and apart from all operands: x, dy, and
    // vectors of channels.
    Output output_like(py::handle x_object, const Data& x, py::handle out,
                       std::initializer_list<const void*> vectors, const void* dy = nullptr) const {
        TensorView y;
        if (out.is_none()) {
            py::object tensor = call(empty_like_, x_object);
            if (!reader_.take_new_data(tensor, y) || !lies_as(y, x)) return {};
            return {std::move(tensor), y.data()};
        }
        if (!take_data(out, y) || !lies_as(y, x) || is_inference(out)) return {};
        const auto apart = [&y](const void* address, Index bytes) {
            const auto begin = reinterpret_cast<std::uintptr_t>(address);
            const auto written = reinterpret_cast<std::uintptr_t>(y.data());
            return address == nullptr || begin + static_cast<std::uintptr_t>(bytes) <= written ||
                   written + static_cast<std::uintptr_t>(y.bytes()) <= begin;
        };
        if (!apart(x.data(), x.bytes()) || !apart(dy, x.bytes())) return {};
        for (const void* const vector : vectors) {
            if (!apart(vector, x.channels() * size_of(DType::float64))) return {};
        }
        return {py::reinterpret_borrow<py::object>(out), y.data()};
    }

    [[nodiscard]] Output statistics_of(const Data& x) const {
        const std::array<Index, 2> shape{kRows, x.channels()};
        return made(call(new_empty_, device_of(x).seeds[1], tuple_of(shape)));
    }

    [[nodiscard]] Output zeros_of(const Data& x) const {
        return made(call(new_zeros_, device_of(x).seeds[1], vector_shape(x)));
    }

    // The gradient of a parameter: like the weight if there is one, which is quicker.
    [[nodiscard]] Output gradient_of(py::handle weight, const Data& x) const {
        if (!weight.is_none()) return made(call(empty_like_, weight));
        const auto& seed = device_of(x).seeds[x.parameters() == DType::float64 ? 1 : 0];
        return made(call(new_empty_, seed, vector_shape(x)));
    }

    // A DeviceSaved; without a count, the statistics are constants.
    py::object saved(py::handle x_object, const Data& x, const py::object& statistics, double eps,
                     std::optional<Index> count) const {
        auto* const type = reinterpret_cast<PyTypeObject*>(saved_type_.ptr());
        auto result = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
        if (!result) throw py::error_already_set();
        const std::array<py::object, kSlots.size()> values{
            statistics,
            device_of(x).name,
            py::int_(count.value_or(0)),
            py::float_(eps),
            tuple_of(x.shape()),
            x_object.attr(dtype_),
            names_[static_cast<std::size_t>(x.dtype)],
            py::int_(x.channel_axis),
            py::bool_(count.has_value()),
            py::none()};
        for (std::size_t k = 0; k < values.size(); ++k) {
            PyObject* const slot = slots_[k].ptr();
            if (Py_TYPE(slot)->tp_descr_set(slot, result.ptr(), values[k].ptr()) != 0) {
                throw py::error_already_set();
            }
        }
        return result;
    }

    // --- the launch --------------------------------------------------

    bool allocate(Workspace& workspace, const Data& x, Index bytes) const {
        return workspace.allocate(reader_.table(), x.tensor.device, bytes);
    }

    // False where there is no plan, or no memory for the workspace.
    bool launch(cuda::Operation operation, const Data& x, cuda::Addresses& at,
                const cuda::Scalars& scalars) const {
        std::array<std::uint64_t, kMaxOperands> addresses{};
        std::size_t count = 0;
        for (const void* const address : {at.x, at.dy, at.y, at.dx}) {
            if (address != nullptr) addresses[count++] = reinterpret_cast<std::uint64_t>(address);
        }
        std::shared_ptr<const cuda::LaunchPlan> plan;
        try {
            plan = cuda::planned({operation,
                                  x.dtype,
                                  x.channel_axis,
                                  x.device(),
                                  x.shape(),
                                  x.strides(),
                                  {addresses.data(), count}});
        } catch (const Error&) {
            return false;
        }
        Workspace workspace;
        if (plan->workspace_bytes > 0) {
            if (!allocate(workspace, x, plan->workspace_bytes)) return false;
            at.workspace = workspace.data();
        }
        void* stream = nullptr;
        if (reader_.table().current_stream(kDeviceMemory, x.device(), &stream) != 0) {
            throw py::error_already_set();
        }
        cuda::launch(*plan, at, scalars, x.device(), stream);
        return true;
    }

private:
    [[nodiscard]] bool is_recorded(py::handle object) const {
        return autograd_ && autograd_->records(object);
    }

    // Autograd counts no writes to an inference tensor, and PyTorch refuses them outside its mode.
    [[nodiscard]] bool is_inference(py::handle object) const {
        return call(is_inference_, object).ptr() != Py_False;
    }

    bool take_data(py::handle object, TensorView& view) const {
        return reader_.take_data(object, view) && !is_recorded(object);
    }

    static bool lies_as(const TensorView& a, const Data& x) {
        return are_alike(a, x) && a.order == x.order && a.tensor.device.id == x.device();
    }

    // (A mode of PyTorch's may make something else of a new tensor.)
    [[nodiscard]] Output made(py::object tensor) const {
        TensorView view;
        if (!reader_.take_new(tensor, view)) return {};
        return {std::move(tensor), view.data()};
    }

    static py::tuple vector_shape(const Data& x) {
        return tuple_of(std::array<Index, 1>{x.channels()});
    }

    // Facts about a device, asked for once. The seeds are tensors without values, hence without
    // memory, of float32 and of float64: PyTorch makes new ones like them more quickly than by
    // name.
    struct Device {
        bool usable = false;
        py::str name;
        std::array<py::object, 2> seeds;
    };

    const Device& device_of(const Data& x) const {
        const std::int32_t number = x.device();
        if (const auto found = devices_.find(number); found != devices_.end()) {
            return found->second;
        }
        Device device{};
        device.usable = py::str(problem_of_(number)).equal(py::str(""));
        device.name = py::str(dlpack::device_name(dlpack::kCUDA, number));
        if (device.usable) {
            const py::str type(kDeviceMemory == dlpack::kCPU ? "cpu" : "cuda");
            const py::object place = torch_.attr("device")(type, number);
            for (const std::size_t k : {0, 1}) {
                device.seeds[k] = torch_.attr("empty")(
                    0, py::arg("dtype") = torch_.attr(k == 0 ? "float32" : "float64"),
                    py::arg("device") = place);
                // A mode that fakes tensors is at work, which will end.
                if (!py::type::of(device.seeds[k]).is(torch_.attr("Tensor"))) return unusable_;
            }
        }
        return devices_.emplace(number, std::move(device)).first->second;
    }

    // The attributes of DeviceSaved, each a slot of the class.
    enum Slot : std::size_t {
        kStatistics,
        kDeviceName,
        kCount,
        kEps,
        kShape,
        kDType,
        kDTypeName,
        kChannelAxis,
        kBatchStatistics,
        kOfGroup,
    };
    static constexpr std::array kSlots{
        "_statistics",  "_device",          "count",    "eps", "shape", "dtype", "_dtype_name",
        "channel_axis", "batch_statistics", "_of_group"};

    [[nodiscard]] py::object slot(py::handle saved, Slot which) const {
        PyObject* const descriptor = slots_[which].ptr();
        auto value = py::reinterpret_steal<py::object>(
            Py_TYPE(descriptor)
                ->tp_descr_get(descriptor, saved.ptr(),
                               reinterpret_cast<PyObject*>(Py_TYPE(saved.ptr()))));
        if (!value) throw py::error_already_set();
        return value;
    }

    TensorReader reader_;
    py::object torch_, empty_like_, new_empty_, new_zeros_, is_inference_;
    py::object saved_type_, problem_of_;
    std::optional<Autograd> autograd_;  // of functions, which refuse what it would record
    mutable std::map<std::int32_t, Device> devices_;
    Device unusable_;
    std::array<py::object, kSlots.size()> slots_;
    std::array<py::str, 4> names_;  // of dtypes
    py::str dtype_{"dtype"};
};

}  // namespace bnext::bindings::tensors
