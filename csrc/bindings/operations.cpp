// The operations as Python calls them. Each function has three parts, in this order: take and check
// every Python object; release the GIL and compute; build the result. Nothing is written, and no
// state changes, before the checks are through.
#include <pybind11/stl.h>

#include <limits>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/operands.hpp"
#include "bindings/register.hpp"
#include "bindings/running.hpp"
#include "bindings/saved.hpp"
#include "core/moments.hpp"
#include "cpu/operations.hpp"

namespace bnext::bindings {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Index channels_of(const Array& x, Index axis) { return x.shape()[static_cast<std::size_t>(axis)]; }

py::array_t<double> to_array(const std::vector<double>& values) {
    return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
py::array_t<T> parameter_gradient(const std::vector<double>& sums, const double* factor) {
    py::array_t<T> result(static_cast<py::ssize_t>(sums.size()));
    T* out = result.mutable_data();
    for (std::size_t c = 0; c < sums.size(); ++c) {
        out[c] = static_cast<T>(factor != nullptr ? sums[c] * factor[c] : sums[c]);
    }
    return result;
}

void check_more_than_one(const Array& x, Index axis) {
    Index count = 1;
    for (std::size_t a = 0; a < x.rank(); ++a) {
        if (static_cast<Index>(a) != axis) count *= x.shape()[a];
    }
    if (count == 1) {
        value_error(concat("Expected more than 1 value per channel when training, got input size ",
                           shape_text(x.shape())));
    }
}

Saved saved_for(const Array& x, Index axis, double eps, Index channels) {
    Saved saved;
    saved.dtype = *x.dtype();
    saved.shape.assign(x.shape().begin(), x.shape().end());
    saved.channel_axis = axis;
    saved.eps = eps;
    const auto n = static_cast<std::size_t>(channels);
    saved.mean.resize(n);
    saved.m2.resize(n);
    saved.var.resize(n);
    saved.rstd.resize(n);
    return saved;
}

template <class T>
py::tuple forward_typed(Array x, py::handle weight_object, py::handle bias_object,
                        py::handle running_mean, py::handle running_var, py::handle momentum,
                        double eps, Index axis, py::handle out) {
    const Index channels = channels_of(x, axis);
    const auto weight = take_parameter<T>(weight_object, "weight", channels);
    const auto bias = take_parameter<T>(bias_object, "bias", channels);
    const Running<T> running(running_mean, running_var, momentum, channels);
    check_more_than_one(x, axis);
    const py::array original = x.object();
    Saved saved = saved_for(x, axis, eps, channels);
    saved.fingerprint = fingerprint_of(x);
    Inputs inputs(x, axis);
    Destination y(out, x, inputs,
                  {{"x", &original},
                   {"weight", &weight.array},
                   {"bias", &bias.array},
                   {"running_mean", &running.mean.array},
                   {"running_var", &running.var.array}});
    const Problem& problem = y.description().problem;
    const auto x_view = x.view<T>(y.description().strides[0]);
    const auto y_view = y.target().template mutable_view<T>(y.description().strides[1]);
    saved.count = problem.count();
    // Every Python object is unpacked; from here on there are only pointers.
    without_gil([&] {
        cpu::forward<T>(problem, x_view, y_view, {weight.data, bias.data}, eps, saved.mean.data(),
                        saved.m2.data());
        const auto n = static_cast<double>(saved.count);
        for (std::size_t c = 0; c < saved.var.size(); ++c) {
            saved.var[c] = saved.m2[c] / n;
            saved.rstd[c] = rstd_of(saved.var[c], eps);
        }
    });
    py::object result = y.result();
    running.update(saved);
    return py::make_tuple(std::move(result), std::move(saved));
}

py::tuple forward(py::handle x_object, py::handle weight, py::handle bias, py::handle running_mean,
                  py::handle running_var, py::handle momentum, py::handle eps_object,
                  py::handle channel_axis, py::handle out) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    const double eps = take_eps(eps_object);
    return with_dtype(*x.dtype(), [&](auto type) {
        return forward_typed<decltype(type)>(std::move(x), weight, bias, running_mean, running_var,
                                             momentum, eps, axis, out);
    });
}

template <class T>
py::tuple normalize_typed(Array x, py::handle mean_object, py::handle var_object,
                          py::handle weight_object, py::handle bias_object, double eps, Index axis,
                          py::handle out) {
    const Index channels = channels_of(x, axis);
    Saved saved = saved_for(x, axis, eps, channels);
    saved.batch_statistics = false;
    auto mean = take_statistics(mean_object, "mean", channels, *x.dtype());
    auto var = take_statistics(var_object, "var", channels, *x.dtype());
    saved.mean = std::move(mean.values);
    saved.var = std::move(var.values);
    saved.m2.assign(saved.m2.size(), kNaN);
    const auto weight = take_parameter<T>(weight_object, "weight", channels);
    const auto bias = take_parameter<T>(bias_object, "bias", channels);
    const py::array original = x.object();
    saved.fingerprint = fingerprint_of(x);
    Inputs inputs(x, axis);
    Destination y(out, x, inputs,
                  {{"x", &original},
                   {"mean", &mean.array},
                   {"var", &var.array},
                   {"weight", &weight.array},
                   {"bias", &bias.array}});
    const Problem& problem = y.description().problem;
    const auto x_view = x.view<T>(y.description().strides[0]);
    const auto y_view = y.target().template mutable_view<T>(y.description().strides[1]);
    without_gil([&] {
        for (std::size_t c = 0; c < saved.var.size(); ++c) {
            saved.rstd[c] = rstd_of(saved.var[c], eps);
        }
        cpu::apply_norm<T>(problem, x_view, y_view, saved.mean.data(), saved.rstd.data(),
                           {weight.data, bias.data});
    });
    py::object result = y.result();
    return py::make_tuple(std::move(result), std::move(saved));
}

py::tuple normalize(py::handle x_object, py::handle mean, py::handle var, py::handle weight,
                    py::handle bias, py::handle eps_object, py::handle channel_axis,
                    py::handle out) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    const double eps = take_eps(eps_object);
    return with_dtype(*x.dtype(), [&](auto type) {
        return normalize_typed<decltype(type)>(std::move(x), mean, var, weight, bias, eps, axis,
                                               out);
    });
}

