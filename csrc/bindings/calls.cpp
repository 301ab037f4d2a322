// The operations as Python calls them, as whole passes. Each call is taken in, checked, computed
// and answered, in this order: nothing is written, and no state changes, before the check is
// through.
#include "bindings/gpu_bodies.hpp"
#include "bindings/register.hpp"
#include "bindings/taking.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kForward{
    "forward",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out, bessel=True, plain=False, keeps=True",
    "y and Saved, from batch statistics; updates the running ones where they are given. With\n"
    "`plain`, TypeError for a tensor that is not plain; what autograd would record is not asked.\n"
    "Without `keeps`, None in place of Saved: no backward pass follows."};

py::object forward(py::handle self, const Arguments<13>& arguments) {
    const auto [x, weight, bias, running_mean, running_var, momentum, counter, eps, channel_axis,
                out, bessel, plain, keeps_saved] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::forward, flag_of(plain, false), engine);
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    take_running(call, running_mean, running_var, momentum, counter);
    call.write(Role::out, out);
    check(call.call);
    const bool corrects = flag_of(bessel, true), keeps = flag_of(keeps_saved, true);
    py::object result = engine != nullptr ? there::forward(call, *engine, corrects, keeps)
                                          : with_dtype(call[Role::x].dtype(), [&](auto type) {
                                                return forward_body<decltype(type)>(
                                                    call, Results(call.library()), corrects, keeps);
                                            });
    call.count_writes();
    return result;
}

// y and Saved, from statistics that were taken in by these roles, beside what all calls take. On a
// GPU Saved is made only where it `keeps` it.
py::object normalize_by(Intake& call, const Engine* engine, Role mean, Role var, bool keeps) {
    check(call.call);
    if (engine != nullptr) {
        py::object both = there::normalize(call, *engine, mean, var, keeps);
        call.count_writes();
        return both;
    }
    Saved saved = given_statistics(call, mean, var);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_of(call, Results(call.library()), saved);
    return pair_of(y, object_of(std::move(saved)));
}

constexpr Signature kNormalize{"normalize", "x, mean, var, weight, bias, eps, channel_axis, out",
                               "y and Saved, from given statistics."};

py::object normalize(py::handle self, const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::normalize, false, engine);
    take_x(call, x, eps, channel_axis);
    call.read(Role::mean, mean);
    call.read(Role::var, var);
    take_affine(call, weight, bias);
    call.write(Role::out, out);
    return normalize_by(call, engine, Role::mean, Role::var, false);
}

constexpr Signature kNormalizeByRunning{
    "normalize_by_running",
    "x, running_mean, running_var, weight, bias, eps, channel_axis, out, plain=False",
    "The same, from a layer's statistics, which are of the dtype of x."};

void take_evaluation(Intake& call, py::handle x, py::handle mean, py::handle var, py::handle weight,
                     py::handle bias, py::handle eps, py::handle channel_axis) {
    take_x(call, x, eps, channel_axis);
    call.read(Role::running_mean, mean);
    call.read(Role::running_var, var);
    take_affine(call, weight, bias);
}

py::object normalize_by_running(py::handle self, const Arguments<9>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out, plain] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::normalize_by_running, flag_of(plain, false), engine);
    take_evaluation(call, x, mean, var, weight, bias, eps, channel_axis);
    call.write(Role::out, out);
    return normalize_by(call, engine, Role::running_mean, Role::running_var, true);
}

constexpr Signature kEvaluate{
    "evaluate", "x, running_mean, running_var, weight, bias, eps, channel_axis, plain=False",
    "y of `normalize_by_running` alone, for no backward pass; a tensor in its library's memory."};

py::object evaluate(py::handle self, const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, plain] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::normalize_by_running, flag_of(plain, false), engine);
    take_evaluation(call, x, mean, var, weight, bias, eps, channel_axis);
    if (engine != nullptr) {
        return py::object(
            normalize_by(call, engine, Role::running_mean, Role::running_var, false)[py::int_(0)]);
    }
    check(call.call);
    Saved saved = given_statistics(call, Role::running_mean, Role::running_var);
    return apply_norm_of(call, Results(call.library(), x), saved);
}

constexpr Signature kBackward{"backward", "dy, x, saved, weight, out, plain=False",
                              "dx, dweight, dbias."};

py::object backward(py::handle self, const Arguments<6>& arguments) {
    const auto [dy, x, saved_object, weight, out, plain] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "x");
    Intake call(Function::backward, flag_of(plain, false), engine);
    call.call.from_forward = &left.facts;
    take_backward(call, dy, x, weight, out);
    check(call.call);
    const Results results(call.library()), of_parameters(call.library_of_weight(weight));
    py::object result = engine != nullptr ? there::backward(call, *engine, *left.there)
                                          : with_dtype(left.facts.dtype, [&](auto type) {
                                                return backward_body<decltype(type)>(
                                                    call, results, of_parameters, *left.saved);
                                            });
    call.count_writes();
    return result;
}

constexpr Signature kBackwardConstant{"backward_constant", "dy, saved, weight, out, plain=False",
                                      "dx alone, where the statistics were given: it needs no x."};

py::object backward_constant(py::handle self, const Arguments<5>& arguments) {
    const auto [dy, saved_object, weight, out, plain] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "dy");
    Intake call(Function::backward_constant, flag_of(plain, false), engine);
    call.call.from_forward = &left.facts;
    call.lead(Role::dy, dy);
    call.read(Role::weight, weight);
    call.write(Role::out, out);
    check(call.call);
    py::object result = engine != nullptr ? there::backward_constant(call, *engine, *left.there)
                                          : with_dtype(left.facts.dtype, [&](auto type) {
                                                return backward_constant_body<decltype(type)>(
                                                    call, Results(call.library()), *left.saved);
                                            });
    call.count_writes();
    return result;
}

constexpr Signature kRestored{
    "restored", "x, rows, eps, channel_axis",
    "Saved, from x and the rows of its statistics as an array of float64."};

py::object restored(py::handle self, const Arguments<4>& arguments) {
    const auto [x, rows, eps, channel_axis] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::restored, false, engine);
    call.lead(Role::x, x);
    call.axis(channel_axis);
    call.eps(eps);
    call.read(Role::rows, rows);
    check(call.call);
    if (engine != nullptr) {
        const Index count = Launch(call, *engine).count();
        return py::cast(
            there::saved_of(call, *engine, py::reinterpret_borrow<py::object>(rows), count, true));
    }
    Saved saved(call.call);
    saved.take_rows(call[Role::rows]);
    saved.count = saved.channels() == 0 ? 0 : call[Role::x].size() / saved.channels();
    saved.fingerprint = fingerprint_of(call[Role::x]);
    return object_of(std::move(saved));
}

}  // namespace

void register_calls(const py::object& m, py::handle engine) {
    Fast<13, kForward, forward>::add_to(m, engine);
    Fast<8, kNormalize, normalize>::add_to(m, engine);
    Fast<9, kNormalizeByRunning, normalize_by_running>::add_to(m, engine);
    Fast<8, kEvaluate, evaluate>::add_to(m, engine);
    Fast<6, kBackward, backward>::add_to(m, engine);
    Fast<5, kBackwardConstant, backward_constant>::add_to(m, engine);
    Fast<4, kRestored, restored>::add_to(m, engine);
}

}  // namespace bnext::bindings
