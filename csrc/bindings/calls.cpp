// The operations as Python calls them, as whole passes.
#include "bindings/bodies.hpp"
#include "bindings/gpu_bodies.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kForward{
    "forward",
    "x, weight, bias, eps, channel_axis, out, plain=False, keeps=True, epilogue=None, "
    "running_mean=None, running_var=None, momentum=None, num_batches_tracked=None, bessel=True, "
    "num_batches_skipped=None, weighting=None",
    "y and Saved, from batch statistics; updates the running ones where they are given: with\n"
    "a counter for skipped batches, unless the batch's are not finite. With\n"
    "`plain`, TypeError for a tensor that is not plain; what autograd would record is not asked.\n"
    "Without `keeps`, None in place of Saved: no backward pass follows."};

py::object forward(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    auto epilogue = taken.keeps ? epilogue_of(call) : nullptr;
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const auto applied = applied_of<T>(call.call, arrays);
        const auto weights = arrays.weights<T>(taken.weights);
        saved.count =
            cpu::forward<T>(arrays.problem(), arrays.x<T>(), arrays.target<T>(), affine, saved.eps,
                            saved.rows(), pointer_to(applied), pointer_to(weights));
    };
    if (taken.keeps) saved.keep_parameters(call.call);
    saved.weights = taken.weights;
    const py::object y =
        compute(call, Results(call.library()), pass, nullptr, flags_to_make(epilogue));
    saved.epilogue = std::move(epilogue);
    note_output(call, saved);
    move_running(call, saved, taken.bessel);
    return tuple_of(y, taken.keeps ? object_of(std::move(saved)) : py::none());
}

// What is saved where statistics are given by these roles.
Saved given_statistics(const Intake& call, Role mean, Role var) {
    Saved saved(call.call);
    saved.has_given_statistics();
    read_doubles(call[mean], saved.row(Row::mean));
    read_doubles(call[var], saved.row(Row::var));
    return saved;
}

template <Role mean, Role var>
py::object normalize_by(Taken& taken) {
    Intake& call = taken.call;
    Saved saved = given_statistics(call, mean, var);
    saved.weights = taken.weights;
    if (taken.keeps) saved.fingerprint = fingerprint_of(call[Role::x]);
    const py::object y = apply_norm_by(call, saved, Results(call.library()), taken.keeps);
    return tuple_of(y, taken.keeps ? object_of(std::move(saved)) : py::none());
}

constexpr Signature kNormalize{"normalize",
                               "x, mean, var, weight, bias, eps, channel_axis, out, epilogue=None, "
                               "weighting=None, keeps=True",
                               "y and Saved, from given statistics; None in its place without\n"
                               "`keeps`."};

constexpr Signature kNormalizeByRunning{
    "normalize_by_running",
    "x, running_mean, running_var, weight, bias, eps, channel_axis, out, plain=False, "
    "epilogue=None, weighting=None",
    "The same, from a layer's statistics, which are of the dtype of x."};

constexpr Signature kEvaluate{
    "evaluate",
    "x, running_mean, running_var, weight, bias, eps, channel_axis, plain=False, epilogue=None, "
    "over=False",
    "y of `normalize_by_running` alone, for no backward pass; a tensor in its library's memory.\n"
    "`over`: in the memory of x, which is returned."};

py::object evaluate(Taken& taken) {
    Intake& call = taken.call;
    if (taken.over) call.write_over(taken.x);
    Saved saved = given_statistics(call, Role::running_mean, Role::running_var);
    return apply_norm_by(call, saved, Results(call.library(), taken.x), false);
}

// dx = dy * weight * rstd where the statistics are constants: apply_norm of dy.
template <class T>
void scale_gradient(const Operands& arrays, const cpu::View<const T>& dy, const Saved& saved,
                    const Param<T>* weight) {
    const cpu::PoolArray<double> values(saved.all().size(), 0.0);
    const StatisticsOut about_zero(values.data(), saved.channels());
    std::ranges::copy(saved.row(Row::var), about_zero.var());
    const auto weights = arrays.weights<T>(saved.weights, true);
    cpu::apply_norm<T>(arrays.problem(), dy, arrays.target<T>(), about_zero, saved.eps,
                       {weight, nullptr}, nullptr, pointer_to(weights));
}

// The residual's gradient where no activation follows: dy where positions count, and 0 elsewhere.
template <class T>
void mask_gradient(const Operands& arrays, const cpu::View<const T>& dy, const Saved& saved) {
    const cpu::PoolArray<double> values(saved.all().size(), 0.0);
    const StatisticsOut unit(values.data(), saved.channels());
    std::fill_n(unit.var(), saved.channels(), 1.0);
    const auto weights = arrays.weights<T>(saved.weights, true);
    cpu::apply_norm<T>(arrays.problem(), dy, arrays.dresidual<T>(), unit, 0.0, {nullptr, nullptr},
                       nullptr, pointer_to(weights));
}

constexpr Signature kBackward{"backward", "dy, x, saved, weight, out, plain=False, residual=None",
                              "dx, dweight, dbias; and dresidual, if the forward call had one."};

// dx of given statistics, which are constants: backward_apply without the sums.
template <class T>
void scale_activated(const Operands& arrays, const Saved& saved, const Param<T>* weight,
                     const cpu::Applied<T>* applied, const cpu::WeightsOf<T>* weights) {
    const Sums none(saved.channels());
    cpu::backward_apply<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), arrays.target<T>(),
                           saved.rows(), weight, none.dy.data(), none.dy_xmu.data(), 1.0, applied,
                           weights);
}

