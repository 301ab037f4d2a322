// What the operations have in common, over the arrays of a checked call, of any library. Kernels
// get only pointers.
#pragma once

#include <algorithm>
#include <cmath>

#include "bindings/taking.hpp"
#include "core/float_mode.hpp"
#include "cpu/operations.hpp"

namespace bnext::bindings {

template <class... Objects>
py::object tuple_of(const Objects&... objects) {
    auto result =
        py::reinterpret_steal<py::object>(PyTuple_Pack(sizeof...(objects), objects.ptr()...));
    if (!result) throw py::error_already_set();
    return result;
}

template <class T>
cpu::Affine<T> affine_of(Intake& call) {
    return {call.vector<Param<T>>(Role::weight), call.vector<Param<T>>(Role::bias)};
}

// f(type, arrays, affine) over the arrays of a call, of the dtype of its data, without the GIL; y
// or dx, made by `results` unless there is `out`. Without `results`, f only reads. `dresidual`:
// where to put the residual's gradient, if it is wanted.
template <class F>
py::object compute(Intake& call, const std::optional<Results>& results, const F& f,
                   py::object* dresidual = nullptr, CallFlags flags = {}) {
    return with_dtype(call[call.call.data()].dtype(), [&](auto type) {
        const FurtherResults further{dresidual != nullptr ? 1 : 0, results ? &*results : nullptr};
        Operands arrays(call, results, further, flags);
        const auto affine = affine_of<decltype(type)>(call);
        without_gil(arrays.elements(), [&] { f(type, arrays, affine); });
        py::object result = arrays.result();
        if (dresidual != nullptr) *dresidual = arrays.further_result(0);
        return result;
    });
}

// --- an activation, a residual -------------------------------------------------------------------

// What a forward pass applies besides, if anything.
template <class T>
std::optional<cpu::Applied<T>> applied_of(const Call& call, const Operands& arrays) {
    const Fused fused = call.applied();
    if (!fused.any()) return {};
    return cpu::Applied<T>{fused, arrays.residual<T>(), arrays.flags()};
}
template <class T>
const cpu::Applied<T>* pointer_to(const std::optional<cpu::Applied<T>>& applied) {
    return applied ? &*applied : nullptr;
}

template <class C>
const cpu::Weights<C>* pointer_to(const std::unique_ptr<cpu::OwnWeights<C>>& weights) {
    return weights != nullptr ? &weights->get() : nullptr;
}

// What it leaves for the backward pass; null without an activation or a residual, and not in place.
// Flags are made by the pass itself.
inline std::shared_ptr<SavedEpilogue> epilogue_of(Intake& call) {
    const Fused fused = call.call.applied();
    if (!fused.any() && !fused.in_place) return nullptr;
    auto kept = std::make_shared<SavedEpilogue>();
    kept->fused = fused;
    if (fused.residual) kept->residual_fingerprint = fingerprint_of(call[Role::residual]);
    return kept;
}
inline CallFlags flags_to_make(const std::shared_ptr<SavedEpilogue>& epilogue) {
    return {epilogue && epilogue->fused.keeps_flags() ? &epilogue->flags : nullptr, nullptr};
}
inline CallFlags flags_to_read(const Saved& saved) {
    const bool are_there = saved.epilogue && saved.epilogue->fused.keeps_flags();
    return {nullptr, are_there ? &saved.epilogue->flags : nullptr};
}

// Once y was written: of a call in place, it is what the backward pass is given.
inline void note_output(const Intake& call, Saved& saved) {
    if (saved.in_place()) saved.fingerprint = fingerprint_of(call[Role::x]);
}

// The weight and the bias of the forward call.
template <class T>
class ParametersAgain {
public:
    explicit ParametersAgain(const Saved& saved) : channels_(saved.weight_of_channels().size()) {
        values_ = cpu::PoolArray<Param<T>>(2 * channels_);
        const auto cast = [](double each) { return static_cast<Param<T>>(each); };
        std::ranges::transform(saved.weight_of_channels(), values_.data(), cast);
        std::ranges::transform(saved.bias_of_channels(), values_.data() + channels_, cast);
    }
    [[nodiscard]] cpu::Affine<T> affine() const {
        return {values_.data(), values_.data() + channels_};
    }

private:
    std::size_t channels_;
    cpu::PoolArray<Param<T>> values_;
};

// What the forward pass applied, for the backward pass.
template <class T>
class AppliedAgain {
public:
    AppliedAgain(const Saved& saved, const Operands& arrays) {
        if (saved.epilogue == nullptr) return;
        parameters_.emplace(saved);
        const SavedEpilogue& kept = *saved.epilogue;
        applied_ = {kept.fused, arrays.residual<T>(), arrays.flags(), arrays.dresidual<T>(),
                    parameters_->affine()};
    }
    [[nodiscard]] const cpu::Applied<T>* get() const { return pointer_to(applied_); }

private:
    std::optional<ParametersAgain<T>> parameters_;
    std::optional<cpu::Applied<T>> applied_;
};

// Where the residual's gradient goes, if the pass makes one.
inline py::object* wanted_dresidual(const Saved& saved, py::object& dresidual) {
    const bool wanted = saved.epilogue && saved.epilogue->fused.residual &&
                        (saved.epilogue->fused.changes_backward() || saved.weights != nullptr);
    return wanted ? &dresidual : nullptr;
}

// Whether a batch's mean and variance, m2 / n, are finite in every channel, as a layer's dtype
// holds them.
inline bool is_finite(const Saved& saved, double n) {
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        const auto fits = [](double value) { return std::isfinite(static_cast<P>(value)); };
        return std::ranges::all_of(saved.row(Row::mean), fits) &&
               std::ranges::all_of(saved.row(Row::m2), [&](double m2) { return fits(m2 / n); });
    });
}

