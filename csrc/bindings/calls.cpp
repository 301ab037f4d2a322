// The operations as Python calls them: whole passes, and the four phases by themselves, as groups
// call them. Each call is taken in, checked, computed and answered, in this order: nothing is
// written, and no state changes, before the check is through. A first phase is checked for all that
// its pass is given, so that a member that cannot go on says so before others have written.
#include "bindings/bodies.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

// A flag that is true where it is not given.
bool flag_of(py::handle object) {
    if (!object || object.ptr() == Py_True) return true;
    const int truth = PyObject_IsTrue(object.ptr());
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

py::handle or_none(py::handle object) { return object ? object : py::handle(Py_None); }

void take_running(Intake& call, py::handle mean, py::handle var, py::handle momentum,
                  py::handle counter) {
    call.write(Role::running_mean, mean);
    call.write(Role::running_var, var);
    call.momentum(momentum);
    call.count(counter);
}

// What every normalization takes.
void take_x(Intake& call, py::handle x, py::handle eps, py::handle channel_axis) {
    call.lead(Role::x, x);
    call.axis(channel_axis);
    call.eps(eps);
}

void take_affine(Intake& call, py::handle weight, py::handle bias) {
    call.read(Role::weight, weight);
    call.read(Role::bias, bias);
}

// --- whole passes
// ---------------------------------------------------------------------------------

constexpr Signature kForward{
    "forward",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out, bessel=True",
    "y and Saved, from batch statistics; updates the running ones where they are given."};

py::object forward(const Arguments<11>& arguments) {
    const auto [x, weight, bias, running_mean, running_var, momentum, counter, eps, channel_axis,
                out, bessel] = arguments;
    Intake call(Function::forward);
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    take_running(call, running_mean, running_var, momentum, counter);
    call.write(Role::out, out);
    check(call.call);
    const bool corrects = flag_of(bessel);
    py::object result = with_dtype(call[Role::x].dtype(), [&](auto type) {
        return forward_body<decltype(type)>(call, Results(call.library()), corrects);
    });
    call.count_writes();
    return result;
}

py::object normalize_by(Function function, py::handle x, Role mean_role, py::handle mean,
                        Role var_role, py::handle var, py::handle weight, py::handle bias,
                        py::handle eps, py::handle channel_axis, py::handle out) {
    Intake call(function);
    take_x(call, x, eps, channel_axis);
    call.read(mean_role, mean);
    call.read(var_role, var);
    take_affine(call, weight, bias);
    call.write(Role::out, out);
    check(call.call);
    Saved saved = given_statistics(call, mean_role, var_role);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = with_dtype(call[Role::x].dtype(), [&](auto type) {
        return apply_norm_body<decltype(type)>(call, Results(call.library()), saved);
    });
    call.count_writes();
    return pair_of(y, py::cast(std::move(saved)));
}

constexpr Signature kNormalize{"normalize", "x, mean, var, weight, bias, eps, channel_axis, out",
                               "y and Saved, from given statistics."};

py::object normalize(const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out] = arguments;
    return normalize_by(Function::normalize, x, Role::mean, mean, Role::var, var, weight, bias, eps,
                        channel_axis, out);
}

constexpr Signature kNormalizeByRunning{
    "normalize_by_running", "x, running_mean, running_var, weight, bias, eps, channel_axis, out",
    "The same, from a layer's statistics, which are of the dtype of x."};

py::object normalize_by_running(const Arguments<8>& arguments) {
    const auto [x, mean, var, weight, bias, eps, channel_axis, out] = arguments;
    return normalize_by(Function::normalize_by_running, x, Role::running_mean, mean,
                        Role::running_var, var, weight, bias, eps, channel_axis, out);
}

constexpr Signature kBackward{"backward", "dy, x, saved, weight, out", "dx, dweight, dbias."};

// What every backward pass takes, by what forward has saved.
void take_backward(Intake& call, py::handle dy, py::handle x, py::handle weight, py::handle out) {
    call.lead(Role::x, x);
    call.read(Role::dy, dy);
    call.read(Role::weight, or_none(weight));
    call.write(Role::out, or_none(out));
}

py::object backward(const Arguments<5>& arguments) {
    const auto [dy, x, saved_object, weight, out] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward);
    call.call.from_forward = &facts;
    take_backward(call, dy, x, weight, out);
    check(call.call);
    py::object result = with_dtype(saved.dtype, [&](auto type) {
        return backward_body<decltype(type)>(call, Results(call.library()),
                                             Results(call.library_of_weight(weight)), saved);
    });
    call.count_writes();
    return result;
}

constexpr Signature kBackwardConstant{"backward_constant", "dy, saved, weight, out",
                                      "dx alone, where the statistics were given: it needs no x."};

