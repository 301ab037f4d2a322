// The phases of passes over positions with weights (cpu/weights.hpp), and those passes: as in
// phases.hpp, with n the sum of the weights of positions that count.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/operation.hpp"
#include "cpu/operations.hpp"
#include "cpu/phases.hpp"
#include "cpu/weighted_operations.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu {

// --- channels of bfloat16 whose sums left float32's range (cpu/range.hpp), over what counts
// ---------

// Calls f(o, i, weight) for every position that counts, until it is false.
template <class C, class F>
bool for_each_counted(const Weights<C>& weights, Index size, const F& f) {
    for (Index k = 0; k < size; ++k) {
        const Index number = weights.counted[k];
        const Index o = number / weights.inner, i = number % weights.inner;
        if (!f(o, i, weights.weight(o, i))) return false;
    }
    return true;
}

// Of a channel, about a value of its own. With a value that is no number they stay as they are.
template <class T>
void exact_weighted_moments(const View<const T>& x, const Weights<Compute<T>>& weights, Index size,
                            Index c, double& mean, double& m2) {
    const UsualPlaces& usual = weights.usual;
    const auto value = [&](Index o, Index i) { return static_cast<double>(*at(x, o, c, i)); };
    const double origin = median_of(value(usual.first.outer, usual.first.inner),
                                    value(usual.middle.outer, usual.middle.inner),
                                    value(usual.last.outer, usual.last.inner));
    double sum = 0.0, rest = 0.0, squares = 0.0;
    const bool are_numbers = for_each_counted(weights, size, [&](Index o, Index i, double w) {
        const double d = value(o, i) - origin;
        sum += w * d;
        return std::isfinite(d);
    });
    if (!are_numbers) return;
    const double near = sum / weights.total;
    for_each_counted(weights, size, [&](Index o, Index i, double w) {
        const double d = (value(o, i) - origin) - near;
        rest += w * d;
        squares += w * d * d;
        return true;
    });
    const double all = squares - rest * (rest / weights.total);
    mean = origin + (near + rest / weights.total);
    m2 = all < 0.0 ? 0.0 : all;
}

// Where dy(o, c, i) and x(o, c, i) are the gradient and the value at a place.
template <class C, class Dy, class X>
[[gnu::noinline, gnu::cold]] void exact_counted_sums(const Dy& dy, const X& x,
                                                     const Weights<C>& weights, Index size, Index c,
                                                     double mean, double& sum_dy,
                                                     double& sum_dy_xmu) {
    double s1 = 0.0, s2 = 0.0;
    const bool are_numbers = for_each_counted(weights, size, [&](Index o, Index i, double) {
        const double grad = dy(o, c, i);
        const double product = grad * (x(o, c, i) - mean);
        s1 += grad;
        s2 += product;
        return std::isfinite(product);
    });
    if (!are_numbers) return;
    sum_dy = s1;
    sum_dy_xmu = s2;
}

// --- phases
// ---------------------------------------------------------------------------------------

template <class T>
struct CollectWeightedMoments {
    const Setting<T>& setting;
    const View<const T>& x;
    const StatisticsOut& out;
    const Weights<Compute<T>>& weights;
    static constexpr bool kKeepsApart = true;

    double reduce(const Region& region, double* a, double* b) const {
        CoefficientsIn<Compute<T>> by{};
        by.weights = &weights;
        return setting.kernels.reduce(&x, region, nullptr, &by, a, b);
    }
    // Chunks may have no position that counts.
    void merge(double done, double more, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        if (more == 0.0) return;
        if (done == 0.0) {
            std::copy_n(more_a, channels, a);
            std::copy_n(more_b, channels, b);
            return;
        }
        const MergeShares shares(done, more);
        for (Index i = 0; i < channels; ++i) bnext::merge(a[i], b[i], more_a[i], more_b[i], shares);
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const UsualPlaces& usual = weights.usual;
        const auto value = [&](const Place& place, Index c) {
            return static_cast<Compute<T>>(*at(x, place.outer, c, place.inner));
        };
        for (Index c = channels.begin; c < channels.end; ++c) {
            const Index k = c - channels.begin;
            const double origin =
                median_of(value(usual.first, c), value(usual.middle, c), value(usual.last, c));
            const HighLow mean = two_sum(origin, a[k]);
            out.mean()[c] = mean.high;
            out.mean_low()[c] = kHasMeanLow<T> ? mean.low : 0.0;
            out.m2()[c] = b[k];
        }
        if constexpr (kMayLeaveRange<T>) {
            const double smallest = kSmallestShare * n;
            if (setting.table.any_beyond(channels.size(), b, smallest)) mend(channels, smallest);
        }
        return n;
    }

private:
    // Channels without any variance are seen by their values: all are one.
    void mend(const ChannelRange& channels, double smallest) const {
        const Index size = weights.tiles[setting.plan.tiling.tiles()].begin;
        for (Index c = channels.begin; c < channels.end; ++c) {
            double &mean = out.mean()[c], &m2 = out.m2()[c];
            if (m2 >= smallest && std::isfinite(m2)) continue;
            if (m2 == 0.0 && std::abs(mean) >= kFarFromZero) continue;
            exact_weighted_moments(x, weights, size, c, mean, m2);
        }
    }
};

