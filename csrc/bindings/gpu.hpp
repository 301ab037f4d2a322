// Calls on a GPU: the operations over the arrays of a checked call, launched by the kernels of
// another module. Nothing here waits for the device, and the GIL is kept.
//
// Results are arrays of the library, made by its allocator on the device of x, and written on the
// stream on which the library works at the time; so is the workspace, which that stream-ordered
// allocator may hand on as soon as the call returns.
#pragma once

#include <optional>

#include "cuda/row_table.hpp"
#include "cuda/twice_table.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {

namespace py = pybind11;
using intake::Intake;

// What computes on the arrays of one library on one GPU. Calls of `_core` are given it in place of
// their module; null is the CPU.
struct Engine : intake::Gpu {
    static constexpr const char* kName = "bnext.engine";

    // `plain`: whether plain tensors are read by DLPack's table, where the library has one.
    Engine(const py::object& kernels, const py::object& library, std::int32_t device, bool plain);

    // New arrays where `like` is.
    [[nodiscard]] py::object empty(std::span<const Index> shape, DType dtype,
                                   const py::object& like) const;
    [[nodiscard]] py::object zeros(Index size, DType dtype, const py::object& like) const;

    const cuda::KernelTable* table;
    [[nodiscard]] const cuda::RowTable& row_table() const {
        const py::capsule capsule = kernels_.attr("row_table");
        return *capsule.get_pointer<const cuda::RowTable>();
    }
    [[nodiscard]] const cuda::TwiceTable& twice_table() const {
        const py::capsule capsule = kernels_.attr("twice_table");
        return *capsule.get_pointer<const cuda::TwiceTable>();
    }
    py::str dtype_name{"dtype"};  // of an attribute, made once

private:
    [[nodiscard]] py::object seed(DType dtype) const;

    py::object kernels_;
    py::object new_empty_, new_zeros_;
    // Tensors without values, hence without memory, of each dtype: PyTorch makes new ones like them
    // more quickly than by name.
    mutable std::array<py::object, std::size(kSizes)> seeds_;
};

// The engine that a function of `_core` belongs to.
inline const Engine* engine_of(py::handle self) {
    if (!self) return nullptr;
    return static_cast<const Engine*>(PyCapsule_GetPointer(self.ptr(), Engine::kName));
}

// An array of the library, and where its values are.
struct Made {
    py::object array;
    ArrayRef ref{};
    template <class T>
    [[nodiscard]] T* as() const {
        return ref.as<T>();
    }
};

// One launch over the arrays of a checked call.
class Launch {
public:
    Launch(Intake& call, const Engine& engine);
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;

    // Addresses of all but the data, and of the result.
    cuda::Addresses at;
    cuda::Scalars scalars;
    Index groups = 0;  // of a norm of cells

    [[nodiscard]] const ArrayRef& x() const { return call_[call_.call.data()]; }
    [[nodiscard]] bool empty() const { return x().size() == 0; }
    [[nodiscard]] Index channels() const { return call_.call.channels(); }
    [[nodiscard]] Index count() const {  // values per channel
        Index product = 1;
        for (Index a = 0; a < x().rank; ++a) product *= a == call_.call.axis() ? 1 : x().extent(a);
        return product;
    }

    // The values of a vector, one behind the other; null where it is not given.
    const void* vector(Role role);
    // Both of one dtype, which is float64 if one is.
    void given_statistics(Role mean, Role var);
    // New arrays: rows of float64; vectors of the parameters' dtype, like the weight if there is
    // one, which is quicker.
    Made rows(Index count) { return rows(count, channels()); }
    Made rows(Index count, Index extent);
    Made gradient();
    Made of_host(const py::object& values);  // a copy of an array of NumPy's
    Made taken(const py::object& array) { return {array, call_.refer_to_new(array)}; }
    void* scratch(Index bytes);  // for the time of the launch

    // What the call applies besides. The residual becomes an operand; a backward pass makes
    // `dresidual`.
    void applies(const Fused& fused);

    // Launches the operation on the data, or on copies of what its kernels cannot walk. Of an empty
    // input there is nothing to launch. Returns what is written: `out`, or a new array; None where
    // the operation writes no data.
    py::object run(cuda::Operation operation);
    py::object dresidual;  // by such a launch

protected:
    // The caller's part of a kernel's call: memory, and errors, which `raise_failure` raises.
    static void* allocate(void* caller, Index bytes);
    static void note_failure(void* caller, cuda::Failure why, const char* text);
    // False where copies have to be made first.
    bool raise_failure();

    using Memory = std::unique_ptr<intake::dlpack::ManagedVersioned,
                                   void (*)(intake::dlpack::ManagedVersioned*)>;

    [[nodiscard]] Made given(Role role) const { return {call_.array(role), call_[role]}; }
    Made like(const Made& x);
    Made copied(const Made& operand, Made into);
    Made in_c_order(const Made& operand);
    void make_walkable(std::span<Made> inputs, bool in_order_of_x);
    bool launched(cuda::Operation operation, std::span<const Made> inputs, const Made* target,
                  const Made* beside);
    void* stream();
    void copy_into(const py::object& target, const py::object& source) {
        engine_.library->object.attr("copy_into")(target, source);
    }

    Intake& call_;
    const Engine& engine_;
    py::object x_array_;
    bool reads_residual_ = false;
    std::vector<py::object> kept_;
    std::vector<Memory> memory_;
    cuda::Failure failure_{};
    std::optional<std::string> text_;  // of the failure
};

}  // namespace bnext::bindings
