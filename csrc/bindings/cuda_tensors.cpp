// The operations over PyTorch's tensors on a GPU: from DLPack's table of C functions to a launch,
// with no interpreter in between.
//
// Only usual calls are taken: tensors of the very types that were named, dense, all on one device.
// For every other call, a wrong one too, the result is None, and nothing has changed: the general
// road of bnext.arrays follows, which copies, and whose errors name the argument.
#include "bindings/cuda_tensors.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

using namespace tensors;
using cuda::Operation;

// Where the channels are, and what is written instead of a new tensor.
struct Placement {
    Index channel_axis = 1;
    py::handle out = py::none();
};

struct Running {
    py::handle mean, var, momentum;
    py::handle counter = py::none();
    bool bessel = true;
};

class Calls : public CudaTensors {
public:
    using CudaTensors::CudaTensors;

    py::object forward(py::handle x_object, py::handle weight, py::handle bias,
                       const Running& running, py::handle eps, const Placement& place) const {
        Data x;
        cuda::Addresses at;
        cuda::Scalars scalars;
        Output y = by_batch(x_object, weight, bias, running, eps, place, x, at, scalars);
        if (y.data == nullptr) return py::none();
        const Output statistics = statistics_of(x);
        at.statistics = static_cast<double*>(statistics.data);
        if (statistics.data == nullptr || !launch(Operation::forward, x, at, scalars)) {
            return py::none();
        }
        return pair(y.tensor, saved(x_object, x, statistics.tensor, scalars.eps, x.count()));
    }

    // y alone: the kernel has its statistics in memory that nobody else sees.
    py::object forward_only(py::handle x_object, py::handle weight, py::handle bias,
                            const Running& running, py::handle eps) const {
        Data x;
        cuda::Addresses at;
        cuda::Scalars scalars;
        Output y = by_batch(x_object, weight, bias, running, eps, {}, x, at, scalars);
        Workspace statistics;
        if (y.data == nullptr ||
            !allocate(statistics, x, kRows * x.channels() * Index{sizeof(double)})) {
            return py::none();
        }
        at.statistics = static_cast<double*>(statistics.data());
        if (!launch(Operation::forward, x, at, scalars)) return py::none();
        return std::move(y.tensor);
    }

    // y alone, by statistics of the parameters' dtype, or if they may be `wide` of float64.
    py::object normalize(py::handle x_object, py::handle mean, py::handle var, py::handle weight,
                         py::handle bias, py::handle eps, bool wide, const Placement& place) const {
        Data x;
        cuda::Addresses at;
        cuda::Scalars scalars;
        Output y = given(x_object, mean, var, weight, bias, eps, wide, place, x, at, scalars);
        if (y.data == nullptr || !launch(Operation::normalize, x, at, scalars)) return py::none();
        return std::move(y.tensor);
    }

    // y, and what backward needs.
    py::object normalize_and_save(py::handle x_object, py::handle mean, py::handle var,
                                  py::handle weight, py::handle bias, py::handle eps,
                                  const Placement& place) const {
        Data x;
        cuda::Addresses at;
        cuda::Scalars scalars;
        Output y = given(x_object, mean, var, weight, bias, eps, false, place, x, at, scalars);
        if (y.data == nullptr) return py::none();
        const Output statistics = statistics_of(x);
        at.statistics = static_cast<double*>(statistics.data);
        if (statistics.data == nullptr || !launch(Operation::normalize, x, at, scalars)) {
            return py::none();
        }
        return pair(y.tensor, saved(x_object, x, statistics.tensor, scalars.eps, {}));
    }

    py::object backward(py::handle dy, py::handle x_object, py::handle saved_object,
                        py::handle weight, py::handle out) const {
        Data x;
        OfForward of;
        cuda::Addresses at;
        if (!take_saved(saved_object, x_object, x, at.x, of) || !take_like(dy, x, at.dy) ||
            !take_parameter(weight, x, at.weight)) {
            return py::none();
        }
        Output dx = output_like(x_object, x, out, {at.weight}, at.dy);
        Output dweight = gradient_of(weight, x), dbias = gradient_of(weight, x);
        if (dx.data == nullptr || dweight.data == nullptr || dbias.data == nullptr) {
            return py::none();
        }
        at.dx = dx.data;
        at.dweight = dweight.data;
        at.dbias = dbias.data;
        at.statistics = of.statistics;
        cuda::Scalars scalars;
        scalars.eps = of.eps;
        const auto operation = of.by_batch ? Operation::backward : Operation::backward_fixed;
        if (!launch(operation, x, at, scalars)) return py::none();
        return py::reinterpret_steal<py::object>(
            PyTuple_Pack(3, dx.tensor.ptr(), dweight.tensor.ptr(), dbias.tensor.ptr()));
    }