// Writes by Normalize where positions count.
template <class T>
struct WeightedNormal : Normal<T> {
    const Weights<Compute<T>>& weights;

    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double n) const {
        if (weights.outside == Outside::normalized) {
            return Normal<T>::write_one(in, out, region, c, n);
        }
        const NormConstants by = norm_constants<T>(c, this->rows, this->affine);
        for_each_place_in(region, [&](Index o, Index i) {
            const T x = *at(in[0], o, c, i);
            const T outside = weights.outside == Outside::unchanged ? x : T{};
            *at(out[0], o, c, i) =
                weights.counts(o, i) ? value_of<T>(by.y(static_cast<double>(x))) : outside;
        });
    }
};

template <class T>
struct CollectWeightedGradients : CollectGradients<T> {
    const Weights<Compute<T>>& weights;

    double reduce(const Region& region, double* a, double* b) const {
        CoefficientsIn<Compute<T>> by{};
        by.weights = &weights;
        return this->setting.kernels.reduce(this->in, region,
                                            this->of.mean() + region.channels.begin, &by, a, b);
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const auto value_of_input = [&](int k) {
            return [this, k](Index o, Index c, Index i) {
                return static_cast<double>(*at(this->in[k], o, c, i));
            };
        };
        return keep(channels, n, a, b, value_of_input(1), value_of_input(0));
    }
    // Where dy(o, c, i) and x(o, c, i) are the gradients and the values that were summed.
    template <class Dy, class X>
    double keep(const ChannelRange& channels, double n, const double* a, const double* b,
                const Dy& dy, const X& x) const {
        std::copy_n(a, channels.size(), this->sum_dy + channels.begin);
        std::copy_n(b, channels.size(), this->sum_dy_xmu + channels.begin);
        if constexpr (kHasMeanLow<T>) {
            for (Index c = channels.begin; c < channels.end; ++c) {
                this->sum_dy_xmu[c] -= this->of.mean_low()[c] * this->sum_dy[c];
            }
        }
        if constexpr (kMayLeaveRange<T>) {
            const double smallest = kSmallestShare * n;
            const auto& table = this->setting.table;
            if (table.any_beyond(channels.size(), a, 0.0) ||
                table.any_beyond(channels.size(), b, smallest)) {
                for (Index c = channels.begin; c < channels.end; ++c) {
                    const double product = std::abs(this->sum_dy_xmu[c]);
                    if (std::isfinite(this->sum_dy[c]) && std::isfinite(product) &&
                        product >= smallest) {
                        continue;
                    }
                    sum_exactly(dy, x, c);
                }
            }
        }
        return n;
    }

protected:
    template <class Dy, class X>
    void sum_exactly(const Dy& dy, const X& x, Index c) const {
        const Index size = weights.tiles[this->setting.plan.tiling.tiles()].begin;
        exact_counted_sums(dy, x, weights, size, c, this->of.mean()[c], this->sum_dy[c],
                           this->sum_dy_xmu[c]);
    }
};

// dx of a position of weight w.
inline double weighted_dx(const GradientConstants& by, double dy, double x, double w) {
    return (dy + w * ((x - by.mean) * by.slope - by.offset)) * by.scale;
}

