// The phases of the operations by themselves, as groups and compiled graphs call them. A first
// phase is checked for all that its pass is given, so that a member that cannot go on says so
// before others have written.
#include "bindings/bodies.hpp"
#include "bindings/gpu_bodies.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kStatistics{"statistics", "x, weight, bias, eps, channel_axis, plain=False",
                                "The rows of Saved; and unit, center, scale and shift, of\n"
                                "y = (x * unit - center) * scale + shift."};

py::object statistics(Taken& taken) {
    const Call& call = taken.call.call;
    const Results results(taken.call.library());
    const Index channels = call.channels();
    const auto make = [&](DType dtype, Index count) {
        const std::array<Index, 2> shape{count, channels}, strides{channels, 1};
        return results.make(dtype, shape, strides);
    };
    Fresh rows = make(DType::float64, kStatisticsRows);
    Fresh coefficients = make(param_dtype(call[Role::x].dtype()), 4);
    const StatisticsOut out(static_cast<double*>(rows.data), channels);
    compute(taken.call, {}, [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        cpu::statistics<T>(arrays.problem(), arrays.x<T>(), call.eps, out);
        cpu::pointwise_coefficients<T>(channels, out, affine,
                                       static_cast<Compute<T>*>(coefficients.data));
    });
    return tuple_of(results.give(std::move(rows)), results.give(std::move(coefficients)));
}

// What the first phase finds of x: its rows mean, mean_low and m2.
struct Collected {
    explicit Collected(Taken& taken) : Collected(taken.call, taken.weights) {}
    Collected(Intake& call, const SharedWeights& positions)
        : channels(call.call.channels()),
          values(static_cast<std::size_t>(kStatisticsRows * channels)) {
        compute(call, {}, [&](auto type, const Operands& arrays, const auto&) {
            using T = decltype(type);
            const auto weights = arrays.weights<T>(positions);
            count = cpu::collect_stats<T>(arrays.problem(), arrays.x<T>(),
                                          {values.data(), channels}, pointer_to(weights));
        });
    }

    // As an array of NumPy's.
    [[nodiscard]] py::object row(Row which) const {
        const double* const first = StatisticsIn(values.data(), channels).row(which);
        return Results().vector<double>({first, static_cast<std::size_t>(channels)});
    }

    Index channels;
    double count = 0;
    cpu::PoolArray<double> values;
};

constexpr Signature kMoments{"moments", "x, channel_axis, weighting=None",
                             "count, mean and m2 of each channel."};

py::object moments(Taken& taken) {
    const Collected found(taken);
    return py::make_tuple(intake::number_of(found.count), found.row(Row::mean), found.row(Row::m2));
}

constexpr Signature kCollectStats{
    "collect_stats",
    "x, weight, bias, running_mean, running_var, momentum, num_batches_tracked, eps, channel_axis, "
    "out, epilogue=None, num_batches_skipped=None, weighting=None",
    "count, mean, mean_low and m2, and the name of the dtype, after a look at all that `forward` "
    "takes."};

py::object collect_stats(Taken& taken) {
    const Collected found(taken);
    return py::make_tuple(intake::number_of(found.count), found.row(Row::mean),
                          found.row(Row::mean_low), found.row(Row::m2),
                          name_of(taken.call[Role::x].dtype()));
}

constexpr Signature kApplyNorm{
    "apply_norm",
    "x, count, mean, mean_low, m2, weight, bias, eps, channel_axis, out, epilogue=None, "
    "weighting=None",
    "y and Saved, from Moments of a batch that x is a part of. No mean_low: 0."};

py::object apply_norm(Taken& taken) {
    Intake& call = taken.call;
    Saved saved = merged_of(taken);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_by(call, saved, Results(call.library()));
    return tuple_of(y, object_of(std::move(saved)));
}

constexpr Signature kMoveRunning{
    "move_running",
    "saved, running_mean, running_var, momentum, num_batches_tracked, bessel=True, "
    "num_batches_skipped=None",
    "Updates running statistics by the statistics of a batch, as `forward` does."};

py::object move_running_by(Taken& taken) {
    move_running(taken.call, *taken.saved, taken.bessel);
    return py::none();
}

constexpr Signature kBackwardReduce{
    "backward_reduce", "dy, x, saved, weight=None, out=None, residual=None",
    "sum of dy, and of dy * (x - mean), of each channel, after a look at all that `backward` "
    "takes."};