    // dx where the statistics are constants: dy is normalized about 0.
    py::object backward_constant(py::handle dy_object, py::handle saved_object, py::handle weight,
                                 py::handle out) const {
        Data dy;
        OfForward of;
        cuda::Addresses at;
        if (!take_saved(saved_object, dy_object, dy, at.x, of) || of.by_batch ||
            !take_parameter(weight, dy, at.weight)) {
            return py::none();
        }
        Output dx = output_like(dy_object, dy, out, {at.weight});
        const Output zero = zeros_of(dy);
        at.y = dx.data;
        at.mean = zero.data;
        at.var = StatisticsIn(of.statistics, dy.channels()).var();
        cuda::Scalars scalars;
        scalars.eps = of.eps;
        scalars.wide_statistics = true;
        if (dx.data == nullptr || zero.data == nullptr ||
            !launch(Operation::normalize, dy, at, scalars)) {
            return py::none();
        }
        return std::move(dx.tensor);
    }

private:
    static py::object pair(const py::object& first, const py::object& second) {
        return py::reinterpret_steal<py::object>(PyTuple_Pack(2, first.ptr(), second.ptr()));
    }

    // Both running statistics, or none.
    bool take_running(const Running& running, const Data& x, cuda::Addresses& at,
                      cuda::Scalars& scalars) const {
        scalars.correction = running.bessel ? 1 : 0;
        if (!take_counter(running.counter, x, at.num_batches_tracked)) return false;
        if (running.mean.is_none() && running.var.is_none()) return true;
        const auto momentum = exact_float(running.momentum);
        if (!momentum || !std::isfinite(*momentum)) return false;
        scalars.momentum = *momentum;
        at.running_mean = take_written(running.mean, x);
        at.running_var = take_written(running.var, x);
        return at.running_mean != nullptr && at.running_var != nullptr;
    }

    // The operands of a normalization by the batch, and its result.
    Output by_batch(py::handle x_object, py::handle weight, py::handle bias, const Running& running,
                    py::handle eps, const Placement& place, Data& x, cuda::Addresses& at,
                    cuda::Scalars& scalars) const {
        if (!take_x(x_object, place.channel_axis, at.x, x) || x.count() < 2 ||
            !take_eps(eps, scalars.eps) || !take_parameter(weight, x, at.weight) ||
            !take_parameter(bias, x, at.bias) || !take_running(running, x, at, scalars)) {
            return {};
        }
        Output y = output_like(x_object, x, place.out,
                               {at.weight, at.bias, at.running_mean, at.running_var});
        at.y = y.data;
        return y;
    }

    // The operands of a normalization by given statistics, and its result.
    Output given(py::handle x_object, py::handle mean, py::handle var, py::handle weight,
                 py::handle bias, py::handle eps, bool wide, const Placement& place, Data& x,
                 cuda::Addresses& at, cuda::Scalars& scalars) const {
        if (!take_x(x_object, place.channel_axis, at.x, x) || !take_eps(eps, scalars.eps) ||
            !take_parameter(weight, x, at.weight) || !take_parameter(bias, x, at.bias)) {
            return {};
        }
        DType dtype = x.parameters();
        at.mean = take_vector(mean, x, dtype);
        if (at.mean == nullptr && wide) at.mean = take_vector(mean, x, dtype = DType::float64);
        at.var = take_vector(var, x, dtype);
        if (at.mean == nullptr || at.var == nullptr) return {};
        scalars.wide_statistics = dtype == DType::float64;
        Output y = output_like(x_object, x, place.out, {at.weight, at.bias, at.mean, at.var});
        at.y = y.data;
        return y;
    }
};

// The calls of layers, which see to autograd themselves, as functions of `_core` with `plain=True`.
class TensorCalls : public Calls {
public:
    TensorCalls(const py::object& torch, py::object saved_type, py::object problem_of)
        : Calls(torch, std::move(saved_type), std::move(problem_of), false) {}

    py::object forward(py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                       py::handle running_var, py::handle momentum, py::handle num_batches_tracked,
                       py::handle eps) const {
        return Calls::forward(x, weight, bias,
                              {running_mean, running_var, momentum, num_batches_tracked}, eps, {});
    }
    py::object forward_only(py::handle x, py::handle weight, py::handle bias,
                            py::handle running_mean, py::handle running_var, py::handle momentum,
                            py::handle num_batches_tracked, py::handle eps) const {
        return Calls::forward_only(x, weight, bias,
                                   {running_mean, running_var, momentum, num_batches_tracked}, eps);
    }
    py::object normalize_by_running(py::handle x, py::handle mean, py::handle var,
                                    py::handle weight, py::handle bias, py::handle eps) const {
        return normalize_and_save(x, mean, var, weight, bias, eps, {});
    }
    py::object evaluate(py::handle x, py::handle mean, py::handle var, py::handle weight,
                        py::handle bias, py::handle eps) const {
        return normalize(x, mean, var, weight, bias, eps, false, {});
    }
    py::object backward(py::handle dy, py::handle x, py::handle saved, py::handle weight) const {
        return Calls::backward(dy, x, saved, weight, py::none());
    }
    py::object backward_constant(py::handle dy, py::handle saved, py::handle weight) const {
        return Calls::backward_constant(dy, saved, weight, py::none());
    }
};