// Writes by Gradient or WeightedGradient where positions count.
template <class T>
struct WeightedGradients : Gradients<T> {
    const Weights<Compute<T>>& weights;

    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double n) const {
        const GradientConstants by = this->constants(c, n);
        for_each_place_in(region, [&](Index o, Index i) {
            if (!weights.counts(o, i)) {
                *at(out[0], o, c, i) = T{};
                return;
            }
            const auto x = static_cast<double>(*at(in[0], o, c, i));
            const auto dy = static_cast<double>(*at(in[1], o, c, i));
            *at(out[0], o, c, i) = value_of<T>(weighted_dx(by, dy, x, weights.weight(o, i)));
        });
    }
};

// --- passes
// ---------------------------------------------------------------------------------------

template <class T>
using WeightedForward = Formula<Pass::forward, Epilogue::none, Compute<T>>;
template <class T>
using WeightedBackward = Formula<Pass::backward, Epilogue::none, Compute<T>>;

// The setting of what writes y: the plain kernels where all positions are written alike.
template <class T>
Setting<T> writing(const Setting<T>& weighted, const Weights<Compute<T>>& weights,
                   Epilogue epilogue = Epilogue::none) {
    Setting<T> setting = weighted;
    if (weights.outside == Outside::normalized) {
        setting.kernels = weighted.table.template kernels<T>(weighted.plan.tiling.walk(),
                                                             Pass::forward, epilogue);
    }
    return setting;
}

template <class T>
double weighted_collect_stats(const Problem& given, const View<const T>& x,
                              const StatisticsOut& out, const Weights<Compute<T>>& weights) {
    const Problem problem = problem_of_positions(given);
    const auto setting =
        prepare_weighted<T>(problem, kSummingWork<WeightedForward<T>>, Pass::forward);
    using Collect = CollectWeightedMoments<T>;
    return setting.run(FirstPhaseOnly<Collect>{{setting, x, out, weights}}, problem);
}

template <class T>
void weighted_apply_norm(const Problem& given, const View<const T>& x, const View<T>& y,
                         const StatisticsOut& rows, double eps, const Affine<T>& affine,
                         const Weights<Compute<T>>& weights) {
    const Problem problem = problem_of_positions(given);
    const auto by_weights =
        prepare_weighted<T>(problem, kWritingWork<WeightedForward<T>>, Pass::forward);
    const auto setting = writing(by_weights, weights);
    Second<WeightedForward<T>, T, WeightedNormal<T>>{
        setting, &x, &y, {{rows, affine, eps}, weights}, nullptr, nullptr, &weights}
        .run(problem);
}

template <class T>
double weighted_forward(const Problem& given, const View<const T>& x, const View<T>& y,
                        const Affine<T>& affine, double eps, const StatisticsOut& out,
                        const Weights<Compute<T>>& weights) {
    const Problem problem = problem_of_positions(given);
    const auto setting =
        prepare_weighted<T>(problem, kWholeWork<WeightedForward<T>>, Pass::forward);
    const auto second = writing(setting, weights);
    return setting.run(
        Both<CollectWeightedMoments<T>, Second<WeightedForward<T>, T, WeightedNormal<T>>>{
            {setting, x, out, weights},
            {second, &x, &y, {{out, affine, eps}, weights}, nullptr, nullptr, &weights}},
        problem);
}

template <class T>
void weighted_backward(const Problem& given, const View<const T>& dy, const View<const T>& x,
                       const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                       double* sum_dy, double* sum_dy_xmu, const Weights<Compute<T>>& weights,
                       bool reduce, bool apply, double n) {
    using F = WeightedBackward<T>;
    using Collect = CollectWeightedGradients<T>;
    using Writing = Second<F, T, WeightedGradients<T>>;
    const Problem problem = problem_of_positions(given);
    const Work work = reduce && apply ? kWholeWork<F> : reduce ? kSummingWork<F> : kWritingWork<F>;
    const auto setting = prepare_weighted<T>(problem, work, Pass::backward);
    const View<const T> in[] = {x, dy};
    const Collect collect{{setting, in, of, sum_dy, sum_dy_xmu}, weights};
    if (!apply) return void(setting.run(FirstPhaseOnly<Collect>{collect}, problem));
    const WeightedGradients<T> gradients{{of, weight, sum_dy, sum_dy_xmu}, weights};
    if (!reduce) {
        return Writing{setting, in, &dx, gradients, nullptr, nullptr, &weights}.run(problem, n);
    }
    setting.run(
        Both<Collect, Writing>{collect, {setting, in, &dx, gradients, nullptr, nullptr, &weights}},
        problem);
}

}  // namespace bnext::cpu