py::object backward_constant(const Arguments<4>& arguments) {
    const auto [dy, saved_object, weight, out] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward_constant);
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

// --- phases
// ---------------------------------------------------------------------------------------

// What the first phase finds of x: its rows mean, mean_low and m2.
struct Collected {
    explicit Collected(Intake& call) : inputs(call), description(inputs.describe_inputs()) {
        const Index channels = description.problem.channels;
        values = cpu::PoolArray<double>(static_cast<std::size_t>(kRows * channels));
        with_dtype(call[Role::x].dtype(), [&](auto type) {
            using T = decltype(type);
            const auto x = view_of<const T>(inputs.x(), description.strides[0]);
            without_gil(description.problem.elements(), [&] {
                cpu::collect_stats<T>(description.problem, x, {values.data(), channels});
            });
        });
    }

    [[nodiscard]] Index count() const { return description.problem.count(); }
    // As an array of NumPy's.
    [[nodiscard]] py::object row(Row which) const {
        const Index channels = description.problem.channels;
        const double* const first = StatisticsIn(values.data(), channels).row(which);
        return Results().vector<double>({first, static_cast<std::size_t>(channels)});
    }

    Inputs inputs;
    Description description;
    cpu::PoolArray<double> values;
};

constexpr Signature kMoments{"moments", "x, channel_axis", "count, mean and m2 of each channel."};

py::object moments(const Arguments<2>& arguments) {
    Intake call(Function::moments);
    call.lead(Role::x, arguments[0]);
    call.axis(arguments[1]);
    check(call.call);
    const Collected found(call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::m2));
}

constexpr Signature kCollectStats{
    "collect_stats",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out",
    "count, mean, mean_low and m2, and the name of the dtype, after a look at all that `forward` "
    "takes."};

py::object collect_stats(const Arguments<10>& arguments) {
    const auto [x, weight, bias, running_mean, running_var, momentum, counter, eps, channel_axis,
                out] = arguments;
    Intake call(Function::collect_stats);
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    take_running(call, running_mean, running_var, momentum, counter);
    call.write(Role::out, out);
    check(call.call);
    const Collected found(call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::mean_low),
                          found.row(Row::m2), name_of(call[Role::x].dtype()));
}

constexpr Signature kApplyNorm{
    "apply_norm", "x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out",
    "y and Saved, from Moments of a batch that x is a part of. No mean_low: 0."};

py::object apply_norm(const Arguments<10>& arguments) {
    const auto [x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out] = arguments;
    Intake call(Function::apply_norm);
    take_x(call, x, eps, channel_axis);
    call.read_numpy(Role::mean, mean);
    call.read_numpy(Role::mean_low, mean_low);
    call.read_numpy(Role::m2, m2);
    take_affine(call, weight, bias);
    call.write(Role::out, out);
    const Index values = intake::take_integer(count, "count");
    check(call.call);
    Saved saved(call.call);
    read_doubles(call[Role::mean], saved.row(Row::mean));
    read_doubles(call[Role::m2], saved.row(Row::m2));
    if (call.call.has(Role::mean_low)) {
        read_doubles(call[Role::mean_low], saved.row(Row::mean_low));
    } else {
        std::ranges::fill(saved.row(Row::mean_low), 0.0);
    }
    saved.count = values;
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const auto n = static_cast<double>(std::max<Index>(values, 1));
    std::ranges::transform(saved.row(Row::m2), saved.rows().var(),
                           [=](double each) { return each / n; });
    const py::object y = with_dtype(call[Role::x].dtype(), [&](auto type) {
        return apply_norm_body<decltype(type)>(call, Results(call.library()), saved);
    });
    call.count_writes();
    return pair_of(y, py::cast(std::move(saved)));
}

constexpr Signature kMoveRunning{
    "move_running", "saved, running_mean, running_var, momentum, num_batches_tracked, bessel=True",
    "Updates running statistics by those of a batch, as `forward` does."};

py::object move_running_by(const Arguments<6>& arguments) {
    const auto [saved_object, running_mean, running_var, momentum, counter, bessel] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::move_running);
    call.call.from_forward = &facts;
    call.belongs_to(intake::library_of(running_mean) != nullptr ? running_mean : running_var);
    take_running(call, running_mean, running_var, momentum, counter);
    check(call.call);
    with_dtype(saved.dtype, [&](auto type) {
        move_running<Param<decltype(type)>>(call, saved, flag_of(bessel));
    });
    count_batch(call);
    call.count_writes();
    return py::none();
}

constexpr Signature kBackwardReduce{
    "backward_reduce", "dy, x, saved, weight=None, out=None",
    "sum of dy, and of dy * (x - mean), of each channel, after a look at all that `backward` "
    "takes."};