// A layer's running statistics: new = (1 - momentum) * old + momentum * batch, rounded once. The
// correction is Bessel's 1, or 0, which leaves the variance biased. Counts the batch. With a
// counter for skipped batches, a batch that is not finite only counts there. In a group `saved` is
// the whole batch's, so that all members decide alike.
inline void move_running(const Intake& call, const Saved& saved, bool bessel) {
    const bool moves = call.call.has(Role::running_mean) && saved.count > 1;
    const double n = saved.count - (bessel ? 1.0 : 0.0);
    if (call.call.has(Role::num_batches_skipped) && moves) {
        const FloatMode mode;
        if (!is_finite(saved, n)) {
            ++*call[Role::num_batches_skipped].as<std::int64_t>();
            return;
        }
    }
    if (moves) {
        const FloatMode mode;
        const double momentum = call.call.momentum;
        const auto batch_mean = saved.row(Row::mean), batch_m2 = saved.row(Row::m2);
        with_dtype(saved.dtype, [&](auto type) {
            using P = Param<decltype(type)>;
            const auto blend = [&](const ArrayRef& running, std::size_t c, double batch) {
                P& value = running.as<P>()[static_cast<Index>(c) * running.strides[0]];
                value = static_cast<P>((1.0 - momentum) * static_cast<double>(value) +
                                       momentum * batch);
            };
            for (std::size_t c = 0; c < batch_mean.size(); ++c) {
                blend(call[Role::running_mean], c, batch_mean[c]);
                blend(call[Role::running_var], c, batch_m2[c] / n);
            }
        });
    }
    if (call.call.has(Role::num_batches_tracked)) {
        ++*call[Role::num_batches_tracked].as<std::int64_t>();
    }
}

// y from statistics in `saved`, which gets what follows from them, and what an activation leaves.
inline py::object apply_norm_by(Intake& call, Saved& saved, const Results& results,
                                bool keeps = true) {
    auto epilogue = keeps ? epilogue_of(call) : nullptr;
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const auto applied = applied_of<T>(call.call, arrays);
        const auto weights = arrays.weights<T>(saved.weights);
        cpu::apply_norm<T>(arrays.problem(), arrays.x<T>(), arrays.target<T>(), saved.rows(),
                           saved.eps, affine, pointer_to(applied), pointer_to(weights));
    };
    if (keeps) saved.keep_parameters(call.call);
    const py::object y = compute(call, results, pass, nullptr, flags_to_make(epilogue));
    saved.epilogue = std::move(epilogue);
    note_output(call, saved);
    return y;
}

// Sums over a whole batch, one for each channel.
struct Sums {
    explicit Sums(Index channels)
        : dy(static_cast<std::size_t>(channels), 0.0), dy_xmu(dy.size(), 0.0) {}
    // As they were given.
    explicit Sums(const Intake& call) : Sums(call.call.channels()) {
        read_doubles(call[Role::sum_dy], {dy.data(), dy.size()});
        read_doubles(call[Role::sum_dy_xmu], {dy_xmu.data(), dy_xmu.size()});
    }

    // As arrays of NumPy's.
    [[nodiscard]] py::object arrays() const {
        const Results numpy;
        return tuple_of(numpy.vector<double>(dy), numpy.vector<double>(dy_xmu));
    }
    // dweight and dbias.
    [[nodiscard]] std::array<py::object, 2> gradients(const Saved& saved, const double* rstd,
                                                      const Results& results) const {
        return with_dtype(saved.dtype, [&](auto type) {
            using P = Param<decltype(type)>;
            return std::array{results.vector<P>(dy_xmu, rstd), results.vector<P>(dy)};
        });
    }

    cpu::PoolArray<double> dy, dy_xmu;
};

// Saved, of merged Moments; rstd follows when y is written.
inline Saved merged_of(const Taken& taken) {
    const Intake& call = taken.call;
    Saved saved(call.call);
    saved.count = intake::take_real(taken.count, "count");
    saved.weights = taken.weights;
    read_doubles(call[Role::mean], saved.row(Row::mean));
    read_doubles(call[Role::m2], saved.row(Row::m2));
    if (call.call.has(Role::mean_low)) {
        read_doubles(call[Role::mean_low], saved.row(Row::mean_low));
    } else {
        std::ranges::fill(saved.row(Row::mean_low), 0.0);
    }
    const double n = saved.count > 0 ? saved.count : 1.0;
    std::ranges::transform(saved.row(Row::m2), saved.rows().var(),
                           [=](double each) { return each / n; });
    return saved;
}

}  // namespace bnext::bindings
