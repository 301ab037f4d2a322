// The operations as Python calls them. Each function has three parts, in this order: take and check
// every Python object; release the GIL and compute; build the result. Nothing is written, and no
// state changes, before the checks are through.
#include <pybind11/stl.h>

#include "bindings/arrays.hpp"
#include "bindings/constants.hpp"
#include "bindings/gil.hpp"
#include "bindings/operands.hpp"
#include "bindings/register.hpp"
#include "bindings/running.hpp"
#include "bindings/saved.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {
namespace {

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

template <class T>
py::tuple forward_typed(Array& x, py::handle weight_object, py::handle bias_object,
                        py::handle running_mean, py::handle running_var, py::handle momentum,
                        py::handle num_batches_tracked, double eps, Index axis, py::handle out,
                        bool bessel) {
    const Index channels = x.extent(axis);
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels, x.shape());
    const auto bias = take_parameter<Param<T>>(bias_object, "bias", channels, x.shape());
    const Running<Param<T>> running(running_mean, running_var, momentum, bessel, channels);
    const Counter counter(num_batches_tracked);
    check_more_than_one(x, axis);
    const py::object original = x.object();
    Saved saved(x.strided(), axis, eps);
    saved.fingerprint = fingerprint_of(x.strided());
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
    without_gil(x.size(), [&] {
        cpu::forward<T>(problem, x_view, y_view, {weight.data, bias.data}, eps, saved.rows());
    });
    py::object result = y.result();
    running.update(saved);
    counter.increment();
    return py::make_tuple(std::move(result), std::move(saved));
}

py::tuple forward(py::handle x_object, py::handle weight, py::handle bias, py::handle running_mean,
                  py::handle running_var, py::handle momentum, py::handle num_batches_tracked,
                  py::handle eps_object, py::handle channel_axis, py::handle out, bool bessel) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    const double eps = take_eps(eps_object);
    return with_dtype(*x.dtype(), [&](auto type) {
        return forward_typed<decltype(type)>(x, weight, bias, running_mean, running_var, momentum,
                                             num_batches_tracked, eps, axis, out, bessel);
    });
}

// Statistics that are given: what errors call them, and which dtype they may have besides the
// parameters'.
struct Given {
    const char* mean;
    const char* var;
    DType other;
};

template <class T>
py::tuple normalize_typed(Array& x, const Given& given, py::handle mean_object,
                          py::handle var_object, py::handle weight_object, py::handle bias_object,
                          double eps, Index axis, py::handle out) {
    const Index channels = x.extent(axis);
    Saved saved(x.strided(), axis, eps);
    saved.has_given_statistics();
    const DType dtype = param_dtype(*x.dtype());
    const py::object mean = take_statistics(mean_object, given.mean, dtype, given.other,
                                            saved.row(Row::mean), x.shape());
    const py::object var =
        take_statistics(var_object, given.var, dtype, given.other, saved.row(Row::var), x.shape());
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels, x.shape());
    const auto bias = take_parameter<Param<T>>(bias_object, "bias", channels, x.shape());
    const py::object original = x.object();
    saved.fingerprint = fingerprint_of(x.strided());
    Inputs inputs(x, axis);
    Destination y(out, x, inputs,
                  {{"x", &original},
                   {given.mean, &mean},
                   {given.var, &var},
                   {"weight", &weight.array},
                   {"bias", &bias.array}});
    const Problem& problem = y.description().problem;
    const auto x_view = x.view<T>(y.description().strides[0]);
    const auto y_view = y.target().template mutable_view<T>(y.description().strides[1]);
    without_gil(x.size(), [&] {
        cpu::apply_norm<T>(problem, x_view, y_view, saved.rows(), eps, {weight.data, bias.data});
    });
    py::object result = y.result();
    return py::make_tuple(std::move(result), std::move(saved));
}

py::tuple normalize_by(py::handle x_object, const char* mean_name, py::handle mean,
                       const char* var_name, py::handle var, bool or_float64, py::handle weight,
                       py::handle bias, py::handle eps_object, py::handle channel_axis,
                       py::handle out) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    const double eps = take_eps(eps_object);
    const Given given{mean_name, var_name, or_float64 ? DType::float64 : param_dtype(*x.dtype())};
    return with_dtype(*x.dtype(), [&](auto type) {
        return normalize_typed<decltype(type)>(x, given, mean, var, weight, bias, eps, axis, out);
    });
}

py::tuple normalize(py::handle x, py::handle mean, py::handle var, py::handle weight,
                    py::handle bias, py::handle eps, py::handle channel_axis, py::handle out) {
    return normalize_by(x, "mean", mean, "var", var, true, weight, bias, eps, channel_axis, out);
}

py::tuple normalize_by_running(py::handle x, py::handle mean, py::handle var, py::handle weight,
                               py::handle bias, py::handle eps, py::handle channel_axis,
                               py::handle out) {
    return normalize_by(x, "running_mean", mean, "running_var", var, false, weight, bias, eps,
                        channel_axis, out);
}