Sums sums_of_backward(Taken& taken) {
    const Saved& saved = *taken.saved;
    Sums sums(saved.channels());
    compute(
        taken.call, {},
        [&](auto type, const Operands& arrays, const auto&) {
            using T = decltype(type);
            const AppliedAgain<T> again(saved, arrays);
            const auto weights = arrays.weights<T>(saved.weights, true);
            cpu::backward_reduce<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), saved.rows(),
                                    sums.dy.data(), sums.dy_xmu.data(), again.get(),
                                    pointer_to(weights));
        },
        nullptr, flags_to_read(saved));
    return sums;
}

py::object backward_reduce(Taken& taken) { return sums_of_backward(taken).arrays(); }

constexpr Signature kBackwardOfParameters{"backward_of_parameters", "dy, x, saved, plain=False",
                                          "dweight and dbias alone, of `backward`."};

py::object backward_of_parameters(Taken& taken) {
    const Sums sums = sums_of_backward(taken);
    const double* rstd = taken.call[Role::x].size() == 0 ? nullptr : taken.saved->rows().rstd();
    const auto [dweight, dbias] = sums.gradients(*taken.saved, rstd, Results(taken.call.library()));
    return tuple_of(dweight, dbias);
}

constexpr Signature kBackwardApply{"backward_apply",
                                   "dy, x, saved, weight, sum_dy, sum_dy_xmu, count, out, "
                                   "residual=None",
                                   "dx from sums over `count` values per channel; and dresidual, "
                                   "if the forward call had a residual."};

py::object backward_apply(Taken& taken) {
    const StatisticsIn rows = taken.saved->rows();
    const double count = intake::take_real(taken.count, "count");
    const Sums sums(taken.call);
    const Saved& saved = *taken.saved;
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const AppliedAgain<T> again(saved, arrays);
        const auto weights = arrays.weights<T>(saved.weights, true);
        cpu::backward_apply<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), arrays.target<T>(),
                               rows, affine.weight, sums.dy.data(), sums.dy_xmu.data(), count,
                               again.get(), pointer_to(weights));
    };
    py::object dresidual = py::reinterpret_borrow<py::object>(taken.dy);
    const py::object dx = compute(taken.call, Results(taken.call.library()), pass,
                                  wanted_dresidual(saved, dresidual), flags_to_read(saved));
    return saved.epilogue && saved.epilogue->fused.residual ? tuple_of(dx, dresidual) : dx;
}

constexpr Signature kParameterGradients{
    "parameter_gradients", "saved, weight, sum_dy, sum_dy_xmu, like=None",
    "dweight, dbias from such sums; of the library that `backward` of `like` gives them in."};

py::object parameter_gradients(Taken& taken) {
    taken.call.belongs_to(taken.like ? taken.like : taken.weight);
    const Results results(taken.call.library_of_weight(taken.weight));
    const auto [dweight, dbias] =
        Sums(taken.call).gradients(*taken.saved, taken.saved->rows().rstd(), results);
    return tuple_of(dweight, dbias);
}

}  // namespace

void register_phases(const py::object& m, py::handle engine) {
    Operation<Function::collect_stats, kStatistics, statistics>::add_to(m, engine);
    Operation<Function::moments, kMoments, moments, gpu::moments>::add_to(m, engine);
    Operation<Function::collect_stats, kCollectStats, collect_stats, gpu::collect_stats>::add_to(
        m, engine);
    Operation<Function::apply_norm, kApplyNorm, apply_norm, gpu::apply_norm>::add_to(m, engine);
    Operation<Function::move_running, kMoveRunning, move_running_by, gpu::move_running>::add_to(
        m, engine);
    Operation<Function::backward_reduce, kBackwardReduce, backward_reduce,
              gpu::backward_reduce>::add_to(m, engine);
    Operation<Function::backward_reduce, kBackwardOfParameters, backward_of_parameters>::add_to(
        m, engine);
    Operation<Function::backward_apply, kBackwardApply, backward_apply,
              gpu::backward_apply>::add_to(m, engine);
    Operation<Function::parameter_gradients, kParameterGradients, parameter_gradients,
              gpu::parameter_gradients>::add_to(m, engine);
}

}  // namespace bnext::bindings
