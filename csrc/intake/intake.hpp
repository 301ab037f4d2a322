// Intake: from the Python objects of a call, arrays of any library, to a Call.
//
// The library of the first array is the call's: results are made in kind, and arrays beside it may
// be NumPy's. If that library is NumPy, whatever NumPy reads is taken. On a GPU all arrays are of
// one library and on one device. All of this needs the GIL.
#pragma once

#include <array>
#include <cstring>

#include "core/call.hpp"
#include "cpu/pool_array.hpp"
#include "intake/arguments.hpp"
#include "intake/results.hpp"

namespace bnext::intake {

class Intake {
public:
    // `plain`: refuses a tensor that is not plain, and does not ask what autograd would record.
    // `gpu`: where the arrays of the call are; null for the CPU.
    explicit Intake(Function function, bool plain = false, const Gpu* gpu = nullptr)
        : call(function), plain_(plain), gpu_(gpu) {
        call.share_memory = &share_memory;
        if (gpu != nullptr) library_ = gpu->library;
    }

    // The array whose library is the call's.
    void lead(Role role, py::handle object);
    // The same for a call that takes no such array.
    void belongs_to(py::handle object) {
        if (gpu_ == nullptr) library_ = library_of(object);
    }
    // None, and what is null, is not given.
    void read(Role role, py::handle object);
    void read_numpy(Role role, py::handle object);  // whatever the call's library is
    void write(Role role, py::handle object);
    void count(py::handle object, Role role = Role::num_batches_tracked);
    void axis(py::handle object) { take_axis_of(call, object); }
    void eps(py::handle object) { call.eps = take_real(object, "eps"); }
    void momentum(py::handle object) {
        if (call.has(Role::running_mean) || call.has(Role::running_var)) {
            call.momentum = take_real(object, "momentum");
        }
    }

    [[nodiscard]] const ArrayRef& operator[](Role role) const { return call[role]; }
    // The values of a vector, one behind the other; null where it is not given.
    template <class T>
    const T* vector(Role role);
    // Room beside the arrays of the call.
    Extents& extents() { return extents_; }

    [[nodiscard]] const Library* library() const { return library_; }
    // The library of the parameters' gradients: the weight's, or the call's.
    [[nodiscard]] const Library* library_of_weight(py::handle weight) const;
    // What was given as `out`; null where nothing was.
    [[nodiscard]] py::handle out() const { return out_; }
    // The array of the library on a GPU whose memory a role has: the one that was given, or what
    // that stands for.
    [[nodiscard]] py::object array(Role role) const { return array_of(kept_[index(role)]); }
    // The same of a new array on a GPU, which it refers to.
    ArrayRef refer_to_new(const py::object& object);
    // What an array on a GPU is read by, which says on which stream its values are made: its view
    // as bnext.arrays.library has it, null of a plain tensor.
    [[nodiscard]] py::object view(Role role) const {
        const py::object& kept = kept_[index(role)];
        return kept && PyTuple_Check(kept.ptr()) != 0 ? kept : py::object();
    }
    // Of a call that was checked: its result takes the place of its data, which is `object`.
    void write_over(py::handle object) {
        const ArrayRef& data = call[call.data()];
        call.add(Role::out) = data;
        out_ = object;
    }
    // Lets the library know which of its arrays have been written.
    void count_writes() const;
    // What is wrong with another array of the call; empty if nothing is.
    [[nodiscard]] std::string misplaced(py::handle object) const;

    Call call;

private:
    static constexpr std::size_t index(Role role) { return static_cast<std::size_t>(role); }
    static py::object array_of(const py::object& kept) {
        return PyTuple_Check(kept.ptr()) != 0 ? py::object(kept[py::int_(0)]) : kept;
    }

    void refer_to_array(Role role, const py::object& array);
    bool take_plain(py::handle object, TensorView& view);
    bool refer_to_plain(Role role, py::handle object, bool is_data);
    void refer_to_view(const py::tuple& view, const char* name, ArrayRef& array);
    void refer_there(Role role, py::handle object, bool is_data);
    void check_written(py::handle object, const char* name, bool is_plain);
    void check_stream(Role role, const py::tuple& view);
    [[nodiscard]] std::string misplaced_there(py::handle object) const;
    void adopt(Role role, py::handle object);
    void adopt_beside(Role role, py::handle object);

    static constexpr std::size_t kWritten = 5;

    const bool plain_;
    const Gpu* const gpu_;
    const Library* library_ = nullptr;
    py::handle out_;
    std::optional<bool> dual_level_;  // of forward-mode differentiation, once it was asked for
    std::size_t copy_count_ = 0, written_count_ = 0;
    // Arrays that were made here; of a call on a GPU, plain tensors and views.
    std::array<py::object, kRoles> kept_;
    std::array<cpu::PoolArray<char>, 4> copies_;
    std::array<py::handle, kWritten> written_;  // of the library
    Extents extents_;
};

template <class T>
const T* Intake::vector(Role role) {
    if (!call.has(role)) return nullptr;
    const ArrayRef& array = call[role];
    const Index size = array.extent(0);
    if (array.viewable && (size <= 1 || array.strides[0] == 1)) return array.as<T>();
    auto& copy = copies_[copy_count_++];
    copy = cpu::PoolArray<char>(static_cast<std::size_t>(size) * sizeof(T));
    for (Index c = 0; c < size; ++c) {
        std::memcpy(copy.data() + static_cast<std::size_t>(c) * sizeof(T),
                    array.as<char>() + c * array.steps[0], sizeof(T));
    }
    return reinterpret_cast<const T*>(copy.data());
}

}  // namespace bnext::intake
