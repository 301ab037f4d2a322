// The phases of the operations by themselves, as groups and compiled graphs call them. A first
// phase is checked for all that its pass is given, so that a member that cannot go on says so
// before others have written.
#include "bindings/gpu_bodies.hpp"
#include "bindings/register.hpp"
#include "bindings/taking.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kStatistics{"statistics", "x, weight, bias, eps, channel_axis",
                                "The rows of Saved; and unit, center, scale and shift, of\n"
                                "y = (x * unit - center) * scale + shift."};

py::object statistics(py::handle /*self*/, const Arguments<5>& arguments) {
    const auto [x, weight, bias, eps, channel_axis] = arguments;
    Intake call(Function::collect_stats);
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    check(call.call);
    const Results results(call.library());
    Inputs inputs(call);
    const Description description = inputs.describe_inputs();
    const Index channels = description.problem.channels;
    const std::array<Index, 2> strides{channels, 1};
    Fresh rows = results.make(DType::float64, std::array<Index, 2>{kRows, channels}, strides);
    const StatisticsOut out(static_cast<double*>(rows.data), channels);
    return with_dtype(call[Role::x].dtype(), [&](auto type) {
        using T = decltype(type);
        Fresh coefficients =
            results.make(DTypeOf<Compute<T>>::value, std::array<Index, 2>{4, channels}, strides);
        const auto affine = affine_of<T>(call);
        without_gil(description.problem.elements(), [&] {
            cpu::statistics<T>(description.problem,
                               view_of<const T>(inputs.x(), description.strides[0]), call.call.eps,
                               out);
            cpu::pointwise_coefficients<T>(channels, out, affine,
                                           static_cast<Compute<T>*>(coefficients.data));
        });
        return pair_of(results.give(std::move(rows)), results.give(std::move(coefficients)));
    });
}

// What the first phase finds of x: its rows mean, mean_low and m2.
struct Collected {
    explicit Collected(Intake& call) : inputs(call), description(inputs.describe_inputs()) {
        const Index channels = description.problem.channels;
        values = cpu::PoolArray<double>(static_cast<std::size_t>(kRows * channels));
        with_dtype(call[Role::x].dtype(), [&](auto type) {
            using T = decltype(type);
            const auto x = view_of<const T>(inputs.x(), description.strides[0]);
            without_gil(description.problem.elements(), [&] {
                n = cpu::collect_stats<T>(description.problem, x, {values.data(), channels});
            });
        });
    }

    [[nodiscard]] Index count() const { return static_cast<Index>(n); }
    // As an array of NumPy's.
    [[nodiscard]] py::object row(Row which) const {
        const Index channels = description.problem.channels;
        const double* const first = StatisticsIn(values.data(), channels).row(which);
        return Results().vector<double>({first, static_cast<std::size_t>(channels)});
    }

    Inputs inputs;
    Description description;
    cpu::PoolArray<double> values;
    double n = 0;
};

constexpr Signature kMoments{"moments", "x, channel_axis", "count, mean and m2 of each channel."};

py::object moments(py::handle self, const Arguments<2>& arguments) {
    const Engine* engine = engine_of(self);
    Intake call(Function::moments, false, engine);
    call.lead(Role::x, arguments[0]);
    call.axis(arguments[1]);
    check(call.call);
    if (engine != nullptr) return there::moments(call, *engine);
    const Collected found(call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::m2));
}

constexpr Signature kCollectStats{
    "collect_stats",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out",
    "count, mean, mean_low and m2, and the name of the dtype, after a look at all that `forward` "
    "takes."};

py::object collect_stats(py::handle self, const Arguments<10>& arguments) {
    const auto [x, weight, bias, running_mean, running_var, momentum, counter, eps, channel_axis,
                out] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::collect_stats, false, engine);
    take_x(call, x, eps, channel_axis);
    take_affine(call, weight, bias);
    take_running(call, running_mean, running_var, momentum, counter);
    call.write(Role::out, out);
    check(call.call);
    if (engine != nullptr) return there::collect_stats(call, *engine);
    const Collected found(call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::mean_low),
                          found.row(Row::m2), name_of(call[Role::x].dtype()));
}

constexpr Signature kApplyNorm{
    "apply_norm", "x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out",
    "y and Saved, from Moments of a batch that x is a part of. No mean_low: 0."};

py::object apply_norm(py::handle self, const Arguments<10>& arguments) {
    const auto [x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out] = arguments;
    const Engine* engine = engine_of(self);
    Intake call(Function::apply_norm, false, engine);
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
    const auto n = static_cast<double>(std::max<Index>(values, 1));
    std::ranges::transform(saved.row(Row::m2), saved.rows().var(),
                           [=](double each) { return each / n; });
    if (engine != nullptr) {
        py::object both = there::apply_norm(call, *engine, std::move(saved));
        call.count_writes();
        return both;
    }
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_of(call, Results(call.library()), saved);
    return pair_of(y, object_of(std::move(saved)));
}

