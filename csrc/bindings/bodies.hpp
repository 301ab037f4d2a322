// One body for each operation, over the arrays of a checked call, of any library: decide about
// copies, compute without the GIL, build the result in kind. Kernels get only pointers.
#pragma once

#include "bindings/operands.hpp"
#include "bindings/saved.hpp"
#include "core/float_mode.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {

inline py::object pair_of(const py::object& first, const py::object& second) {
    auto result = py::reinterpret_steal<py::object>(PyTuple_Pack(2, first.ptr(), second.ptr()));
    if (!result) throw py::error_already_set();
    return result;
}

template <class T>
cpu::Affine<T> affine_of(Intake& call) {
    return {call.vector<Param<T>>(Role::weight), call.vector<Param<T>>(Role::bias)};
}

// A layer's running statistics: new = (1 - momentum) * old + momentum * batch, rounded once. The
// correction is Bessel's 1, or 0, which leaves the variance biased.
template <class P>
void move_running(const Intake& call, const Saved& saved, bool bessel) {
    if (!call.call.has(Role::running_mean) || saved.count < 2) return;
    const FloatMode mode;
    const double momentum = call.call.momentum;
    const auto blend = [&](const ArrayRef& running, std::size_t c, double batch) {
        P& value = running.as<P>()[static_cast<Index>(c) * running.strides[0]];
        value = static_cast<P>((1.0 - momentum) * static_cast<double>(value) + momentum * batch);
    };
    const double n = static_cast<double>(saved.count) - (bessel ? 1.0 : 0.0);
    const auto batch_mean = saved.row(Row::mean), batch_m2 = saved.row(Row::m2);
    for (std::size_t c = 0; c < batch_mean.size(); ++c) {
        blend(call[Role::running_mean], c, batch_mean[c]);
        blend(call[Role::running_var], c, batch_m2[c] / n);
    }
}

inline void count_batch(const Intake& call) {
    if (!call.call.has(Role::num_batches_tracked)) return;
    ++*call[Role::num_batches_tracked].as<std::int64_t>();
}

// y and Saved, from the batch's statistics; or y and None.
template <class T>
py::object forward_body(Intake& call, const Results& results, bool bessel, bool keeps) {
    Saved saved(call.call);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    Inputs inputs(call);
    Destination y(call, inputs, results);
    const auto affine = affine_of<T>(call);
    without_gil(y.problem().elements(), [&] {
        saved.count = static_cast<Index>(
            cpu::forward<T>(y.problem(), y.x<T>(), y.target<T>(), affine, saved.eps, saved.rows()));
    });
    py::object result = y.result();
    move_running<Param<T>>(call, saved, bessel);
    count_batch(call);
    return pair_of(result, keeps ? object_of(std::move(saved)) : py::none());
}

// y from statistics in `saved`, which gets what follows from them.
template <class T>
py::object apply_norm_body(Intake& call, const Results& results, Saved& saved) {
    Inputs inputs(call);
    Destination y(call, inputs, results);
    const auto affine = affine_of<T>(call);
    without_gil(y.problem().elements(), [&] {
        cpu::apply_norm<T>(y.problem(), y.x<T>(), y.target<T>(), saved.rows(), saved.eps, affine);
    });
    return y.result();
}

// What is saved where statistics are given by these roles.
inline Saved given_statistics(const Intake& call, Role mean, Role var) {
    Saved saved(call.call);
    saved.has_given_statistics();
    read_doubles(call[mean], saved.row(Row::mean));
    read_doubles(call[var], saved.row(Row::var));
    return saved;
}

// dx = dy * weight * rstd where the statistics are constants: apply_norm of dy.
template <class T>
void scale_gradient(const Problem& problem, const cpu::View<const T>& dy, const cpu::View<T>& dx,
                    const Saved& saved, const Param<T>* weight) {
    const cpu::PoolArray<double> values(saved.all().size(), 0.0);
    const StatisticsOut about_zero(values.data(), saved.channels());
    std::ranges::copy(saved.row(Row::var), about_zero.var());
    cpu::apply_norm<T>(problem, dy, dx, about_zero, saved.eps, {weight, nullptr});
}

// dx, dweight, dbias.
template <class T>
py::object backward_body(Intake& call, const Results& results, const Results& of_parameters,
                         const Saved& saved) {
    Inputs inputs(call);
    Destination dx(call, inputs, results);
    const Problem& problem = dx.problem();
    const auto* weight = call.vector<Param<T>>(Role::weight);
    const auto size = static_cast<std::size_t>(saved.channels());
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    without_gil(problem.elements(), [&] {
        if (saved.batch_statistics) {
            cpu::backward<T>(problem, dx.dy<T>(), dx.x<T>(), dx.target<T>(), saved.rows(), weight,
                             sum_dy.data(), sum_dy_xmu.data());
        } else {
            cpu::backward_reduce<T>(problem, dx.dy<T>(), dx.x<T>(), saved.rows(), sum_dy.data(),
                                    sum_dy_xmu.data());
            scale_gradient<T>(problem, dx.dy<T>(), dx.target<T>(), saved, weight);
        }
    });
    const double* rstd = problem.count() == 0 ? nullptr : saved.rows().rstd();
    const py::object all[] = {dx.result(), of_parameters.vector<Param<T>>(sum_dy_xmu, rstd),
                              of_parameters.vector<Param<T>>(sum_dy)};
    auto result = py::reinterpret_steal<py::object>(
        PyTuple_Pack(3, all[0].ptr(), all[1].ptr(), all[2].ptr()));
    if (!result) throw py::error_already_set();
    return result;
}

// dx alone, where the statistics were given.
template <class T>
py::object backward_constant_body(Intake& call, const Results& results, const Saved& saved) {
    Inputs inputs(call);
    Destination dx(call, inputs, results);
    const auto* weight = call.vector<Param<T>>(Role::weight);
    without_gil(dx.problem().elements(),
                [&] { scale_gradient<T>(dx.problem(), dx.x<T>(), dx.target<T>(), saved, weight); });
    return dx.result();
}

}  // namespace bnext::bindings