const Saved& take_saved(py::handle object) {
    if (!py::isinstance<Saved>(object)) {
        type_error(
            concat("saved: expected what batch_norm_forward returned, got ", type_name(object)));
    }
    return py::cast<const Saved&>(object);
}

template <class T>
py::tuple backward_typed(Array dy, Array x, const Saved& saved, py::handle weight_object,
                         py::handle out) {
    const Index axis = saved.channel_axis;
    const Index channels = channels_of(x, axis);
    const auto weight = take_parameter<T>(weight_object, "weight", channels);
    const py::array original_dy = dy.object();
    const py::array original_x = x.object();
    Inputs inputs(x, &dy, axis);
    Destination dx(out, x, inputs,
                   {{"dy", &original_dy}, {"x", &original_x}, {"weight", &weight.array}});
    const Problem& problem = dx.description().problem;
    const auto& strides = dx.description().strides;
    const auto x_view = x.view<T>(strides[0]);
    const auto dy_view = dy.view<T>(strides[1]);
    const auto dx_view = dx.target().template mutable_view<T>(strides[2]);
    std::vector<double> sum_dy(static_cast<std::size_t>(channels));
    std::vector<double> sum_dy_xmu(static_cast<std::size_t>(channels));
    without_gil([&] {
        if (saved.batch_statistics) {
            cpu::backward<T>(problem, dy_view, x_view, dx_view, saved.mean.data(),
                             saved.rstd.data(), weight.data, sum_dy.data(), sum_dy_xmu.data());
        } else {
            // The statistics are constants: dx = dy * weight * rstd, which is apply_norm of dy.
            cpu::backward_reduce<T>(problem, dy_view, x_view, saved.mean.data(), sum_dy.data(),
                                    sum_dy_xmu.data());
            const std::vector<double> zero(saved.mean.size(), 0.0);
            cpu::apply_norm<T>(problem, dy_view, dx_view, zero.data(), saved.rstd.data(),
                               {weight.data, nullptr});
        }
    });
    const double* rstd = problem.count() == 0 ? nullptr : saved.rstd.data();
    return py::make_tuple(dx.result(), parameter_gradient<T>(sum_dy_xmu, rstd),
                          parameter_gradient<T>(sum_dy, nullptr));
}

py::tuple backward(py::handle dy_object, py::handle x_object, py::handle saved_object,
                   py::handle weight, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x);
    Array dy = take_like(dy_object, "dy", x);
    return with_dtype(*x.dtype(), [&](auto type) {
        return backward_typed<decltype(type)>(std::move(dy), std::move(x), saved, weight, out);
    });
}

