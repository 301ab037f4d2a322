// The operations as Python calls them, as whole passes. Each call is taken in, checked, computed
// and answered, in this order: nothing is written, and no state changes, before the check is
// through.
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

py::object forward(const Arguments<13>& arguments) {
    const auto [x, weight, bias, running_mean, running_var, momentum, counter, eps, channel_axis,
                out, bessel, plain, keeps_saved] = arguments;
    Intake call(Function::forward, flag_of(plain, false));
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    take_running(call, running_mean, running_var, momentum, counter);
    call.write(Role::out, out);
    check(call.call);
    const bool corrects = flag_of(bessel, true), keeps = flag_of(keeps_saved, true);
    py::object result = with_dtype(call[Role::x].dtype(), [&](auto type) {
        return forward_body<decltype(type)>(call, Results(call.library()), corrects, keeps);
    });
    call.count_writes();
    return result;
}

// y and Saved, from statistics that were taken in by these roles, beside what all calls take.
py::object normalize_by(Intake& call, Role mean, Role var) {
    check(call.call);
    Saved saved = given_statistics(call, mean, var);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_of(call, Results(call.library()), saved);
    return pair_of(y, py::cast(std::move(saved)));
}

constexpr Signature kNormalize{"normalize", "x, mean, var, weight, bias, eps, channel_axis, out",
                               "y and Saved, from given statistics."};

py::object normalize(const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out] = arguments;
    Intake call(Function::normalize);
    take_x(call, x, eps, channel_axis);
    call.read(Role::mean, mean);
    call.read(Role::var, var);
    take_affine(call, weight, bias);
    call.write(Role::out, out);
    return normalize_by(call, Role::mean, Role::var);
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

py::object normalize_by_running(const Arguments<9>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out, plain] = arguments;
    Intake call(Function::normalize_by_running, flag_of(plain, false));
    take_evaluation(call, x, mean, var, weight, bias, eps, channel_axis);
    call.write(Role::out, out);
    return normalize_by(call, Role::running_mean, Role::running_var);
}

constexpr Signature kEvaluate{
    "evaluate", "x, running_mean, running_var, weight, bias, eps, channel_axis, plain=False",
    "y of `normalize_by_running` alone, for no backward pass; a tensor in its library's memory."};

py::object evaluate(const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, plain] = arguments;
    Intake call(Function::normalize_by_running, flag_of(plain, false));
    take_evaluation(call, x, mean, var, weight, bias, eps, channel_axis);
    check(call.call);
    Saved saved = given_statistics(call, Role::running_mean, Role::running_var);
    return apply_norm_of(call, Results(call.library(), x), saved);
}

constexpr Signature kBackward{"backward", "dy, x, saved, weight, out, plain=False",
                              "dx, dweight, dbias."};

py::object backward(const Arguments<6>& arguments) {
    const auto [dy, x, saved_object, weight, out, plain] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward, flag_of(plain, false));
    call.call.from_forward = &facts;
    take_backward(call, dy, x, weight, out);
    check(call.call);
    const Results results(call.library()), of_parameters(call.library_of_weight(weight));
    py::object result = with_dtype(saved.dtype, [&](auto type) {
        return backward_body<decltype(type)>(call, results, of_parameters, saved);
    });
    call.count_writes();
    return result;
}

constexpr Signature kBackwardConstant{"backward_constant", "dy, saved, weight, out, plain=False",
                                      "dx alone, where the statistics were given: it needs no x."};

py::object backward_constant(const Arguments<5>& arguments) {
    const auto [dy, saved_object, weight, out, plain] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward_constant, flag_of(plain, false));
    call.call.from_forward = &facts;
    call.lead(Role::dy, dy);
    call.read(Role::weight, weight);
    call.write(Role::out, out);
    check(call.call);
    py::object result = with_dtype(saved.dtype, [&](auto type) {
        return backward_constant_body<decltype(type)>(call, Results(call.library()), saved);
    });
    call.count_writes();
    return result;
}

constexpr Signature kRestored{
    "restored", "x, rows, eps, channel_axis",
    "Saved, from x and the rows of its statistics as an array of float64."};

py::object restored(const Arguments<4>& arguments) {
    const auto [x, rows, eps, channel_axis] = arguments;
    Intake call(Function::restored);
    call.lead(Role::x, x);
    call.axis(channel_axis);
    call.eps(eps);
    call.read(Role::rows, rows);
    check(call.call);
    Saved saved(call.call);
    saved.take_rows(call[Role::rows]);
    saved.count = saved.channels() == 0 ? 0 : call[Role::x].size() / saved.channels();
    saved.fingerprint = fingerprint_of(call[Role::x]);
    return py::cast(std::move(saved));
}

}  // namespace

void register_calls(py::module_& m) {
    Fast<13, kForward, forward>::add_to(m);
    Fast<8, kNormalize, normalize>::add_to(m);
    Fast<9, kNormalizeByRunning, normalize_by_running>::add_to(m);
    Fast<8, kEvaluate, evaluate>::add_to(m);
    Fast<6, kBackward, backward>::add_to(m);
    Fast<5, kBackwardConstant, backward_constant>::add_to(m);
    Fast<4, kRestored, restored>::add_to(m);
}

}  // namespace bnext::bindings
