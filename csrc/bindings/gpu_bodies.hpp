// The bodies of the operations on a GPU, beside the CPU's in calls.cpp and phases.cpp. What a group
// exchanges is copied to the host, for which the stream of x is waited for.
#pragma once

#include "bindings/bodies.hpp"
#include "intake/numpy.hpp"

namespace bnext::bindings::gpu {

using cuda::Operation;

inline void take_affine(Launch& launch) {
    launch.at.weight = launch.vector(Role::weight);
    launch.at.bias = launch.vector(Role::bias);
}

// The statistics that forward has left.
inline void take_statistics(Launch& launch, const DeviceSaved& saved) {
    launch.at.statistics = launch.taken(saved.rows).as<double>();
    launch.scalars.eps = saved.eps;
}

// What a forward call applies besides. Returns what its launch leaves of an activation's argument
// where a backward pass follows: two rows, or None.
inline py::object take_fused(Launch& launch, const Taken& taken, bool keeps) {
    const Fused fused = taken.call.call.applied();
    launch.applies(fused);
    if (!keeps || launch.empty() || !fused.changes_backward()) return py::none();
    const Made of_z = launch.rows(2);
    launch.at.of_z = of_z.as<double>();
    return of_z.array;
}
// The same of the forward call, for its backward pass.
inline void take_fused_again(Launch& launch, const DeviceSaved& saved) {
    if (!saved.fused.changes_backward()) return;
    launch.applies(saved.fused);
    if (!launch.empty()) launch.at.of_z = launch.taken(saved.of_z).as<double>();
}
// The residual's gradient, if there was a residual: null, or dy itself without an activation.
inline py::object dresidual_of(const Launch& launch, const Taken& taken) {
    const Fused& fused = taken.device_saved->fused;
    if (!fused.residual) return {};
    if (fused.changes_backward()) return launch.dresidual;
    return py::reinterpret_borrow<py::object>(taken.dy);
}

// A new array of NumPy's with these rows of float64.
inline py::object on_host(std::span<const double> values, Index channels) {
    const Index count =
        channels == 0 ? kStatisticsRows : static_cast<Index>(values.size()) / channels;
    py::object array =
        intake::new_array(DType::float64, std::array<Index, 2>{count, channels}, nullptr);
    std::ranges::copy(values, static_cast<double*>(intake::data_of(array)));
    return array;
}

// A layer's count of batches that is on the host.
inline void count_batch(const Intake& call) {
    if (!call.call.has(Role::num_batches_tracked)) return;
    const ArrayRef& counter = call[Role::num_batches_tracked];
    if (counter.place == Place::cpu) ++*counter.as<std::int64_t>();
}

// f(T, problem) of an input with these channels and no values, on the CPU: so that a GPU's
// statistics follow from the same code as the CPU's.
template <class F>
void of_nothing(const Saved& saved, F&& f) {
    with_dtype(saved.dtype, [&](auto type) {
        const std::array<Index, 2> shape{0, saved.channels()}, strides{saved.channels(), 1};
        const std::array operands{AxisStrides(strides), AxisStrides(strides)};
        f(type, describe(saved.dtype, shape, 1, operands).problem);
    });
}

inline DeviceSaved saved_of(const Taken& taken, const py::object& rows, Index count, bool of_batch,
                            py::object of_z) {
    const Call& call = taken.call.call;
    const ArrayRef& x = call[Role::x];
    DeviceSaved saved;
    saved.rows = rows;
    saved.where = taken.engine->where;
    saved.dtype_object = taken.call.array(Role::x).attr(taken.engine->dtype_name);
    saved.dtype = x.dtype();
    saved.channel_axis = call.axis();
    saved.eps = call.eps;
    saved.count = count;
    saved.batch_statistics = of_batch;
    saved.shape.assign(x.shape().begin(), x.shape().end());
    saved.fused = call.applied();
    saved.of_z = std::move(of_z);
    return saved;
}

// y and DeviceSaved; where no backward pass follows, the kernel has its statistics in memory that
// no caller sees.
inline py::object forward(Taken& taken) {
    Intake& call = taken.call;
    Launch launch(taken.call, *taken.engine);
    Made rows;
    if (launch.empty()) {
        Saved nothing(call.call);
        of_nothing(nothing, [&](auto type, const Problem& problem) {
            using T = decltype(type);
            cpu::forward<T>(problem, {}, {}, {}, nothing.eps, nothing.rows());
        });
        rows = launch.of_host(on_host(nothing.all(), nothing.channels()));
    } else if (taken.keeps) {
        rows = launch.rows(kStatisticsRows);
    } else {
        rows.ref.data = launch.scratch(kStatisticsRows * launch.channels() * Index{sizeof(double)});
    }
    launch.at.statistics = rows.as<double>();
    take_affine(launch);
    if (call.call.has(Role::running_mean)) {
        launch.at.running_mean = call[Role::running_mean].data;
        launch.at.running_var = call[Role::running_var].data;
        launch.scalars.momentum = call.call.momentum;
        launch.scalars.correction = taken.bessel ? 1 : 0;
    }
    const bool counts = call.call.has(Role::num_batches_tracked);
    if (counts && call[Role::num_batches_tracked].place == Place::cuda) {
        launch.at.num_batches_tracked = call[Role::num_batches_tracked].as<std::int64_t>();
    }
    const py::object of_z = take_fused(launch, taken, taken.keeps);
    const py::object y = launch.run(Operation::forward);
    count_batch(call);
    if (!taken.keeps) return tuple_of(y, py::none());
    return tuple_of(y, py::cast(saved_of(taken, rows.array, launch.count(), true, of_z)));
}

// y by statistics that are given; and where they are kept, what backward needs.
template <Role mean, Role var, bool keeps>
py::object normalized(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    launch.given_statistics(mean, var);
    take_affine(launch);
    const Made rows = keeps ? launch.rows(kStatisticsRows) : Made{};
    launch.at.statistics = rows.as<double>();
    const py::object of_z = take_fused(launch, taken, keeps);
    const py::object y = launch.run(Operation::normalize);
    if (!keeps) return y;
    return tuple_of(y, py::cast(saved_of(taken, rows.array, 0, false, of_z)));
}

inline py::object normalize(Taken& taken) {
    return tuple_of(normalized<Role::mean, Role::var, false>(taken), py::none());
}

// New arrays for dweight and dbias, which the launch gets.
inline std::pair<py::object, py::object> parameter_gradients_of(Launch& launch,
                                                                const Taken& taken) {
    const auto gradient = [&] {
        if (!launch.empty()) return launch.gradient();
        const DType dtype = param_dtype(taken.device_saved->dtype);
        const py::object like = taken.call.array(Role::x);
        return Made{taken.engine->zeros(launch.channels(), dtype, like), {}};
    };
    const Made dweight = gradient(), dbias = gradient();
    launch.at.dweight = dweight.ref.data;
    launch.at.dbias = dbias.ref.data;
    return {dweight.array, dbias.array};
}

inline py::object backward(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const DeviceSaved& saved = *taken.device_saved;
    const auto [dweight, dbias] = parameter_gradients_of(launch, taken);
    take_affine(launch);
    take_statistics(launch, saved);
    take_fused_again(launch, saved);
    const py::object dx =
        launch.run(saved.batch_statistics ? Operation::backward : Operation::backward_fixed);
    if (const py::object dresidual = dresidual_of(launch, taken)) {
        return tuple_of(dx, dweight, dbias, dresidual);
    }
    return tuple_of(dx, dweight, dbias);
}

// dx where the statistics are constants: dy is normalized about 0.
inline py::object backward_constant(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const DeviceSaved& saved = *taken.device_saved;
    const Index channels = launch.channels();
    const py::object zero =
        taken.engine->zeros(channels, DType::float64, taken.call.array(Role::dy));
    launch.at.mean = launch.taken(zero).ref.data;
    launch.at.var = StatisticsIn(launch.taken(saved.rows).as<double>(), channels).var();
    launch.at.weight = launch.vector(Role::weight);
    launch.scalars.eps = saved.eps;
    launch.scalars.wide_statistics = true;
    return launch.run(Operation::normalize);
}

[[noreturn]] inline void refuse_to_restore_activated() {
    value_error("epilogue: expected no activation on a GPU, since what follows from the ",
                "parameters is not among the statistics");
}

inline py::object restored(Taken& taken) {
    if (taken.call.call.applied().changes_backward()) refuse_to_restore_activated();
    const Index count = Launch(taken.call, *taken.engine).count();
    return py::cast(saved_of(taken, taken.call.array(Role::rows), count, true, py::none()));
}

// --- the phases by themselves --------------------------------------------------------------------

// The rows of statistics of x, of which a kernel collects mean, mean_low and m2.
inline py::object collected(Launch& launch) {
    if (launch.empty()) {
        const auto size = static_cast<std::size_t>(kStatisticsRows * launch.channels());
        const cpu::PoolArray<double> zeros(size, 0.0);
        return launch.of_host(on_host(zeros, launch.channels())).array;
    }
    const Made rows = launch.rows(kStatisticsRows);
    launch.at.statistics = rows.as<double>();
    launch.scalars.eps = 1;
    launch.run(Operation::collect_stats);
    return rows.array;
}

inline py::object moments(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const py::object rows = collected(launch);
    return py::make_tuple(launch.count(), row_of(rows, Row::mean), row_of(rows, Row::m2));
}

inline py::object collect_stats(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const py::object rows = taken.engine->library->object.attr("to_numpy")(collected(launch));
    return py::make_tuple(launch.count(), row_of(rows, Row::mean), row_of(rows, Row::mean_low),
                          row_of(rows, Row::m2), name_of(taken.call[Role::x].dtype()));
}

// y and DeviceSaved, from what a group has merged.
inline py::object apply_norm(Taken& taken) {
    Saved merged = merged_of(taken);
    of_nothing(merged, [&](auto type, const Problem& problem) {
        using T = decltype(type);
        cpu::apply_norm<T>(problem, {}, {}, merged.rows(), merged.eps, {});
    });
    Launch launch(taken.call, *taken.engine);
    const Made rows = launch.of_host(on_host(merged.all(), merged.channels()));
    launch.at.statistics = rows.as<double>();
    take_affine(launch);
    const py::object of_z = take_fused(launch, taken, true);
    const py::object y = launch.run(Operation::normalize);
    DeviceSaved saved = saved_of(taken, rows.array, static_cast<Index>(merged.count), true, of_z);
    saved.of_group = object_of(std::move(merged));
    return tuple_of(y, py::cast(std::move(saved)));
}

// By operations of the library, on the device.
inline py::object move_running(Taken& taken) {
    const Intake& call = taken.call;
    const DeviceSaved& saved = *taken.device_saved;
    if (call.call.has(Role::running_mean) && saved.count >= 2) {
        const py::object blend = taken.engine->library->object.attr("blend");
        const double momentum = call.call.momentum;
        blend(call.array(Role::running_mean), momentum, row_of(saved.rows, Row::mean), 1);
        blend(call.array(Role::running_var), momentum, row_of(saved.rows, Row::m2),
              saved.count - (taken.bessel ? 1 : 0));
    }
    count_batch(call);
    return py::none();
}

inline py::object backward_reduce(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    if (launch.empty()) return Sums(launch.channels()).arrays();
    const Made sums = launch.rows(2);
    launch.at.sums = sums.as<double>();
    take_statistics(launch, *taken.device_saved);
    take_fused_again(launch, *taken.device_saved);
    launch.run(Operation::backward_reduce);
    const py::object host = taken.engine->library->object.attr("to_numpy")(sums.array);
    return tuple_of(py::object(host[py::int_(0)]), py::object(host[py::int_(1)]));
}

inline py::object backward_apply(Taken& taken) {
    Launch launch(taken.call, *taken.engine);
    const double count = intake::take_real(taken.count, "count");
    Made on_device;
    if (!launch.empty()) {
        const Sums sums(taken.call);
        std::vector<double> both(sums.dy.data(), sums.dy.data() + sums.dy.size());
        both.insert(both.end(), sums.dy_xmu.data(), sums.dy_xmu.data() + sums.dy_xmu.size());
        on_device = launch.of_host(on_host(both, launch.channels()));
    }
    launch.at.sums = on_device.as<double>();
    take_affine(launch);
    take_statistics(launch, *taken.device_saved);
    launch.scalars.count = count;
    take_fused_again(launch, *taken.device_saved);
    const py::object dx = launch.run(Operation::backward_apply);
    const py::object dresidual = dresidual_of(launch, taken);
    return dresidual ? tuple_of(dx, dresidual) : dx;
}

// On the host, by the statistics that the group has merged.
inline py::object parameter_gradients(Taken& taken) {
    const DeviceSaved& saved = *taken.device_saved;
    const Saved& merged = saved.merged();
    const auto [dweight, dbias] =
        Sums(taken.call).gradients(merged, merged.rows().rstd(), Results());
    const py::object from_numpy = taken.engine->library->object.attr("from_numpy");
    return tuple_of(from_numpy(dweight, saved.rows), from_numpy(dbias, saved.rows));
}

}  // namespace bnext::bindings::gpu
