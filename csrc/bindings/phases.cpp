// The four phases by themselves, as groups call them: what is exchanged goes out between the first
// and the second of each pass, and comes back. The first phase looks at all that its pass is given,
// so that a member that cannot go on says so before the others have written anything.
#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/operands.hpp"
#include "bindings/register.hpp"
#include "bindings/running.hpp"
#include "bindings/saved.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {
namespace {

struct Collected {
    Index count;
    py::object mean, mean_low, m2;
};

Collected collected(Array& x, Index axis) {
    Inputs inputs(x, axis);
    const Description description = inputs.describe_inputs();
    const Index channels = description.problem.channels;
    const cpu::PoolArray<double> values(static_cast<std::size_t>(kRows * channels));
    const StatisticsOut rows(values.data(), channels);
    with_dtype(*x.dtype(), [&](auto type) {
        using T = decltype(type);
        const auto x_view = x.view<T>(description.strides[0]);
        without_gil(x.size(), [&] { cpu::collect_stats<T>(description.problem, x_view, rows); });
    });
    const auto vector = [&](const double* row) {
        return vector_of<double>(std::span(row, static_cast<std::size_t>(channels)));
    };
    return {description.problem.count(), vector(rows.mean()), vector(rows.mean_low()),
            vector(rows.m2())};
}

py::tuple moments(py::handle x_object, py::handle channel_axis) {
    Array x = take_data(x_object, "x");
    const Collected result = collected(x, take_axis(channel_axis, x.rank()));
    return py::make_tuple(result.count, result.mean, result.m2);
}

template <class T>
void check_forward(const Array& x, py::handle weight_object, py::handle bias_object,
                   py::handle running_mean, py::handle running_var, py::handle momentum,
                   py::handle num_batches_tracked, Index axis, py::handle out) {
    const Index channels = x.extent(axis);
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels, x.shape());
    const auto bias = take_parameter<Param<T>>(bias_object, "bias", channels, x.shape());
    const Running<Param<T>> running(running_mean, running_var, momentum, true, channels);
    const Counter counter(num_batches_tracked);
    if (out.is_none()) return;
    take_out(out, x,
             {{"x", &x.object()},
              {"weight", &weight.array},
              {"bias", &bias.array},
              {"running_mean", &running.mean.array},
              {"running_var", &running.var.array}});
}

py::tuple collect_stats(py::handle x_object, py::handle weight, py::handle bias,
                        py::handle running_mean, py::handle running_var, py::handle momentum,
                        py::handle num_batches_tracked, py::handle eps, py::handle channel_axis,
                        py::handle out) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    take_eps(eps);
    const DType dtype = *x.dtype();
    with_dtype(dtype, [&](auto type) {
        check_forward<decltype(type)>(x, weight, bias, running_mean, running_var, momentum,
                                      num_batches_tracked, axis, out);
    });
    const Collected result = collected(x, axis);
    return py::make_tuple(result.count, result.mean, result.mean_low, result.m2, name_of(dtype));
}

template <class T>
py::tuple apply_norm_typed(Array& x, Saved& saved, py::handle weight_object, py::handle bias_object,
                           py::handle out) {
    const Index channels = saved.channels();
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels);
    const auto bias = take_parameter<Param<T>>(bias_object, "bias", channels);
    const py::object original = x.object();
    Inputs inputs(x, saved.channel_axis);
    Destination y(out, x, inputs,
                  {{"x", &original}, {"weight", &weight.array}, {"bias", &bias.array}});
    const auto x_view = x.view<T>(y.description().strides[0]);
    const auto y_view = y.target().template mutable_view<T>(y.description().strides[1]);
    without_gil(x.size(), [&] {
        cpu::apply_norm<T>(y.description().problem, x_view, y_view, saved.rows(), saved.eps,
                           {weight.data, bias.data});
    });
    return py::make_tuple(y.result(), std::move(saved));
}

py::tuple apply_norm(py::handle x_object, Index count, py::handle mean, py::handle mean_low,
                     py::handle m2, py::handle weight, py::handle bias, py::handle eps,
                     py::handle channel_axis, py::handle out) {
    Array x = take_data(x_object, "x");
    const Index axis = take_axis(channel_axis, x.rank());
    Saved saved(x.strided(), axis, take_eps(eps));
    const auto take = [&](py::handle row, const char* name, Row which) {
        take_statistics(row, name, DType::float64, DType::float64, saved.row(which));
    };
    take(mean, "mean", Row::mean);
    if (mean_low.is_none()) {
        std::ranges::fill(saved.row(Row::mean_low), 0.0);
    } else {
        take(mean_low, "mean_low", Row::mean_low);
    }
    take(m2, "m2", Row::m2);
    saved.count = count;
    saved.fingerprint = fingerprint_of(x.strided());
    const double n = static_cast<double>(std::max<Index>(count, 1));
    std::ranges::transform(saved.row(Row::m2), saved.rows().var(),
                           [=](double each) { return each / n; });
    return with_dtype(*x.dtype(), [&](auto type) {
        return apply_norm_typed<decltype(type)>(x, saved, weight, bias, out);
    });
}

void move_running(py::handle saved_object, py::handle running_mean, py::handle running_var,
                  py::handle momentum, py::handle num_batches_tracked, bool bessel) {
    const Saved& saved = take_saved(saved_object);
    const Counter counter(num_batches_tracked);
    with_dtype(saved.dtype, [&](auto type) {
        const Running<Param<decltype(type)>> running(running_mean, running_var, momentum, bessel,
                                                     saved.channels());
        running.update(saved);
    });
    counter.increment();
}

