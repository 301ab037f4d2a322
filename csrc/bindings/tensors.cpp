// The operations over the tensors of a library that hands out DLPack's table of C functions: no
// interpreter and no NumPy array between a tensor and its memory. What a layer of such a library
// costs besides the kernels is Python, and between other layers, which leave nothing of it in the
// processor's caches, several times what it costs when it is repeated.
//
// Only what is plain is taken: tensors of the very types that were named, on the CPU, dense, whose
// memory holds their values. For everything else a call returns None and has changed nothing; the
// caller has longer ways.
#include <cmath>

#include "bindings/constants.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "bindings/running.hpp"
#include "bindings/tensor_values.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/reorder.hpp"

namespace bnext::bindings {
namespace {

using namespace tensors;

// Memory that an operation writes: a tensor of the library's, or a result of bnext's.
struct Output {
    OwnedResult own;
    py::object tensor;
    void* data;
};

template <class T>
cpu::View<T> view_of(const Output& output, const Strides& strides) {
    return {static_cast<T*>(output.data), strides};
}

class TensorCalls {
public:
    // `type`, whose table it is, a subclass that is as plain, and the library's `empty_like`.
    TensorCalls(const py::type& type, const py::type& other, py::object empty_like)
        : reader_(type, other, dlpack::kCPU), empty_like_(std::move(empty_like)) {}

    py::object forward(py::handle x_object, py::handle weight, py::handle bias,
                       py::handle running_mean, py::handle running_var, double momentum,
                       py::handle num_batches_tracked, double eps) const {
        TensorView x;
        if (!reader_.take_data(x_object, x) || x.size <= x.shape()[kChannelAxis] ||
            !std::isfinite(momentum) || !is_eps(eps)) {
            return py::none();
        }
        return with_dtype(x.dtype, [&](auto type) {
            return forward_typed<decltype(type)>(x, weight, bias, running_mean, running_var,
                                                 momentum, num_batches_tracked, eps);
        });
    }

    py::object statistics(py::handle x_object, py::handle weight, py::handle bias,
                          double eps) const {
        TensorView x;
        if (!reader_.take_data(x_object, x) || !is_eps(eps)) return py::none();
        return with_dtype(x.dtype, [&](auto type) {
            return statistics_typed<decltype(type)>(x, weight, bias, eps);
        });
    }

    py::object normalize_by_running(py::handle x_object, py::handle mean, py::handle var,
                                    py::handle weight, py::handle bias, double eps) const {
        return normalize(x_object, mean, var, weight, bias, eps, true);
    }

    py::object evaluate(py::handle x_object, py::handle mean, py::handle var, py::handle weight,
                        py::handle bias, double eps) const {
        return normalize(x_object, mean, var, weight, bias, eps, false);
    }

    py::object backward(py::handle dy_object, py::handle x_object, py::handle saved_object,
                        py::handle weight) const {
        const Saved& saved = take_saved(saved_object);
        TensorView x, dy;
        if (!reader_.take_data(x_object, x) || !reader_.take_data(dy_object, dy) ||
            !are_alike(dy, x)) {
            return py::none();
        }
        saved.check_input(strided(x));
        return backward_alike(dy, x, saved, weight);
    }

    py::object backward_by_rows(py::handle dy_object, py::handle x_object, py::handle rows_object,
                                py::handle weight) const {
        TensorView x, dy, rows;
        if (!reader_.take_data(x_object, x) || !reader_.take_data(dy_object, dy) ||
            !are_alike(dy, x) || !reader_.take_data(rows_object, rows) ||
            rows.dtype != DType::float64 || rows.order != Order::c || rows.rank() != 2 ||
            rows.shape()[0] != kRows || rows.shape()[1] != x.shape()[kChannelAxis]) {
            return py::none();
        }
        Saved saved(strided(x), kChannelAxis, 0.0);
        saved.take({static_cast<const double*>(rows.data()), static_cast<std::size_t>(rows.size)});
        return backward_alike(dy, x, saved, weight);
    }