// The calls of functions, which record nothing and refuse what autograd would have to record.
class FunctionCalls : public Calls {
public:
    FunctionCalls(const py::object& torch, py::object saved_type, py::object problem_of)
        : Calls(torch, std::move(saved_type), std::move(problem_of), true) {}

    py::object forward(py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                       py::handle running_var, py::handle momentum, py::handle eps,
                       py::handle channel_axis, py::handle out, bool bessel) const {
        const auto place = placement(channel_axis, out);
        if (!place) return py::none();
        return Calls::forward(x, weight, bias,
                              {running_mean, running_var, momentum, py::none(), bessel}, eps,
                              *place);
    }
    py::object normalize(py::handle x, py::handle mean, py::handle var, py::handle weight,
                         py::handle bias, py::handle eps, py::handle channel_axis,
                         py::handle out) const {
        const auto place = placement(channel_axis, out);
        if (!place) return py::none();
        return Calls::normalize(x, mean, var, weight, bias, eps, true, *place);
    }
    py::object normalize_by_running(py::handle x, py::handle mean, py::handle var,
                                    py::handle weight, py::handle bias, py::handle eps,
                                    py::handle channel_axis, py::handle out) const {
        const auto place = placement(channel_axis, out);
        if (!place) return py::none();
        return normalize_and_save(x, mean, var, weight, bias, eps, *place);
    }

private:
    static std::optional<Placement> placement(py::handle channel_axis, py::handle out) {
        if (PyLong_CheckExact(channel_axis.ptr()) == 0) return {};
        int overflow = 0;
        const long long axis = PyLong_AsLongLongAndOverflow(channel_axis.ptr(), &overflow);
        if (overflow != 0) return {};
        return Placement{axis, out};
    }
};

}  // namespace

void register_cuda_tensors(py::module_& m) {
    py::class_<TensorCalls>(m, "TensorCalls", py::module_local(),
                            "The calls of layers on usual tensors of PyTorch's on a GPU. Each\n"
                            "returns None, and has changed nothing, where one is not usual.")
        .def(py::init<const py::object&, py::object, py::object>(), py::arg("torch"),
             py::arg("saved_type"), py::arg("problem_of"))
        .def("forward", &TensorCalls::forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"),
             py::arg("num_batches_tracked"), py::arg("eps"), "y and DeviceSaved.")
        .def("forward_only", &TensorCalls::forward_only, py::arg("x"), py::arg("weight"),
             py::arg("bias"), py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"),
             py::arg("num_batches_tracked"), py::arg("eps"), "y alone, for no backward pass.")
        .def("normalize_by_running", &TensorCalls::normalize_by_running, py::arg("x"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), "y and DeviceSaved.")
        .def("evaluate", &TensorCalls::evaluate, py::arg("x"), py::arg("running_mean"),
             py::arg("running_var"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
             "y alone, for no backward pass.")
        .def("backward", &TensorCalls::backward, py::arg("dy"), py::arg("x"), py::arg("saved"),
             py::arg("weight"), "dx, dweight, dbias.")
        .def("backward_constant", &TensorCalls::backward_constant, py::arg("dy"), py::arg("saved"),
             py::arg("weight"), "dx alone, where the statistics were given.");
    py::class_<FunctionCalls>(
        m, "FunctionCalls", py::module_local(),
        "The same for functions, which refuse what autograd would have to\n"
        "record; running statistics may be moved without Bessel's correction.")
        .def(py::init<const py::object&, py::object, py::object>(), py::arg("torch"),
             py::arg("saved_type"), py::arg("problem_of"))
        .def("forward", &FunctionCalls::forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("momentum"), py::arg("eps"),
             py::arg("channel_axis"), py::arg("out"), py::arg("bessel"), "y and DeviceSaved.")
        .def("normalize", &FunctionCalls::normalize, py::arg("x"), py::arg("mean"), py::arg("var"),
             py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("channel_axis"),
             py::arg("out"), "y.")
        .def("normalize_by_running", &FunctionCalls::normalize_by_running, py::arg("x"),
             py::arg("running_mean"), py::arg("running_var"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), py::arg("channel_axis"), py::arg("out"), "y and DeviceSaved.")
        .def("backward", &FunctionCalls::backward, py::arg("dy"), py::arg("x"), py::arg("saved"),
             py::arg("weight"), py::arg("out"), "dx, dweight, dbias.")
        .def("backward_constant", &FunctionCalls::backward_constant, py::arg("dy"),
             py::arg("saved"), py::arg("weight"), py::arg("out"),
             "dx alone, where the statistics were given.");
}

}  // namespace bnext::bindings
