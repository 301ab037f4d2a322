// The bodies of the operations on a GPU, as bodies.hpp has those on the CPU. What a group exchanges
// is copied to the host, for which the stream of x is waited for.
#pragma once

#include "bindings/bodies.hpp"
#include "bindings/device_saved.hpp"
#include "intake/numpy.hpp"

namespace bnext::bindings::there {

using cuda::Operation;

inline void take_affine(Launch& launch) {
    launch.at.weight = launch.vector(Role::weight);
    launch.at.bias = launch.vector(Role::bias);
}

// A new array of NumPy's with these rows of float64.
inline py::object on_host(std::span<const double> values, Index channels) {
    const Index count = channels == 0 ? kRows : static_cast<Index>(values.size()) / channels;
    py::object array =
        intake::new_array(DType::float64, std::array<Index, 2>{count, channels}, nullptr);
    std::ranges::copy(values, static_cast<double*>(intake::data_of(array)));
    return array;
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

inline DeviceSaved saved_of(Intake& call, const Engine& engine, const py::object& rows, Index count,
                            bool of_batch) {
    const ArrayRef& x = call[Role::x];
    DeviceSaved saved;
    saved.rows = rows;
    saved.where = engine.where;
    saved.dtype_object = call.array(Role::x).attr(engine.dtype_name);
    saved.dtype = x.dtype();
    saved.channel_axis = call.call.axis();
    saved.eps = call.call.eps;
    saved.count = count;
    saved.batch_statistics = of_batch;
    saved.shape.assign(x.shape().begin(), x.shape().end());
    return saved;
}

// y and DeviceSaved; without `keeps`, of which no backward pass follows, the kernel has its
// statistics in memory that no caller sees.
inline py::object forward(Intake& call, const Engine& engine, bool bessel, bool keeps) {
    Launch launch(call, engine);
    Made rows;
    if (launch.empty()) {
        Saved nothing(call.call);
        of_nothing(nothing, [&](auto type, const Problem& problem) {
            using T = decltype(type);
            cpu::forward<T>(problem, {}, {}, {}, nothing.eps, nothing.rows());
        });
        rows = launch.of_host(on_host(nothing.all(), nothing.channels()));
    } else if (keeps) {
        rows = launch.rows(kRows);
    } else {
        rows.data = launch.scratch(kRows * launch.channels() * Index{sizeof(double)});
    }
    launch.at.statistics = rows.as<double>();
    take_affine(launch);
    if (call.call.has(Role::running_mean)) {
        launch.at.running_mean = call[Role::running_mean].data;
        launch.at.running_var = call[Role::running_var].data;
        launch.scalars.momentum = call.call.momentum;
        launch.scalars.correction = bessel ? 1 : 0;
    }
    const bool counts = call.call.has(Role::num_batches_tracked);
    const bool counts_there = counts && call[Role::num_batches_tracked].place == Place::cuda;
    if (counts_there) {
        launch.at.num_batches_tracked = call[Role::num_batches_tracked].as<std::int64_t>();
    }
    const py::object y = launch.run(Operation::forward);
    if (!counts_there) count_batch(call);
    if (!keeps) return pair_of(y, py::none());
    return pair_of(y, py::cast(saved_of(call, engine, rows.array, launch.count(), true)));
}

// y by given statistics; with `keeps`, and what backward needs.
inline py::object normalize(Intake& call, const Engine& engine, Role mean, Role var, bool keeps) {
    Launch launch(call, engine);
    launch.given_statistics(mean, var);
    take_affine(launch);
    const Made rows = keeps ? launch.rows(kRows) : Made{};
    launch.at.statistics = rows.as<double>();
    const py::object y = launch.run(Operation::normalize);
    if (!keeps) return pair_of(y, py::none());
    return pair_of(y, py::cast(saved_of(call, engine, rows.array, 0, false)));
}

inline py::object backward(Intake& call, const Engine& engine, const DeviceSaved& saved) {
    Launch launch(call, engine);
    const Index channels = launch.channels();
    const auto gradient = [&] {
        if (!launch.empty()) return launch.gradient();
        const DType dtype = param_dtype(saved.dtype);
        return Made{engine.zeros(channels, dtype, call.array(Role::x)), nullptr};
    };
    const Made dweight = gradient(), dbias = gradient();
    launch.at.dweight = dweight.data;
    launch.at.dbias = dbias.data;
    launch.at.weight = launch.vector(Role::weight);
    launch.at.statistics = launch.taken(saved.rows).as<double>();
    launch.scalars.eps = saved.eps;
    const py::object dx =
        launch.run(saved.batch_statistics ? Operation::backward : Operation::backward_fixed);
    return py::make_tuple(dx, dweight.array, dbias.array);
}

// dx where the statistics are constants: dy is normalized about 0.
inline py::object backward_constant(Intake& call, const Engine& engine, const DeviceSaved& saved) {
    Launch launch(call, engine);
    const Index channels = launch.channels();
    const py::object zero = engine.zeros(channels, DType::float64, call.array(Role::dy));
    launch.at.mean = launch.taken(zero).data;
    launch.at.var = StatisticsIn(launch.taken(saved.rows).as<double>(), channels).var();
    launch.at.weight = launch.vector(Role::weight);
    launch.scalars.eps = saved.eps;
    launch.scalars.wide_statistics = true;
    return launch.run(Operation::normalize);
}

// --- the phases by themselves
// ----------------------------------------------------------------------

// The rows of statistics of x, of which a kernel collects mean, mean_low and m2.
inline py::object collected(Launch& launch) {
    if (launch.empty()) {
        const cpu::PoolArray<double> zeros(static_cast<std::size_t>(kRows * launch.channels()),
                                           0.0);
        return launch.of_host(on_host(zeros, launch.channels())).array;
    }
    const Made rows = launch.rows(kRows);
    launch.at.statistics = rows.as<double>();
    launch.scalars.eps = 1;
    launch.run(Operation::collect_stats);
    return rows.array;
}

inline py::object moments(Intake& call, const Engine& engine) {
    Launch launch(call, engine);
    const py::object rows = collected(launch);
    return py::make_tuple(launch.count(), row_of(rows, Row::mean), row_of(rows, Row::m2));
}

inline py::object collect_stats(Intake& call, const Engine& engine) {
    Launch launch(call, engine);
    const py::object rows = engine.library->object.attr("to_numpy")(collected(launch));
    return py::make_tuple(launch.count(), row_of(rows, Row::mean), row_of(rows, Row::mean_low),
                          row_of(rows, Row::m2), name_of(call[Role::x].dtype()));
}

// y and DeviceSaved, from what a group has merged.
inline py::object apply_norm(Intake& call, const Engine& engine, Saved merged) {
    of_nothing(merged, [&](auto type, const Problem& problem) {
        using T = decltype(type);
        cpu::apply_norm<T>(problem, {}, {}, merged.rows(), merged.eps, {});
    });
    Launch launch(call, engine);
    const Made rows = launch.of_host(on_host(merged.all(), merged.channels()));
    launch.at.statistics = rows.as<double>();
    take_affine(launch);
    const py::object y = launch.run(Operation::normalize);
    DeviceSaved saved = saved_of(call, engine, rows.array, merged.count, true);
    saved.of_group = object_of(std::move(merged));
    return pair_of(y, py::cast(std::move(saved)));
}

inline void move_running(const Intake& call, const Engine& engine, const DeviceSaved& saved,
                         py::handle mean, py::handle var, bool bessel) {
    if (!call.call.has(Role::running_mean) || saved.count < 2) return;
    const py::object blend = engine.library->object.attr("blend");
    const double momentum = call.call.momentum;
    blend(mean, momentum, row_of(saved.rows, Row::mean), 1);
    blend(var, momentum, row_of(saved.rows, Row::m2), saved.count - (bessel ? 1 : 0));
}

inline py::object backward_reduce(Intake& call, const Engine& engine, const DeviceSaved& saved) {
    Launch launch(call, engine);
    if (launch.empty()) {
        const cpu::PoolArray<double> zeros(static_cast<std::size_t>(launch.channels()), 0.0);
        const Results numpy;
        return pair_of(numpy.vector<double>(zeros), numpy.vector<double>(zeros));
    }
    const Made sums = launch.rows(2);
    launch.at.sums = sums.as<double>();
    launch.at.statistics = launch.taken(saved.rows).as<double>();
    launch.scalars.eps = saved.eps;
    launch.run(Operation::backward_reduce);
    const py::object host = engine.library->object.attr("to_numpy")(sums.array);
    return pair_of(host[py::int_(0)], host[py::int_(1)]);
}

inline py::object backward_apply(Intake& call, const Engine& engine, const DeviceSaved& saved,
                                 std::span<const double> sum_dy, std::span<const double> sum_dy_xmu,
                                 double count) {
    Launch launch(call, engine);
    Made sums;
    if (!launch.empty()) {
        std::vector<double> both(sum_dy.begin(), sum_dy.end());
        both.insert(both.end(), sum_dy_xmu.begin(), sum_dy_xmu.end());
        sums = launch.of_host(on_host(both, launch.channels()));
    }
    launch.at.sums = sums.as<double>();
    launch.at.statistics = launch.taken(saved.rows).as<double>();
    launch.at.weight = launch.vector(Role::weight);
    launch.scalars.eps = saved.eps;
    launch.scalars.count = count;
    return launch.run(Operation::backward_apply);
}

}  // namespace bnext::bindings::there