    py::object backward_constant(py::handle dy_object, py::handle saved_object,
                                 py::handle weight) const {
        const Saved& saved = take_saved(saved_object);
        TensorView dy;
        if (saved.batch_statistics || !reader_.take_data(dy_object, dy) ||
            dy.dtype != saved.dtype || !std::ranges::equal(dy.shape(), saved.shape) ||
            saved.channel_axis != kChannelAxis) {
            return py::none();
        }
        return with_dtype(dy.dtype, [&](auto type) {
            return backward_constant_typed<decltype(type)>(dy, saved, weight);
        });
    }

private:
    static bool is_eps(double eps) { return eps >= 0 && std::isfinite(eps); }

    py::object normalize(py::handle x_object, py::handle mean, py::handle var, py::handle weight,
                         py::handle bias, double eps, bool keeps) const {
        TensorView x;
        if (!reader_.take_data(x_object, x) || !is_eps(eps)) return py::none();
        return with_dtype(x.dtype, [&](auto type) {
            return normalize_typed<decltype(type)>(x_object, x, mean, var, weight, bias, eps,
                                                   keeps);
        });
    }

    py::object backward_alike(TensorView& dy, const TensorView& x, const Saved& saved,
                              py::handle weight) const {
        const OwnedResult reordered = dy.order == x.order ? nullptr : in_order_of(x, dy);
        if (reordered) dy.tensor = reordered->managed.tensor;
        return with_dtype(x.dtype, [&](auto type) {
            return backward_typed<decltype(type)>(dy, x, saved, weight);
        });
    }

    template <class T>
    T* take_vector(py::handle object, Index channels) const {
        return static_cast<T*>(reader_.take_vector(object, channels, DTypeOf<T>::value));
    }

    // What None leaves null; false: it is another.
    template <class T>
    bool take_parameter(py::handle object, Index channels, const T*& values) const {
        values = object.is_none() ? nullptr : take_vector<T>(object, channels);
        return object.is_none() || values != nullptr;
    }

    template <class T>
    bool take_running(py::handle mean, py::handle var, double momentum, Index channels,
                      Running<T>& running) const {
        if (mean.is_none() && var.is_none()) return true;
        running.given = true;
        running.momentum = momentum;
        running.mean = {take_vector<T>(mean, channels), 1,
                        py::reinterpret_borrow<py::object>(mean)};
        running.var = {take_vector<T>(var, channels), 1, py::reinterpret_borrow<py::object>(var)};
        return running.mean.data != nullptr && running.var.data != nullptr;
    }

    // What None leaves null; false: it is another.
    bool take_counter(py::handle object, std::int64_t*& value) const {
        value = object.is_none() ? nullptr : reader_.take_counter(object);
        return object.is_none() || value != nullptr;
    }

    // A copy of `a` with the strides of x, which has the other order.
    static OwnedResult in_order_of(const TensorView& x, const TensorView& a) {
        OwnedResult copy = like(x);
        const Index channels = x.shape()[kChannelAxis];
        const Index planes = x.shape()[0], plane = x.size / (planes * channels);
        const bool spreads = a.order == Order::c;
        without_gil(x.size, [&] {
            cpu::transpose(a.data(), copy->managed.tensor.data, size_of(x.dtype), planes,
                           spreads ? channels : plane, spreads ? plane : channels);
        });
        return copy;
    }

    static Output pooled_like(const TensorView& x) {
        OwnedResult own = like(x);
        void* data = own->managed.tensor.data;
        return {std::move(own), {}, data};
    }

    // A tensor of the library's own memory, like x, which `object` is; ours, where what the library
    // makes is not plain.
    Output library_like(py::handle object, const TensorView& x) const {
        py::object tensor = call(empty_like_, object);
        TensorView view;
        if (reader_.take_new_data(tensor, view) && view.dtype == x.dtype &&
            std::ranges::equal(view.shape(), x.shape()) && view.order == x.order) {
            return {nullptr, std::move(tensor), view.data()};
        }
        return pooled_like(x);
    }

