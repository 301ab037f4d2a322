// The operations over plain tensors of a library with DLPack's table of C functions: of the very
// types that were named, on the CPU, dense, with channels at axis 1. A call returns None, and has
// changed nothing, where a tensor is not plain or an argument is wrong: the caller has longer ways,
// whose errors name the argument. Nothing here asks what autograd would have to record.
#include "bindings/bodies.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

using intake::Library;

// Whether check() accepts the call. Throws where x is not what forward has seen.
bool passes(const Call& call) {
    try {
        check(call);
        return true;
    } catch (const Error& error) {
        if (error.kind() == Error::Kind::saved) throw;
        return false;
    }
}

class TensorCalls {
public:
    // `type`, whose table it is, a subclass that is as plain, and the library's `empty_like`.
    TensorCalls(const py::type& type, const py::type& other, py::object empty_like)
        : empty_like_(std::move(empty_like)) {
        library_.reader.emplace(type, other, intake::dlpack::kCPU);
    }

    py::object forward(py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                       py::handle running_var, double momentum, py::handle num_batches_tracked,
                       double eps) const {
        Intake call(Function::forward, library_);
        if (!take(call, x, weight, bias, eps) ||
            !call.read_plain(Role::running_mean, running_mean) ||
            !call.read_plain(Role::running_var, running_var) ||
            !call.count_plain(num_batches_tracked)) {
            return py::none();
        }
        call.call.momentum = momentum;
        if (!passes(call.call)) return py::none();
        return with_dtype(call[Role::x].dtype(), [&](auto type) {
            return forward_body<decltype(type)>(call, Results(&library_), true);
        });
    }

    py::object statistics(py::handle x, py::handle weight, py::handle bias, double eps) const {
        Intake call(Function::collect_stats, library_);
        if (!take(call, x, weight, bias, eps) || !passes(call.call)) return py::none();
        return with_dtype(call[Role::x].dtype(),
                          [&](auto type) { return statistics_body<decltype(type)>(call); });
    }

    py::object normalize_by_running(py::handle x, py::handle mean, py::handle var,
                                    py::handle weight, py::handle bias, double eps) const {
        Intake call(Function::normalize_by_running, library_);
        if (!take_given(call, x, mean, var, weight, bias, eps)) return py::none();
        Saved saved = given_statistics(call, Role::running_mean, Role::running_var);
        saved.fingerprint = fingerprint_of(call[Role::x]);
        const py::object y = apply_norm(call, Results(&library_), saved);
        return pair_of(y, py::cast(std::move(saved)));
    }

    py::object evaluate(py::handle x, py::handle mean, py::handle var, py::handle weight,
                        py::handle bias, double eps) const {
        Intake call(Function::normalize_by_running, library_);
        if (!take_given(call, x, mean, var, weight, bias, eps)) return py::none();
        Saved saved = given_statistics(call, Role::running_mean, Role::running_var);
        return apply_norm(call, Results(&library_, empty_like_, x), saved);
    }

    py::object backward(py::handle dy, py::handle x, py::handle saved_object,
                        py::handle weight) const {
        const Saved& saved = take_saved(saved_object);
        return backward_by(dy, x, saved, saved.facts(), weight);
    }

    py::object backward_by_rows(py::handle dy, py::handle x, py::handle rows,
                                py::handle weight) const {
        Intake call(Function::restored, library_);
        if (!take(call, x, py::none(), py::none(), 0.0) || !call.read_plain(Role::rows, rows) ||
            !call.call.has(Role::rows) || !passes(call.call)) {
            return py::none();
        }
        Saved saved(call.call);
        saved.take_rows(call[Role::rows]);
        FromForward facts = saved.facts();
        facts.fingerprint = nullptr;
        return backward_by(dy, x, saved, facts, weight);
    }

    py::object backward_constant(py::handle dy, py::handle saved_object, py::handle weight) const {
        const Saved& saved = take_saved(saved_object);
        const FromForward facts = saved.facts();
        Intake call(Function::backward_constant, library_);
        call.call.from_forward = &facts;
        if (facts.channel_axis != 1 || !call.lead_plain(Role::dy, dy) ||
            !call.read_plain(Role::weight, weight) || !passes(call.call)) {
            return py::none();
        }
        return with_dtype(saved.dtype, [&](auto type) {
            return backward_constant_body<decltype(type)>(call, Results(&library_), saved);
        });
    }

private:
    static bool take(Intake& call, py::handle x, py::handle weight, py::handle bias, double eps) {
        call.call.channel_axis = 1;
        call.call.eps = eps;
        return call.lead_plain(Role::x, x) && call.read_plain(Role::weight, weight) &&
               call.read_plain(Role::bias, bias);
    }

    static bool take_given(Intake& call, py::handle x, py::handle mean, py::handle var,
                           py::handle weight, py::handle bias, double eps) {
        return take(call, x, weight, bias, eps) && call.read_plain(Role::running_mean, mean) &&
               call.read_plain(Role::running_var, var) && passes(call.call);
    }

    static py::object apply_norm(Intake& call, const Results& results, Saved& saved) {
        return with_dtype(call[Role::x].dtype(), [&](auto type) {
            return apply_norm_body<decltype(type)>(call, results, saved);
        });
    }

    py::object backward_by(py::handle dy, py::handle x, const Saved& saved,
                           const FromForward& facts, py::handle weight) const {
        Intake call(Function::backward, library_);
        call.call.from_forward = &facts;
        if (!call.lead_plain(Role::x, x) || !call.read_plain(Role::dy, dy) ||
            !call.read_plain(Role::weight, weight) || !passes(call.call)) {
            return py::none();
        }
        const Results results(&library_);
        return with_dtype(saved.dtype, [&](auto type) {
            return backward_body<decltype(type)>(call, results, results, saved);
        });
    }

    template <class T>
    py::object statistics_body(Intake& call) const {
        const Results results(&library_);
        Inputs inputs(call);
        const Description description = inputs.describe_inputs();
        const Index channels = description.problem.channels;
        const std::array<Index, 2> shape{kRows, channels}, of_four{4, channels};
        const std::array<Index, 2> strides{channels, 1};
        Fresh rows = results.make(DType::float64, shape, strides);
        Fresh coefficients = results.make(DTypeOf<Compute<T>>::value, of_four, strides);
        const auto affine = affine_of<T>(call);
        const StatisticsOut out(static_cast<double*>(rows.data), channels);
        without_gil(description.problem.elements(), [&] {
            cpu::statistics<T>(description.problem,
                               view_of<const T>(inputs.x(), description.strides[0]), call.call.eps,
                               out);
            cpu::pointwise_coefficients<T>(channels, out, affine,
                                           static_cast<Compute<T>*>(coefficients.data));
        });
        return pair_of(results.give(std::move(rows)), results.give(std::move(coefficients)));
    }

    Library library_;
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
