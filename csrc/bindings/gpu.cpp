#include "bindings/gpu.hpp"

#include <stdexcept>

#include "bindings/register.hpp"
#include "core/statistics.hpp"

namespace bnext::bindings {

using intake::call;
using intake::tuple_of_integers;
namespace dlpack = intake::dlpack;

namespace {

// What is common to all exporters of tables: memory that is aligned for every kernel.
constexpr std::size_t kAlignment = 256;

void* aligned(void* data) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    return reinterpret_cast<void*>((begin + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace

// --- the engine ----------------------------------------------------------------------------------

Engine::Engine(const py::object& kernels, const py::object& of, std::int32_t device, bool plain)
    : Gpu{intake::library_for(of), device, py::str(dlpack::device_name(dlpack::kCUDA, device)),
          kernels.attr("device_of"), std::nullopt},
      table(kernels.attr("table").cast<py::capsule>().get_pointer<const cuda::KernelTable>()),
      kernels_(kernels) {
    if (!plain || !library->reader) return;
    const dlpack::ExchangeTable& functions = library->reader->table();
    if (functions.allocate == nullptr || functions.current_stream == nullptr) return;
    reader.emplace(library->torch, table->memory);
    new_empty_ = library->torch.attr("Tensor").attr("new_empty");
    new_zeros_ = library->torch.attr("Tensor").attr("new_zeros");
}

py::object Engine::seed(DType dtype) const {
    py::object& kept = seeds_[static_cast<std::size_t>(dtype)];
    if (kept) return kept;
    const py::object& torch = library->torch;
    const char* type = table->memory == dlpack::kCPU ? "cpu" : "cuda";
    py::object made = torch.attr("empty")(0, py::arg("dtype") = torch.attr(name_of(dtype)),
                                          py::arg("device") = torch.attr("device")(type, index));
    // (A mode that fakes tensors may be at work, which will end.)
    if (py::type::of(made).is(torch.attr("Tensor"))) kept = made;
    return made;
}

py::object Engine::empty(std::span<const Index> shape, DType dtype, const py::object& like) const {
    if (reader) return call(new_empty_, seed(dtype), tuple_of_integers(shape));
    return library->object.attr("empty")(tuple_of_integers(shape), name_of(dtype), like);
}

py::object Engine::zeros(Index size, DType dtype, const py::object& like) const {
    const py::tuple shape = tuple_of_integers({&size, 1});
    if (reader) return call(new_zeros_, seed(dtype), shape);
    return library->object.attr("zeros")(shape, name_of(dtype), like);
}

namespace {

// The calls of `_core`, of an engine.
py::object calls_on(const py::object& kernels, const py::object& library, std::int32_t device,
                    bool plain) {
    auto engine = std::make_unique<Engine>(kernels, library, device, plain);
    const py::capsule self(engine.get(), Engine::kName, [](PyObject* capsule) {
        delete static_cast<Engine*>(PyCapsule_GetPointer(capsule, Engine::kName));
    });
    engine.release();  // NOLINT: the capsule deletes it
    py::object calls = py::module_::import("types").attr("SimpleNamespace")();
    calls.attr("__name__") = "bnext._core";
    register_calls(calls, self);
    register_cell_calls(calls, self);
    register_phases(calls, self);
    register_gpu_rows(calls, self);
    register_double_backward(calls, self);
    register_questions(calls, self);
    return calls;
}

}  // namespace

void register_engines(py::module_& m) {
    static py::exception<Error> path_error(m, "PathError", PyExc_ValueError);
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            if (error.kind() != Error::Kind::path) throw;
            py::set_error(path_error, error.what());
        }
    });
    m.def("calls_on", &calls_on, py::arg("kernels"), py::arg("library"), py::arg("device"),
          py::arg("plain") = true,
          "The calls of this module on arrays of a library (bnext.arrays.library.Library) on one\n"
          "GPU, by the kernels of a module; `plain`: plain tensors are read by DLPack's table.");
}

// --- a launch ------------------------------------------------------------------------------------

Launch::Launch(Intake& of, const Engine& engine)
    : call_(of), engine_(engine), x_array_(of.array(of.call.data())) {
    scalars.eps = of.call.eps;
}

void Launch::applies(const Fused& fused) {
    scalars.activation = static_cast<std::int32_t>(fused.activation);
    scalars.negative_slope = fused.negative_slope;
    reads_residual_ = fused.residual;
}

const void* Launch::vector(Role role) {
    if (!call_.call.has(role)) return nullptr;
    const ArrayRef& array = call_[role];
    if (array.c_contiguous) return array.data;
    const Made copy = in_c_order(given(role));
    kept_.push_back(copy.array);
    return copy.ref.data;
}

void Launch::given_statistics(Role mean, Role var) {
    const bool wide = call_[mean].is(DType::float64) || call_[var].is(DType::float64);
    const auto address = [&](Role role) -> const void* {
        if (!wide || call_[role].is(DType::float64)) return vector(role);
        const Made copy =
            taken(engine_.library->object.attr("converted")(call_.array(role), "float64"));
        kept_.push_back(copy.array);
        return copy.ref.data;
    };
    at.mean = address(mean);
    at.var = address(var);
    scalars.wide_statistics = wide;
}

Made Launch::rows(Index count, Index extent) {
    const std::array<Index, 2> shape{count, extent};
    return taken(engine_.empty(shape, DType::float64, x_array_));
}

Made Launch::gradient() {
    if (engine_.reader && call_.call.has(Role::weight) && !call_.view(Role::weight)) {
        return taken(call(engine_.library->empty_like, call_.array(Role::weight)));
    }
    const Index size = channels();
    return taken(engine_.empty({&size, 1}, param_dtype(x().dtype()), x_array_));
}

Made Launch::of_host(const py::object& values) {
    return taken(engine_.library->object.attr("from_numpy")(values, x_array_));
}

// From the library's stream-ordered allocator: by DLPack's table, or as an array.
void* Launch::scratch(Index bytes) {
    Index size = bytes + static_cast<Index>(kAlignment);
    if (engine_.reader) {
        dlpack::Tensor wanted{};
        wanted.device = {engine_.table->memory, engine_.index};
        wanted.ndim = 1;
        wanted.dtype = {dlpack::kUInt, 8, 1};
        wanted.shape = &size;
        dlpack::ManagedVersioned* managed = nullptr;
        const auto ignore = [](void*, const char*, const char*) {};
        if (engine_.reader->table().allocate(&wanted, &managed, nullptr, ignore) == 0) {
            memory_.emplace_back(managed, managed->deleter);
            return aligned(static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset);
        }
        PyErr_Clear();
    }
    size = (size + 3) / 4;
    const Made made = taken(engine_.empty({&size, 1}, DType::float32, x_array_));
    kept_.push_back(made.array);
    return aligned(made.ref.data);
}

Made Launch::like(const Made& operand) {
    return taken(engine_.reader ? call(engine_.library->empty_like, operand.array)
                                : engine_.library->object.attr("empty_like")(operand.array));
}

Made Launch::copied(const Made& operand, Made into) {
    copy_into(into.array, operand.array);
    return into;
}

Made Launch::in_c_order(const Made& operand) {
    return copied(operand, taken(engine_.library->object.attr("empty")(
                               tuple_of_integers(operand.ref.shape()), name_of(operand.ref.dtype()),
                               operand.array)));
}

// Copies what is in the way: in x's memory order, or everything in C order.
void Launch::make_walkable(std::span<Made> inputs, bool in_order_of_x) {
    if (!in_order_of_x) {
        for (Made& each : inputs) each = in_c_order(each);
        return;
    }
    const std::array strides{AxisStrides{inputs[0].ref.strides, x().rank}};
    if (!describe(x().dtype(), x().shape(), call_.call.axis(), strides).accepted()) {
        inputs[0] = copied(inputs[0], like(inputs[0]));
    }
    for (Made& other : inputs.subspan(1)) other = copied(other, like(inputs[0]));
}

py::object Launch::run(cuda::Operation operation) {
    using cuda::Operation;
    const bool writes =
        operation != Operation::collect_stats && operation != Operation::backward_reduce;
    const auto out = py::reinterpret_borrow<py::object>(call_.out());
    const Made x = given(call_.call.data());
    const bool backward = operation >= Operation::backward;
    const bool makes_dresidual = writes && backward && reads_residual_;
    if (empty()) {
        if (makes_dresidual) dresidual = like(x).array;
        return !writes ? py::none() : out ? out : like(x).array;
    }

    std::array<Made, 3> operands{x};
    std::size_t count = 1;
    if (call_.call.has(Role::x) && call_.call.has(Role::dy)) operands[count++] = given(Role::dy);
    if (reads_residual_) operands[count++] = given(Role::residual);
    const std::array<Made, 3> as_given = operands;
    const std::span<Made> inputs(operands.data(), count);
    for (const int attempt : {0, 1, 2}) {
        if (attempt == 2) operands = as_given;
        if (attempt > 0) make_walkable(inputs, attempt == 1);
        if (!writes) {
            if (launched(operation, inputs, nullptr, nullptr)) return py::none();
            continue;
        }
        const Made beside = makes_dresidual ? like(inputs[0]) : Made{};
        if (makes_dresidual) dresidual = beside.array;
        if (out) {
            const Made wanted{out, call_[Role::out]};
            if (launched(operation, inputs, &wanted, &beside)) return out;
        }
        const Made target = like(inputs[0]);
        if (!launched(operation, inputs, &target, &beside)) continue;
        if (out) copy_into(out, target.array);
        return out ? out : target.array;
    }
    throw Error(Error::Kind::layout, *text_);
}

void* Launch::stream() {
    if (const py::object view = call_.view(call_.call.data())) {
        const py::object number = engine_.library->object.attr("stream")(view, engine_.index);
        return reinterpret_cast<void*>(py::cast<std::uintptr_t>(number));
    }
    void* current = nullptr;
    if (engine_.reader->table().current_stream(engine_.table->memory, engine_.index, &current) !=
        0) {
        throw py::error_already_set();
    }
    return current;
}

// False where copies have to be made first.
bool Launch::launched(cuda::Operation operation, std::span<const Made> inputs, const Made* target,
                      const Made* beside) {
    cuda::KernelCall kernel;
    kernel.operation = operation;
    kernel.dtype = static_cast<std::int32_t>(x().dtype());
    kernel.device = engine_.index;
    kernel.rank = x().rank;
    kernel.channel_axis = call_.call.axis();
    kernel.shape = x().extents;
    for (const Made& each : inputs) kernel.strides[kernel.operands++] = each.ref.strides;
    kernel.at = at;
    kernel.at.x = inputs[0].ref.data;
    std::size_t next = 1;
    const std::size_t others = inputs.size() - (reads_residual_ ? 1 : 0);
    if (others > 1) kernel.at.dy = inputs[next++].ref.data;
    if (reads_residual_) kernel.at.residual = inputs[next].ref.data;
    if (target != nullptr) {
        kernel.strides[kernel.operands++] = target->ref.strides;
        (operation < cuda::Operation::backward ? kernel.at.y : kernel.at.dx) = target->ref.data;
    }
    if (beside != nullptr && beside->array) {
        kernel.strides[kernel.operands++] = beside->ref.strides;
        kernel.at.dresidual = beside->ref.data;
    }
    kernel.scalars = scalars;
    kernel.groups = groups;
    kernel.stream = stream();
    kernel.caller = this;
    kernel.allocate = &allocate;
    kernel.fail = &note_failure;
    text_.reset();
    engine_.table->run(&kernel);
    return raise_failure();
}

void* Launch::allocate(void* caller, Index bytes) {
    try {
        return static_cast<Launch*>(caller)->scratch(bytes);
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

void Launch::note_failure(void* caller, cuda::Failure why, const char* text) {
    static_cast<Launch*>(caller)->failure_ = why;
    static_cast<Launch*>(caller)->text_ = text;
}

bool Launch::raise_failure() {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!text_) return true;
    if (failure_ == cuda::Failure::runtime) throw std::runtime_error(*text_);
    if (failure_ == cuda::Failure::value) value_error(*text_);
    if (failure_ == cuda::Failure::path) throw Error(Error::Kind::path, *text_);
    return false;
}

}  // namespace bnext::bindings