    py::object given(Output output) const {
        return output.own ? given(std::move(output.own)) : std::move(output.tensor);
    }

    // The library's tensor over a result.
    py::object given(OwnedResult result) const {
        void* object = nullptr;
        if (reader_.table().import_owned(&result.release()->managed, &object) != 0) {
            throw py::error_already_set();
        }
        return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
    }

    template <class T>
    py::object forward_typed(const TensorView& x, py::handle weight_object, py::handle bias_object,
                             py::handle running_mean, py::handle running_var, double momentum,
                             py::handle num_batches_tracked, double eps) const {
        const Index channels = x.shape()[kChannelAxis];
        const Param<T>*weight, *bias;
        Running<Param<T>> running;
        std::int64_t* counter;
        if (!take_parameter(weight_object, channels, weight) ||
            !take_parameter(bias_object, channels, bias) ||
            !take_running(running_mean, running_var, momentum, channels, running) ||
            !take_counter(num_batches_tracked, counter)) {
            return py::none();
        }
        Saved saved(strided(x), kChannelAxis, eps);
        saved.fingerprint = fingerprint_of(strided(x));
        const Description description = described(x, 2);
        const Problem& problem = description.problem;
        saved.count = problem.count();
        OwnedResult y = like(x);
        const auto x_view = view_of<T>(x, description.strides[0]);
        const auto y_view = view_of<T>(y, description.strides[1]);
        without_gil(problem.elements(), [&] {
            cpu::forward<T>(problem, x_view, y_view, {weight, bias}, eps, saved.rows());
        });
        py::object result = given(std::move(y));
        running.update(saved);
        if (counter != nullptr) ++*counter;
        return py::make_tuple(std::move(result), std::move(saved));
    }

    template <class T>
    py::object statistics_typed(const TensorView& x, py::handle weight_object,
                                py::handle bias_object, double eps) const {
        const Index channels = x.shape()[kChannelAxis];
        const Param<T>*weight, *bias;
        if (!take_parameter(weight_object, channels, weight) ||
            !take_parameter(bias_object, channels, bias)) {
            return py::none();
        }
        const Description description = described(x, 1);
        OwnedResult rows = rows_result<double>(kRows, channels);
        OwnedResult coefficients = rows_result<Compute<T>>(4, channels);
        const auto x_view = view_of<T>(x, description.strides[0]);
        const StatisticsOut out(static_cast<double*>(rows->managed.tensor.data), channels);
        without_gil(description.problem.elements(), [&] {
            cpu::statistics<T>(description.problem, x_view, eps, out);
            cpu::pointwise_coefficients<T>(
                channels, out, {weight, bias},
                static_cast<Compute<T>*>(coefficients->managed.tensor.data));
        });
        return py::make_tuple(given(std::move(rows)), given(std::move(coefficients)));
    }

    template <class T>
    py::object normalize_typed(py::handle x_object, const TensorView& x, py::handle mean_object,
                               py::handle var_object, py::handle weight_object,
                               py::handle bias_object, double eps, bool keeps) const {
        const Index channels = x.shape()[kChannelAxis];
        const Param<T>*weight, *bias;
        const Param<T>* mean = take_vector<Param<T>>(mean_object, channels);
        const Param<T>* var = take_vector<Param<T>>(var_object, channels);
        if (mean == nullptr || var == nullptr || !take_parameter(weight_object, channels, weight) ||
            !take_parameter(bias_object, channels, bias)) {
            return py::none();
        }
        Saved saved(strided(x), kChannelAxis, eps);
        saved.has_given_statistics();
        std::copy_n(mean, channels, saved.rows().mean());
        std::copy_n(var, channels, saved.rows().var());
        if (keeps) saved.fingerprint = fingerprint_of(strided(x));
        const Description description = described(x, 2);
        Output y = keeps ? pooled_like(x) : library_like(x_object, x);
        const auto x_view = view_of<T>(x, description.strides[0]);
        const auto y_view = view_of<T>(y, description.strides[1]);
        without_gil(description.problem.elements(), [&] {
            cpu::apply_norm<T>(description.problem, x_view, y_view, saved.rows(), eps,
                               {weight, bias});
        });
        if (!keeps) return given(std::move(y));
        return py::make_tuple(given(std::move(y)), std::move(saved));
    }