template <class T>
py::tuple backward_typed(Array& dy, Array& x, const Saved& saved, py::handle weight_object,
                         py::handle out) {
    const Index axis = saved.channel_axis;
    const Index channels = x.extent(axis);
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels);
    const py::object original_dy = dy.object();
    const py::object original_x = x.object();
    Inputs inputs(x, &dy, axis);
    Destination dx(out, x, inputs,
                   {{"dy", &original_dy}, {"x", &original_x}, {"weight", &weight.array}});
    const Problem& problem = dx.description().problem;
    const auto& strides = dx.description().strides;
    const auto x_view = x.view<T>(strides[0]);
    const auto dy_view = dy.view<T>(strides[1]);
    const auto dx_view = dx.target().template mutable_view<T>(strides[2]);
    const auto size = static_cast<std::size_t>(channels);
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    without_gil(x.size(), [&] {
        if (saved.batch_statistics) {
            cpu::backward<T>(problem, dy_view, x_view, dx_view, saved.rows(), weight.data,
                             sum_dy.data(), sum_dy_xmu.data());
        } else {
            cpu::backward_reduce<T>(problem, dy_view, x_view, saved.rows(), sum_dy.data(),
                                    sum_dy_xmu.data());
            scale_gradient<T>(problem, dy_view, dx_view, saved, weight.data);
        }
    });
    const double* rstd = problem.count() == 0 ? nullptr : saved.rows().rstd();
    return py::make_tuple(dx.result(), vector_of<Param<T>>(sum_dy_xmu, rstd),
                          vector_of<Param<T>>(sum_dy));
}

py::tuple backward(py::handle dy_object, py::handle x_object, py::handle saved_object,
                   py::handle weight, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x.strided());
    Array dy = take_like(dy_object, "dy", x);
    return with_dtype(*x.dtype(), [&](auto type) {
        return backward_typed<decltype(type)>(dy, x, saved, weight, out);
    });
}

py::object backward_constant(py::handle dy_object, py::handle saved_object,
                             py::handle weight_object, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    if (saved.batch_statistics) {
        value_error("saved: expected given statistics, which are constants, got a batch's");
    }
    Array dy = take_like(dy_object, "dy", saved.dtype, saved.shape);
    return with_dtype(saved.dtype, [&](auto type) -> py::object {
        using T = decltype(type);
        const auto weight = take_parameter<Param<T>>(weight_object, "weight", saved.channels());
        const py::object original = dy.object();
        Inputs inputs(dy, saved.channel_axis);
        Destination dx(out, dy, inputs, {{"dy", &original}, {"weight", &weight.array}});
        const auto& strides = dx.description().strides;
        const auto dy_view = dy.view<T>(strides[0]);
        const auto dx_view = dx.target().template mutable_view<T>(strides[1]);
        without_gil(dy.size(), [&] {
            scale_gradient<T>(dx.description().problem, dy_view, dx_view, saved, weight.data);
        });
        return dx.result();
    });
}

}  // namespace

void register_operations(py::module_& m) {
    m.def("as_array", &as_array, py::arg("x"), py::arg("name"),
          "numpy.asarray, with an error that names the argument.");
    m.def("is_tracer", &is_tracer, py::arg("x"), "Whether x is a tracer of JAX.");
    m.def("is_data_dtype", &is_data_dtype, py::arg("dtype"), "Whether x may be of this dtype.");
    m.def("check_eps", &take_eps, py::arg("eps"), "eps, if it is a finite number >= 0.");
    m.def("check_momentum", &take_momentum, py::arg("momentum"), "momentum, if it is finite.");
    m.def("forward", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"),
          py::arg("num_batches_tracked"), py::arg("eps"), py::arg("channel_axis"), py::arg("out"),
          py::arg("bessel") = true,
          "y and Saved, from batch statistics; updates the running ones where they are given.");
    m.def("backward", &backward, py::arg("dy"), py::arg("x"), py::arg("saved"), py::arg("weight"),
          py::arg("out"), "dx, dweight, dbias.");
    m.def("backward_constant", &backward_constant, py::arg("dy"), py::arg("saved"),
          py::arg("weight"), py::arg("out"),
          "dx alone, where the statistics were given: it needs no x.");
    m.def("normalize", &normalize, py::arg("x"), py::arg("mean"), py::arg("var"), py::arg("weight"),
          py::arg("bias"), py::arg("eps"), py::arg("channel_axis"), py::arg("out"),
          "y and Saved, from given statistics.");
    m.def("normalize_by_running", &normalize_by_running, py::arg("x"), py::arg("running_mean"),
          py::arg("running_var"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
          py::arg("channel_axis"), py::arg("out"),
          "The same, from a layer's statistics, which are of the dtype of x.");
}

}  // namespace bnext::bindings