py::object backward_reduce(const Arguments<5>& arguments) {
    const auto [dy, x, saved_object, weight, out] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward_reduce);
    call.call.from_forward = &facts;
    take_backward(call, dy, x, weight, out);
    check(call.call);
    const auto size = static_cast<std::size_t>(saved.channels());
    const cpu::PoolArray<double> sum_dy(size, 0.0), sum_dy_xmu(size, 0.0);
    with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        Inputs inputs(call);
        const Description description = inputs.describe_inputs();
        const auto x_view = view_of<const T>(inputs.x(), description.strides[0]);
        const auto dy_view = view_of<const T>(inputs.dy(), description.strides[1]);
        without_gil(description.problem.elements(), [&] {
            cpu::backward_reduce<T>(description.problem, dy_view, x_view, saved.rows(),
                                    sum_dy.data(), sum_dy_xmu.data());
        });
    });
    const Results numpy;
    return pair_of(numpy.vector<double>(sum_dy), numpy.vector<double>(sum_dy_xmu));
}

// Sums over a whole batch, one for each channel.
struct Sums {
    explicit Sums(Index channels)
        : dy(static_cast<std::size_t>(channels)), dy_xmu(static_cast<std::size_t>(channels)) {}

    void read(const Intake& call) {
        read_doubles(call[Role::sum_dy], {dy.data(), dy.size()});
        read_doubles(call[Role::sum_dy_xmu], {dy_xmu.data(), dy_xmu.size()});
    }

    cpu::PoolArray<double> dy, dy_xmu;
};

constexpr Signature kBackwardApply{"backward_apply",
                                   "dy, x, saved, weight, sum_dy, sum_dy_xmu, count, out",
                                   "dx from sums over `count` values per channel."};

py::object backward_apply(const Arguments<8>& arguments) {
    const auto [dy, x, saved_object, weight, sum_dy, sum_dy_xmu, count_object, out] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::backward_apply);
    call.call.from_forward = &facts;
    take_backward(call, dy, x, weight, out);
    call.read_numpy(Role::sum_dy, sum_dy);
    call.read_numpy(Role::sum_dy_xmu, sum_dy_xmu);
    const double count = intake::take_real(count_object, "count");
    check(call.call);
    Sums sums(saved.channels());
    sums.read(call);
    const Results results(call.library());
    py::object result = with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        Inputs inputs(call);
        Destination dx(call, inputs, results);
        const auto* scale = call.vector<Param<T>>(Role::weight);
        without_gil(dx.problem().elements(), [&] {
            cpu::backward_apply<T>(dx.problem(), dx.dy<T>(), dx.x<T>(), dx.target<T>(2),
                                   saved.rows(), scale, sums.dy.data(), sums.dy_xmu.data(), count);
        });
        return dx.result();
    });
    call.count_writes();
    return result;
}

constexpr Signature kParameterGradients{
    "parameter_gradients", "saved, weight, sum_dy, sum_dy_xmu, like=None",
    "dweight, dbias from such sums; of the library that `backward` of `like` gives them in."};

py::object parameter_gradients(const Arguments<5>& arguments) {
    const auto [saved_object, weight, sum_dy, sum_dy_xmu, like] = arguments;
    const Saved& saved = take_saved(saved_object);
    const FromForward facts = saved.facts();
    Intake call(Function::parameter_gradients);
    call.call.from_forward = &facts;
    call.belongs_to(like ? like : weight);
    call.read_numpy(Role::sum_dy, sum_dy);
    call.read_numpy(Role::sum_dy_xmu, sum_dy_xmu);
    check(call.call);
    Sums sums(saved.channels());
    sums.read(call);
    const Results results(call.library_of_weight(weight));
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        return pair_of(
            results.vector<P>({sums.dy_xmu.data(), sums.dy_xmu.size()}, saved.rows().rstd()),
            results.vector<P>({sums.dy.data(), sums.dy.size()}));
    });
}

}  // namespace

void register_calls(py::module_& m) {
    Fast<11, kForward, forward>::add_to(m);
    Fast<8, kNormalize, normalize>::add_to(m);
    Fast<8, kNormalizeByRunning, normalize_by_running>::add_to(m);
    Fast<5, kBackward, backward>::add_to(m);
    Fast<4, kBackwardConstant, backward_constant>::add_to(m);
    Fast<4, kRestored, restored>::add_to(m);
    Fast<2, kMoments, moments>::add_to(m);
    Fast<10, kCollectStats, collect_stats>::add_to(m);
    Fast<10, kApplyNorm, apply_norm>::add_to(m);
    Fast<6, kMoveRunning, move_running_by>::add_to(m);
    Fast<5, kBackwardReduce, backward_reduce>::add_to(m);
    Fast<8, kBackwardApply, backward_apply>::add_to(m);
    Fast<5, kParameterGradients, parameter_gradients>::add_to(m);
}

}  // namespace bnext::bindings
