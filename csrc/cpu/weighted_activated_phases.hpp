// The phases of activated passes over positions with weights, and those passes: what
// activated_phases.hpp and weighted_phases.hpp have, together. A residual's gradient is 0 where
// positions do not count, so it is written also where no activation follows.
#pragma once

#include "cpu/activated_phases.hpp"
#include "cpu/weighted_phases.hpp"

namespace bnext::cpu {

// Writes by NormalizeActivated where positions count. in: x, residual.
template <class T>
struct WeightedActivatedNormal : ActivatedNormal<T> {
    const Weights<Compute<T>>& weights;

    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double) const {
        const NormConstants by = norm_constants<T>(c, this->rows, this->affine);
        for_each_place_in(region, [&](Index o, Index i) {
            if (weights.outside == Outside::normalized || weights.counts(o, i)) {
                return this->write_place(in, out, by, o, c, i);
            }
            *at(out[0], o, c, i) =
                weights.outside == Outside::unchanged ? *at(in[0], o, c, i) : T{};
        });
    }
};

// Sums of g where positions count. in: x, dy, residual.
template <class T>
struct CollectWeightedActivated : CollectWeightedGradients<T> {
    const Affine<T>& of_forward;
    const RowsOfZ<T>& of_z;

    double reduce(const Region& region, double* a, double* b) const {
        auto part = of_z.from(region.channels.begin);
        part.weights = &this->weights;
        return this->setting.kernels.reduce(this->in, region,
                                            this->of.mean() + region.channels.begin, &part, a, b);
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const ThroughAt<T> through{this->in, this->of, of_forward, of_z};
        const auto x = [&](Index o, Index c, Index i) { return through.x(o, c, i); };
        CollectWeightedGradients<T>::keep(channels, n, a, b, through, x);
        if (kHasExtremes<T> && of_z.any_extreme) {
            for (Index c = channels.begin; c < channels.end; ++c) {
                if (through.is_extreme(c)) this->sum_exactly(through, x, c);
            }
        }
        return n;
    }
};

// Writes by GradientActivated, or by it with the share of a weight, where positions count. in: x,
// dy, residual; out: dx, dresidual.
template <class T>
struct WeightedActivatedGradients : ActivatedGradients<T> {
    const Weights<Compute<T>>& weights;

    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double n) const {
        const GradientConstants by = this->constants(c, n);
        const auto at_place = this->through(in);
        const bool has_residual = this->of_z.all.activated->fused.residual;
        for_each_place_in(region, [&](Index o, Index i) {
            double g = 0.0, dx = 0.0;
            if (weights.counts(o, i)) {
                g = at_place(o, c, i);
                dx = weighted_dx(by, g, at_place.x(o, c, i), weights.weight(o, i));
            }
            *at(out[0], o, c, i) = value_of<T>(dx);
            if (has_residual) *at(out[1], o, c, i) = value_of<T>(g);
        });
    }
};

// --- passes
// ---------------------------------------------------------------------------------------

template <class T>
Setting<T> prepare_weighted(const Problem& problem, const Fused& fused, Pass pass, bool writes,
                            int phases) {
    return prepare_weighted<T>(problem, Work{operands_of(fused, pass, writes), phases}, pass,
                               Epilogue::activated);
}

// The first phase is as without an activation.
template <class T>
double weighted_activated_forward(const Problem& given, const View<const T>& x, const View<T>& y,
                                  const Affine<T>& affine, double eps, const StatisticsOut& rows,
                                  const Applied<T>& applied, const Weights<Compute<T>>& weights) {
    using F = Formula<Pass::forward, Epilogue::activated, Compute<T>>;
    const Problem problem = problem_of_positions(given);
    const auto setting = prepare_weighted<T>(problem, applied.fused, Pass::forward, true, 2);
    const auto second = writing(setting, weights, Epilogue::activated);
    const ActivatedArrays<T> arrays(x, y, applied);
    return setting.run(
        Both<CollectWeightedMoments<T>, Second<F, T, WeightedActivatedNormal<T>>>{
            {setting, x, rows, weights},
            {second,
             arrays.in,
             arrays.out,
             {{{rows, affine, eps}, arrays.activated}, weights},
             &arrays.activated,
             nullptr,
             &weights}},
        problem);
}

template <class T>
void weighted_activated_apply_norm(const Problem& given, const View<const T>& x, const View<T>& y,
                                   const StatisticsOut& rows, double eps, const Affine<T>& affine,
                                   const Applied<T>& applied, const Weights<Compute<T>>& weights) {
    using F = Formula<Pass::forward, Epilogue::activated, Compute<T>>;
    const Problem problem = problem_of_positions(given);
    const auto by_weights = prepare_weighted<T>(problem, applied.fused, Pass::forward, true, 1);
    const auto setting = writing(by_weights, weights, Epilogue::activated);
    const ActivatedArrays<T> arrays(x, y, applied);
    Second<F, T, WeightedActivatedNormal<T>>{
        setting,           arrays.in,
        arrays.out,        {{{rows, affine, eps}, arrays.activated}, weights},
        &arrays.activated, nullptr,
        &weights}
        .run(problem);
}

template <class T>
void weighted_activated_backward(const Problem& given, const View<const T>& dy,
                                 const View<const T>& x, const View<T>& dx, const StatisticsIn& of,
                                 const Param<T>* weight, double* sum_dy, double* sum_dy_xmu,
                                 const Applied<T>& applied, const Weights<Compute<T>>& weights,
                                 bool reduce, bool apply, double n) {
    using F = Formula<Pass::backward, Epilogue::activated, Compute<T>>;
    using Summing = CollectWeightedActivated<T>;
    using Writing = Second<F, T, WeightedActivatedGradients<T>>;
    const Problem problem = problem_of_positions(given);
    const auto setting =
        prepare_weighted<T>(problem, applied.fused, Pass::backward, apply, reduce && apply ? 2 : 1);
    const ActivatedArrays<T> arrays(dy, x, dx, applied);
    const Affine<T>& affine = applied.of_forward;
    const RowsOfZ<T> of_z(problem, setting,
                          {of.mean(), of.mean_low(), of.rstd(), affine.weight, affine.bias},
                          arrays.activated);
    const Summing summing{{{setting, arrays.in, of, sum_dy, sum_dy_xmu}, weights}, affine, of_z};
    if (!apply) return void(setting.run(FirstPhaseOnly<Summing>{summing}, problem));
    const WeightedActivatedGradients<T> gradients{
        {{of, weight, sum_dy, sum_dy_xmu, applied.scale}, affine, of_z}, weights};
    if (!reduce) {
        return Writing{setting,           arrays.in, arrays.out, gradients,
                       &arrays.activated, &of_z,     &weights}
            .run(problem, n);
    }
    setting.run(Both<Summing, Writing>{summing,
                                       {setting, arrays.in, arrays.out, gradients,
                                        &arrays.activated, &of_z, &weights}},
                problem);
}

}  // namespace bnext::cpu