py::tuple moments(py::handle x_object, py::handle channel_axis) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    Inputs inputs(x, axis);
    const Description description = inputs.describe_inputs();
    const auto n = static_cast<std::size_t>(description.problem.channels);
    std::vector<double> mean(n), m2(n);
    with_dtype(*x.dtype(), [&](auto type) {
        using T = decltype(type);
        const auto x_view = x.view<T>(description.strides[0]);
        without_gil(
            [&] { cpu::collect_stats<T>(description.problem, x_view, mean.data(), m2.data()); });
    });
    return py::make_tuple(description.problem.count(), to_array(mean), to_array(m2));
}

py::tuple backward_reduce(py::handle dy_object, py::handle x_object, py::handle saved_object) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x);
    Array dy = take_like(dy_object, "dy", x);
    Inputs inputs(x, &dy, saved.channel_axis);
    const Description description = inputs.describe_inputs();
    std::vector<double> sum_dy(saved.mean.size()), sum_dy_xmu(saved.mean.size());
    with_dtype(*x.dtype(), [&](auto type) {
        using T = decltype(type);
        const auto x_view = x.view<T>(description.strides[0]);
        const auto dy_view = dy.view<T>(description.strides[1]);
        without_gil([&] {
            cpu::backward_reduce<T>(description.problem, dy_view, x_view, saved.mean.data(),
                                    sum_dy.data(), sum_dy_xmu.data());
        });
    });
    return py::make_tuple(to_array(sum_dy), to_array(sum_dy_xmu));
}

py::object backward_apply(py::handle dy_object, py::handle x_object, py::handle saved_object,
                          py::handle weight_object, py::handle sum_dy_object,
                          py::handle sum_dy_xmu_object, py::handle count_object, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x);
    Array dy = take_like(dy_object, "dy", x);
    const Index axis = saved.channel_axis;
    const Index channels = channels_of(x, axis);
    const auto sum_dy = take_statistics(sum_dy_object, "sum_dy", channels, DType::float64).values;
    const auto sum_dy_xmu =
        take_statistics(sum_dy_xmu_object, "sum_dy_xmu", channels, DType::float64).values;
    const double count = take_real(count_object, "count");
    const py::array original_dy = dy.object();
    const py::array original_x = x.object();
    return with_dtype(*x.dtype(), [&](auto type) -> py::object {
        using T = decltype(type);
        const auto weight = take_parameter<T>(weight_object, "weight", channels);
        Inputs inputs(x, &dy, axis);
        Destination dx(out, x, inputs,
                       {{"dy", &original_dy}, {"x", &original_x}, {"weight", &weight.array}});
        const auto& strides = dx.description().strides;
        const auto x_view = x.view<T>(strides[0]);
        const auto dy_view = dy.view<T>(strides[1]);
        const auto dx_view = dx.target().template mutable_view<T>(strides[2]);
        without_gil([&] {
            cpu::backward_apply<T>(dx.description().problem, dy_view, x_view, dx_view,
                                   saved.mean.data(), saved.rstd.data(), weight.data, sum_dy.data(),
                                   sum_dy_xmu.data(), count);
        });
        return dx.result();
    });
}

}  // namespace

void register_operations(py::module_& m) {
    m.def("as_array", &as_array, py::arg("x"), py::arg("name"),
          "numpy.asarray, with an error that names the argument.");
    m.def("check_eps", &take_eps, py::arg("eps"), "eps, if it is a finite number >= 0.");
    m.def("check_momentum", &take_momentum, py::arg("momentum"), "momentum, if it is finite.");
    m.def("forward", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"), py::arg("eps"),
          py::arg("channel_axis"), py::arg("out"),
          "y and Saved, from batch statistics; updates the running ones where they are given.");
    m.def("backward", &backward, py::arg("dy"), py::arg("x"), py::arg("saved"), py::arg("weight"),
          py::arg("out"), "dx, dweight, dbias.");
    m.def("normalize", &normalize, py::arg("x"), py::arg("mean"), py::arg("var"), py::arg("weight"),
          py::arg("bias"), py::arg("eps"), py::arg("channel_axis"), py::arg("out"),
          "y and Saved, from given statistics.");
    m.def("moments", &moments, py::arg("x"), py::arg("channel_axis"),
          "count, mean and m2 of each channel: the phase collect_stats.");
    m.def("backward_reduce", &backward_reduce, py::arg("dy"), py::arg("x"), py::arg("saved"),
          "sum of dy, and of dy * (x - mean), of each channel.");
    m.def("backward_apply", &backward_apply, py::arg("dy"), py::arg("x"), py::arg("saved"),
          py::arg("weight"), py::arg("sum_dy"), py::arg("sum_dy_xmu"), py::arg("count"),
          py::arg("out"), "dx from sums over `count` values per channel.");
}

}  // namespace bnext::bindings