py::object backward(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const Sums sums(saved.channels());
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const AppliedAgain<T> again(saved, arrays);
        const cpu::Applied<T>* const applied = again.get();
        const auto weights = arrays.weights<T>(saved.weights, true);
        if (saved.batch_statistics) {
            cpu::backward<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), arrays.target<T>(),
                             saved.rows(), affine.weight, sums.dy.data(), sums.dy_xmu.data(),
                             applied, pointer_to(weights));
            return;
        }
        cpu::backward_reduce<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), saved.rows(),
                                sums.dy.data(), sums.dy_xmu.data(), applied, pointer_to(weights));
        const bool writes_residual = applied != nullptr && applied->dresidual.data != nullptr;
        if (writes_residual || (applied != nullptr && applied->fused.changes_backward())) {
            scale_activated<T>(arrays, saved, affine.weight, applied, pointer_to(weights));
        } else {
            scale_gradient<T>(arrays, arrays.dy<T>(), saved, affine.weight);
        }
    };
    const bool has_residual = saved.epilogue && saved.epilogue->fused.residual;
    py::object dresidual = py::reinterpret_borrow<py::object>(taken.dy);
    const py::object dx = compute(call, Results(call.library()), pass,
                                  wanted_dresidual(saved, dresidual), flags_to_read(saved));
    const double* rstd = call[Role::x].size() == 0 ? nullptr : saved.rows().rstd();
    const auto [dweight, dbias] =
        sums.gradients(saved, rstd, Results(call.library_of_weight(taken.weight)));
    if (has_residual) return tuple_of(dx, dweight, dbias, dresidual);
    return tuple_of(dx, dweight, dbias);
}

constexpr Signature kBackwardConstant{"backward_constant", "dy, saved, weight, out, plain=False",
                                      "dx alone, where the statistics were given: it needs no x;\n"
                                      "and dresidual, if there was a residual and a weighting."};

py::object backward_constant(Taken& taken) {
    const Saved& saved = *taken.saved;
    py::object dresidual;
    py::object* const wanted = wanted_dresidual(saved, dresidual);
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        scale_gradient<T>(arrays, arrays.x<T>(), saved, affine.weight);
        if (wanted != nullptr) mask_gradient<T>(arrays, arrays.x<T>(), saved);
    };
    const py::object dx = compute(taken.call, Results(taken.call.library()), pass, wanted);
    return wanted != nullptr ? tuple_of(dx, dresidual) : dx;
}

constexpr Signature kRecompute{"recompute", "x, saved, out=None, residual=None",
                               "y of the forward call again, to the bit."};

py::object recompute(Taken& taken) {
    const Saved& saved = *taken.saved;
    // Of its own, since var and rstd are written again.
    const cpu::PoolArray<double> values(saved.all().size());
    std::ranges::copy(saved.all(), values.data());
    const StatisticsOut rows(values.data(), saved.channels());
    const auto pass = [&](auto type, const Operands& arrays, const auto&) {
        using T = decltype(type);
        const ParametersAgain<T> parameters(saved);
        const auto applied = applied_of<T>(taken.call.call, arrays);
        const auto weights = arrays.weights<T>(saved.weights);
        cpu::apply_norm<T>(arrays.problem(), arrays.x<T>(), arrays.target<T>(), rows, saved.eps,
                           parameters.affine(), pointer_to(applied), pointer_to(weights));
    };
    return compute(taken.call, Results(taken.call.library()), pass);
}

constexpr Signature kRestored{
    "restored", "x, rows, eps, channel_axis, weight=None, bias=None, epilogue=None, plain=False",
    "Saved, from x and the rows of its statistics as an array of float64; and from the parameters\n"
    "and what followed normalization, where that left no flags."};

py::object restored(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.take_rows(call[Role::rows]);
    if (!saved.has_parameters) saved.keep_parameters(call.call);
    const Index count = saved.channels() == 0 ? 0 : call[Role::x].size() / saved.channels();
    saved.count = static_cast<double>(count);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    saved.epilogue = epilogue_of(call);
    return object_of(std::move(saved));
}

}  // namespace

void register_calls(const py::object& m, py::handle engine) {
    constexpr Role mean = Role::running_mean, var = Role::running_var;
    Operation<Function::forward, kForward, forward, gpu::forward>::add_to(m, engine);
    Operation<Function::normalize, kNormalize, normalize_by<Role::mean, Role::var>,
              gpu::normalize>::add_to(m, engine);
    Operation<Function::normalize_by_running, kNormalizeByRunning, normalize_by<mean, var>,
              gpu::normalized<mean, var, true>>::add_to(m, engine);
    Operation<Function::normalize_by_running, kEvaluate, evaluate,
              gpu::normalized<mean, var, false>>::add_to(m, engine);
    Operation<Function::backward, kBackward, backward, gpu::backward>::add_to(m, engine);
    Operation<Function::backward_constant, kBackwardConstant, backward_constant,
              gpu::backward_constant>::add_to(m, engine);
    Operation<Function::recompute, kRecompute, recompute>::add_to(m, engine);
    Operation<Function::restored, kRestored, restored, gpu::restored>::add_to(m, engine);
}

}  // namespace bnext::bindings