constexpr Signature kMoveRunning{
    "move_running", "saved, running_mean, running_var, momentum, num_batches_tracked, bessel=True",
    "Updates running statistics by the statistics of a batch, as `forward` does."};

py::object move_running_by(py::handle self, const Arguments<6>& arguments) {
    const auto [saved_object, running_mean, running_var, momentum, counter, bessel] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "x");
    Intake call(Function::move_running, false, engine);
    call.call.from_forward = &left.facts;
    call.belongs_to(intake::library_of(running_mean) != nullptr ? running_mean : running_var);
    take_running(call, running_mean, running_var, momentum, counter);
    check(call.call);
    const bool unbiased = flag_of(bessel, true);
    if (engine != nullptr) {  // by operations of the library, which counts its writes
        there::move_running(call, *engine, *left.there, running_mean, running_var, unbiased);
        count_batch(call);
        return py::none();
    }
    with_dtype(left.facts.dtype, [&](auto type) {
        move_running<Param<decltype(type)>>(call, *left.saved, unbiased);
    });
    count_batch(call);
    call.count_writes();
    return py::none();
}

constexpr Signature kBackwardReduce{
    "backward_reduce", "dy, x, saved, weight=None, out=None",
    "sum of dy, and of dy * (x - mean), of each channel, after a look at all that `backward` "
    "takes."};

py::object backward_reduce(py::handle self, const Arguments<5>& arguments) {
    const auto [dy, x, saved_object, weight, out] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "x");
    Intake call(Function::backward_reduce, false, engine);
    call.call.from_forward = &left.facts;
    take_backward(call, dy, x, weight, out);
    check(call.call);
    if (engine != nullptr) return there::backward_reduce(call, *engine, *left.there);
    const Saved& saved = *left.saved;
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

py::object backward_apply(py::handle self, const Arguments<8>& arguments) {
    const auto [dy, x, saved_object, weight, sum_dy, sum_dy_xmu, count_object, out] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "x");
    Intake call(Function::backward_apply, false, engine);
    call.call.from_forward = &left.facts;
    take_backward(call, dy, x, weight, out);
    call.read_numpy(Role::sum_dy, sum_dy);
    call.read_numpy(Role::sum_dy_xmu, sum_dy_xmu);
    const double count = intake::take_real(count_object, "count");
    check(call.call);
    Sums sums(call.call.channels());
    sums.read(call);
    if (engine != nullptr) {
        py::object dx =
            there::backward_apply(call, *engine, *left.there, sums.dy, sums.dy_xmu, count);
        call.count_writes();
        return dx;
    }
    const Saved& saved = *left.saved;
    const Results results(call.library());
    py::object result = with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        Inputs inputs(call);
        Destination dx(call, inputs, results);
        const auto* scale = call.vector<Param<T>>(Role::weight);
        without_gil(dx.problem().elements(), [&] {
            cpu::backward_apply<T>(dx.problem(), dx.dy<T>(), dx.x<T>(), dx.target<T>(),
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

py::object parameter_gradients(py::handle self, const Arguments<5>& arguments) {
    const auto [saved_object, weight, sum_dy, sum_dy_xmu, like] = arguments;
    const Engine* engine = engine_of(self);
    const Left left(saved_object, engine, "x");
    Intake call(Function::parameter_gradients, false, engine);
    call.call.from_forward = &left.facts;
    call.belongs_to(like ? like : weight);
    call.read_numpy(Role::sum_dy, sum_dy);
    call.read_numpy(Role::sum_dy_xmu, sum_dy_xmu);
    check(call.call);
    Sums sums(call.call.channels());
    sums.read(call);
    // Of a GPU's arrays on the host too, by the statistics that the group has merged.
    const Saved& saved = engine != nullptr ? take_saved(left.there->of_group) : *left.saved;
    const Results results(engine != nullptr ? nullptr : call.library_of_weight(weight));
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        py::object dweight = results.vector<P>(sums.dy_xmu, saved.rows().rstd());
        py::object dbias = results.vector<P>(sums.dy);
        if (engine != nullptr) {
            const py::object from_numpy = engine->library->object.attr("from_numpy");
            dweight = from_numpy(dweight, left.there->rows);
            dbias = from_numpy(dbias, left.there->rows);
        }
        return pair_of(dweight, dbias);
    });
}

}  // namespace

void register_phases(const py::object& m, py::handle engine) {
    Fast<5, kStatistics, statistics>::add_to(m, engine);
    Fast<2, kMoments, moments>::add_to(m, engine);
    Fast<10, kCollectStats, collect_stats>::add_to(m, engine);
    Fast<10, kApplyNorm, apply_norm>::add_to(m, engine);
    Fast<6, kMoveRunning, move_running_by>::add_to(m, engine);
    Fast<5, kBackwardReduce, backward_reduce>::add_to(m, engine);
    Fast<8, kBackwardApply, backward_apply>::add_to(m, engine);
    Fast<5, kParameterGradients, parameter_gradients>::add_to(m, engine);
}

}  // namespace bnext::bindings