template <class T>
void check_backward(const Array& dy, const Array& x, Index axis, py::handle weight_object,
                    py::handle out) {
    const auto weight = take_parameter<Param<T>>(weight_object, "weight", x.extent(axis));
    if (out.is_none()) return;
    take_out(out, x, {{"dy", &dy.object()}, {"x", &x.object()}, {"weight", &weight.array}});
}

py::tuple backward_reduce(py::handle dy_object, py::handle x_object, py::handle saved_object,
                          py::handle weight, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x.strided());
    Array dy = take_like(dy_object, "dy", x);
    const std::size_t size = static_cast<std::size_t>(saved.channels());
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    with_dtype(*x.dtype(), [&](auto type) {
        using T = decltype(type);
        check_backward<T>(dy, x, saved.channel_axis, weight, out);
        Inputs inputs(x, &dy, saved.channel_axis);
        const Description description = inputs.describe_inputs();
        const auto x_view = x.view<T>(description.strides[0]);
        const auto dy_view = dy.view<T>(description.strides[1]);
        without_gil(x.size(), [&] {
            cpu::backward_reduce<T>(description.problem, dy_view, x_view, saved.rows(),
                                    sum_dy.data(), sum_dy_xmu.data());
        });
    });
    return py::make_tuple(vector_of<double>(sum_dy), vector_of<double>(sum_dy_xmu));
}

py::object backward_apply(py::handle dy_object, py::handle x_object, py::handle saved_object,
                          py::handle weight_object, py::handle sum_dy_object,
                          py::handle sum_dy_xmu_object, py::handle count_object, py::handle out) {
    const Saved& saved = take_saved(saved_object);
    Array x = take_data(x_object, "x");
    saved.check_input(x.strided());
    Array dy = take_like(dy_object, "dy", x);
    const Index axis = saved.channel_axis;
    const Index channels = x.extent(axis);
    const std::size_t size = static_cast<std::size_t>(saved.channels());
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    take_statistics(sum_dy_object, "sum_dy", DType::float64, DType::float64, sum_dy);
    take_statistics(sum_dy_xmu_object, "sum_dy_xmu", DType::float64, DType::float64, sum_dy_xmu);
    const double count = take_real(count_object, "count");
    const py::object original_dy = dy.object();
    const py::object original_x = x.object();
    return with_dtype(*x.dtype(), [&](auto type) -> py::object {
        using T = decltype(type);
        const auto weight = take_parameter<Param<T>>(weight_object, "weight", channels);
        Inputs inputs(x, &dy, axis);
        Destination dx(out, x, inputs,
                       {{"dy", &original_dy}, {"x", &original_x}, {"weight", &weight.array}});
        const auto& strides = dx.description().strides;
        const auto x_view = x.view<T>(strides[0]);
        const auto dy_view = dy.view<T>(strides[1]);
        const auto dx_view = dx.target().template mutable_view<T>(strides[2]);
        without_gil(x.size(), [&] {
            cpu::backward_apply<T>(dx.description().problem, dy_view, x_view, dx_view, saved.rows(),
                                   weight.data, sum_dy.data(), sum_dy_xmu.data(), count);
        });
        return dx.result();
    });
}

// (On the CPU they are NumPy's, whatever the weight is.)
py::tuple parameter_gradients(py::handle saved_object, py::handle, py::handle sum_dy_object,
                              py::handle sum_dy_xmu_object) {
    const Saved& saved = take_saved(saved_object);
    const std::size_t size = static_cast<std::size_t>(saved.channels());
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    take_statistics(sum_dy_object, "sum_dy", DType::float64, DType::float64, sum_dy);
    take_statistics(sum_dy_xmu_object, "sum_dy_xmu", DType::float64, DType::float64, sum_dy_xmu);
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        return py::make_tuple(vector_of<P>(sum_dy_xmu, saved.rows().rstd()), vector_of<P>(sum_dy));
    });
}

}  // namespace

void register_phases(py::module_& m) {
    m.def("moments", &moments, py::arg("x"), py::arg("channel_axis"),
          "count, mean and m2 of each channel.");
    m.def("collect_stats", &collect_stats, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"),
          py::arg("num_batches_tracked"), py::arg("eps"), py::arg("channel_axis"), py::arg("out"),
          "count, mean, mean_low and m2, and the name of the dtype, after a look at all that "
          "`forward` takes.");
    m.def("apply_norm", &apply_norm, py::arg("x"), py::arg("count"), py::arg("mean"),
          py::arg("mean_low"), py::arg("m2"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
          py::arg("channel_axis"), py::arg("out"),
          "y and Saved, from Moments of a batch that x is a part of. No mean_low: 0.");
    m.def("move_running", &move_running, py::arg("saved"), py::arg("running_mean"),
          py::arg("running_var"), py::arg("momentum"), py::arg("num_batches_tracked"),
          py::arg("bessel") = true,
          "Updates running statistics by those of a batch, as `forward` does.");
    m.def("backward_reduce", &backward_reduce, py::arg("dy"), py::arg("x"), py::arg("saved"),
          py::arg("weight") = py::none(), py::arg("out") = py::none(),
          "sum of dy, and of dy * (x - mean), of each channel, after a look at all that "
          "`backward` takes.");
    m.def("backward_apply", &backward_apply, py::arg("dy"), py::arg("x"), py::arg("saved"),
          py::arg("weight"), py::arg("sum_dy"), py::arg("sum_dy_xmu"), py::arg("count"),
          py::arg("out"), "dx from sums over `count` values per channel.");
    m.def("parameter_gradients", &parameter_gradients, py::arg("saved"), py::arg("weight"),
          py::arg("sum_dy"), py::arg("sum_dy_xmu"), "dweight, dbias from such sums.");
}

}  // namespace bnext::bindings
