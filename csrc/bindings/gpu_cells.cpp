#include "bindings/gpu_cells.hpp"

#include "bindings/gpu_bodies.hpp"
#include "cpu/cell_norm.hpp"

namespace bnext::bindings::gpu {
namespace {

// N and G: the shape of statistics.
std::array<Index, 2> slabs_of(const Call& call) { return {call[Role::x].extent(0), call.groups()}; }

// Values of a slab.
Index values_of_slab(const Call& call) {
    const ArrayRef& x = call[Role::x];
    Index values = call.channels() == 0 ? 0 : call.channels() / call.groups();
    for (Index axis = 1; axis < x.rank; ++axis) {
        values *= axis == call.axis() ? 1 : x.extent(axis);
    }
    return values;
}

// Rows of statistics, shape (kStatisticsRows, N, G).
Made rows_of_slabs(Launch& launch, const Taken& taken) {
    const auto [examples, groups] = slabs_of(taken.call.call);
    const std::array<Index, 3> shape{kStatisticsRows, examples, groups};
    return launch.taken(taken.engine->empty(shape, DType::float64, taken.call.array(Role::x)));
}

// The statistics of an input without values, from the CPU's code.
Made rows_of_nothing(Launch& launch, const Taken& taken) {
    const Call& call = taken.call.call;
    const ArrayRef& x = call[Role::x];
    const auto [examples, slabs_of_each] = slabs_of(call);
    const Index groups = slabs_of_each;  // Clang 14 captures no structured binding
    const std::array<Index, 3> shape{kStatisticsRows, examples, groups};
    py::object rows = intake::new_array(DType::float64, shape, nullptr);
    const StatisticsOut slabs(static_cast<double*>(intake::data_of(rows)), examples * groups);
    const std::array strides{x.axis_strides()};
    with_dtype(x.dtype(), [&](auto type) {
        using T = decltype(type);
        const CellProblem problem =
            describe_cells(x.dtype(), x.shape(), call.axis(), groups, strides).problem;
        cpu::cell_forward<T>(problem, {}, {}, {}, call.eps, slabs);
    });
    return launch.of_host(rows);
}

DeviceSaved saved_of_cells(const Taken& taken, const py::object& rows, py::object of_z) {
    const Call& call = taken.call.call;
    DeviceSaved saved = saved_of(taken, rows, values_of_slab(call), true, std::move(of_z));
    saved.groups = call.groups();
    return saved;
}

}  // namespace

py::object cell_forward(Taken& taken) {
    const Call& call = taken.call.call;
    Launch launch(taken.call, *taken.engine);
    const Made rows =
        launch.empty() ? rows_of_nothing(launch, taken) : rows_of_slabs(launch, taken);
    launch.at.statistics = rows.as<double>();
    launch.groups = call.groups();
    take_affine(launch);
    const Fused fused = call.applied();
    launch.applies(fused);
    py::object of_z = py::none();
    if (!launch.empty() && fused.changes_backward()) {
        const Made made = launch.rows(2, call[Role::x].extent(0) * call.channels());
        launch.at.of_z = made.as<double>();
        of_z = made.array;
    }
    const py::object y = launch.run(Operation::forward);
    return tuple_of(y, py::cast(saved_of_cells(taken, rows.array, of_z)));
}

py::object cell_backward(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const DeviceSaved& saved = *taken.device_saved;
    const auto [dweight, dbias] = parameter_gradients_of(launch, taken);
    launch.groups = saved.groups;
    take_affine(launch);
    take_statistics(launch, saved);
    take_fused_again(launch, saved);
    const py::object dx = launch.run(Operation::backward);
    if (const py::object dresidual = dresidual_of(launch, taken)) {
        return tuple_of(dx, dweight, dbias, dresidual);
    }
    return tuple_of(dx, dweight, dbias);
}

py::object cell_restored(Taken& taken) {
    if (taken.call.call.applied().changes_backward()) refuse_to_restore_activated();
    const auto [examples, groups] = slabs_of(taken.call.call);
    py::object rows = taken.call.array(Role::rows);
    if (!taken.call[Role::rows].c_contiguous) {
        const std::array<Index, 2> shape{kStatisticsRows, examples * groups};
        const py::object copy = taken.engine->empty(shape, DType::float64, rows);
        taken.engine->library->object.attr("copy_into")(copy, rows);
        rows = copy;
    }
    rows = rows.attr("reshape")(py::make_tuple(kStatisticsRows, examples, groups));
    return py::cast(saved_of_cells(taken, rows, py::none()));
}

}  // namespace bnext::bindings::gpu
