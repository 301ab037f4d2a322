// The phases of the operations by themselves, as groups and compiled graphs call them. A first
// phase is checked for all that its pass is given, so that a member that cannot go on says so
// before others have written.
#include "bindings/bodies.hpp"
#include "bindings/gpu_bodies.hpp"
#include "bindings/register.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kStatistics{"statistics", "x, weight, bias, eps, channel_axis",
                                "The rows of Saved; and unit, center, scale and shift, of\n"
                                "y = (x * unit - center) * scale + shift."};

py::object statistics(Taken& taken) {
    Intake& call = taken.call;
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
        return tuple_of(results.give(std::move(rows)), results.give(std::move(coefficients)));
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

py::object moments(Taken& taken) {
    const Collected found(taken.call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::m2));
}

constexpr Signature kCollectStats{
    "collect_stats",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out",
    "count, mean, mean_low and m2, and the name of the dtype, after a look at all that `forward` "
    "takes."};

py::object collect_stats(Taken& taken) {
    const Collected found(taken.call);
    return py::make_tuple(found.count(), found.row(Row::mean), found.row(Row::mean_low),
                          found.row(Row::m2), name_of(taken.call[Role::x].dtype()));
}

constexpr Signature kApplyNorm{
    "apply_norm", "x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out",
    "y and Saved, from Moments of a batch that x is a part of. No mean_low: 0."};

py::object apply_norm(Taken& taken) {
    Intake& call = taken.call;
    Saved saved = merged_of(taken);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_by(call, saved, Results(call.library()));
    return tuple_of(y, object_of(std::move(saved)));
}

constexpr Signature kMoveRunning{
    "move_running", "saved, running_mean, running_var, momentum, num_batches_tracked, bessel=True",
    "Updates running statistics by the statistics of a batch, as `forward` does."};

py::object move_running_by(Taken& taken) {
    with_dtype(taken.saved->dtype, [&](auto type) {
        move_running<Param<decltype(type)>>(taken.call, *taken.saved, taken.bessel);
    });
    return py::none();
}

constexpr Signature kBackwardReduce{
    "backward_reduce", "dy, x, saved, weight=None, out=None",
    "sum of dy, and of dy * (x - mean), of each channel, after a look at all that `backward` "
    "takes."};

py::object backward_reduce(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
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
    return tuple_of(numpy.vector<double>(sum_dy), numpy.vector<double>(sum_dy_xmu));
}

constexpr Signature kBackwardApply{"backward_apply",
                                   "dy, x, saved, weight, sum_dy, sum_dy_xmu, count, out",
                                   "dx from sums over `count` values per channel."};

py::object backward_apply(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const double count = intake::take_real(taken.count, "count");
    const Sums sums(call);
    const Results results(call.library());
    return with_dtype(saved.dtype, [&](auto type) {
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
}

constexpr Signature kParameterGradients{
    "parameter_gradients", "saved, weight, sum_dy, sum_dy_xmu, like=None",
    "dweight, dbias from such sums; of the library that `backward` of `like` gives them in."};

py::object parameter_gradients(Taken& taken) {
    taken.call.belongs_to(taken.like ? taken.like : taken.weight);
    return gradients_of(taken, *taken.saved, Results(taken.call.library_of_weight(taken.weight)));
}

}  // namespace

void register_phases(const py::object& m, py::handle engine) {
    Operation<Function::collect_stats, kStatistics, statistics>::add_to(m, engine);
    Operation<Function::moments, kMoments, moments, there::moments>::add_to(m, engine);
    Operation<Function::collect_stats, kCollectStats, collect_stats, there::collect_stats>::add_to(
        m, engine);
    Operation<Function::apply_norm, kApplyNorm, apply_norm, there::apply_norm>::add_to(m, engine);
    Operation<Function::move_running, kMoveRunning, move_running_by, there::move_running>::add_to(
        m, engine);
    Operation<Function::backward_reduce, kBackwardReduce, backward_reduce,
              there::backward_reduce>::add_to(m, engine);
    Operation<Function::backward_apply, kBackwardApply, backward_apply,
              there::backward_apply>::add_to(m, engine);
    Operation<Function::parameter_gradients, kParameterGradients, parameter_gradients,
              there::parameter_gradients>::add_to(m, engine);
}

}  // namespace bnext::bindings