    template <class T>
    py::object backward_typed(const TensorView& dy, const TensorView& x, const Saved& saved,
                              py::handle weight_object) const {
        const Param<T>* weight;
        if (!take_parameter(weight_object, saved.channels(), weight)) return py::none();
        const Description description = described(x, 3);
        const auto& strides = description.strides;
        OwnedResult dx = like(x);
        const auto x_view = view_of<T>(x, strides[0]);
        const auto dy_view = view_of<T>(dy, strides[1]);
        const auto dx_view = view_of<T>(dx, strides[2]);
        const auto size = static_cast<std::size_t>(saved.channels());
        const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
        without_gil(description.problem.elements(), [&] {
            if (saved.batch_statistics) {
                cpu::backward<T>(description.problem, dy_view, x_view, dx_view, saved.rows(),
                                 weight, sum_dy.data(), sum_dy_xmu.data());
            } else {
                cpu::backward_reduce<T>(description.problem, dy_view, x_view, saved.rows(),
                                        sum_dy.data(), sum_dy_xmu.data());
                scale_gradient<T>(description.problem, dy_view, dx_view, saved, weight);
            }
        });
        return py::make_tuple(given(std::move(dx)),
                              given(vector_result<Param<T>>(sum_dy_xmu, saved.rows().rstd())),
                              given(vector_result<Param<T>>(sum_dy)));
    }

    template <class T>
    py::object backward_constant_typed(const TensorView& dy, const Saved& saved,
                                       py::handle weight_object) const {
        const Param<T>* weight;
        if (!take_parameter(weight_object, saved.channels(), weight)) return py::none();
        const Description description = described(dy, 2);
        OwnedResult dx = like(dy);
        const auto dy_view = view_of<T>(dy, description.strides[0]);
        const auto dx_view = view_of<T>(dx, description.strides[1]);
        without_gil(description.problem.elements(), [&] {
            scale_gradient<T>(description.problem, dy_view, dx_view, saved, weight);
        });
        return given(std::move(dx));
    }

    TensorReader reader_;
    py::object empty_like_;
};

}  // namespace

void register_tensors(py::module_& m) {
    py::class_<TensorCalls>(m, "TensorCalls",
                            "The operations over plain tensors of a library, on the CPU. Each\n"
                            "returns None, and has changed nothing, where a tensor is not plain.")
        .def(py::init<const py::type&, const py::type&, py::object>(), py::arg("type"),
             py::arg("other"), py::arg("empty_like"))
        .def("forward", &TensorCalls::forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"),
             py::arg("num_batches_tracked"), py::arg("eps"), "y and Saved.")
        .def("statistics", &TensorCalls::statistics, py::arg("x"), py::arg("weight"),
             py::arg("bias"), py::arg("eps"),
             "Rows of mean, m2, variance, rstd and mean_low; and of unit, center, scale and shift, "
             "of\n"
             "y = (x * unit - center) * scale + shift.")
        .def("normalize_by_running", &TensorCalls::normalize_by_running, py::arg("x"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), "y and Saved.")
        .def("evaluate", &TensorCalls::evaluate, py::arg("x"), py::arg("running_mean"),
             py::arg("running_var"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
             "y alone, for no backward pass.")
        .def("backward", &TensorCalls::backward, py::arg("dy"), py::arg("x"), py::arg("saved"),
             py::arg("weight"), "dx, dweight, dbias.")
        .def("backward_by_rows", &TensorCalls::backward_by_rows, py::arg("dy"), py::arg("x"),
             py::arg("rows"), py::arg("weight"), "The same, by the rows of `statistics`.")
        .def("backward_constant", &TensorCalls::backward_constant, py::arg("dy"), py::arg("saved"),
             py::arg("weight"), "dx alone, where the statistics were given.");
}

}  // namespace bnext::bindings
