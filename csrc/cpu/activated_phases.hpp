// The phases of activated passes, and whole such passes: as in phases.hpp, with an activation or an
// addition before it (core/activation.hpp).
#pragma once

#include "core/activation_math.hpp"
#include "cpu/extremes.hpp"
#include "cpu/operation.hpp"
#include "cpu/operations.hpp"
#include "cpu/phases.hpp"

namespace bnext::cpu {

// Writes by NormalizeActivated. in: x, residual.
template <class T>
struct ActivatedNormal : Normal<T> {
    const Activated& activated;

    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double) const {
        const NormConstants by = norm_constants<T>(c, this->rows, this->affine);
        for_each_place_in(region, [&](Index o, Index i) { write_place(in, out, by, o, c, i); });
    }
    void write_place(const View<const T>* in, const View<T>* out, const NormConstants& by, Index o,
                     Index c, Index i) const {
        const Fused& fused = activated.fused;
        double z = by.y(static_cast<double>(*at(in[0], o, c, i)));
        if (fused.residual) z += static_cast<double>(*at(in[1], o, c, i));
        *at(out[0], o, c, i) = value_of<T>(activate(fused, z));
        if (activated.flags.are_kept()) {
            set_flag(activated.flags, activated.flags.at(o, c, i), passes(fused, z) != 0);
        }
    }
};

// g = dy * act'(z) at one place, as the kernels have it. in: x, dy, residual.
template <class T>
struct ThroughAt {
    using C = Compute<T>;
    const View<const T>* in;
    const StatisticsIn& rows;
    const Affine<T>& of_forward;
    const RowsOfZ<T>& of_z;

    [[nodiscard]] bool is_extreme(Index c) const {
        return kHasExtremes<T> && of_z.any_extreme && !of_z.all.activated->fused.in_place &&
               norm_constants<T>(c, rows, of_forward).is_extreme(rows.rstd()[c]);
    }
    // What deviations are taken of: x, or in place z.
    [[nodiscard]] double x(Index o, Index c, Index i) const {
        const auto value = static_cast<double>(*at(in[0], o, c, i));
        const Fused& fused = of_z.all.activated->fused;
        return fused.in_place ? argument_of(fused, value) : value;
    }
    double operator()(Index o, Index c, Index i) const {
        const Activated& activated = *of_z.all.activated;
        const auto value = [&](int k) { return static_cast<C>(*at(in[k], o, c, i)); };
        if (activated.flags.are_kept()) {
            const C flag{flag_at(activated.flags, activated.flags.at(o, c, i)) ? C{1} : C{0}};
            return static_cast<double>(gradient_by_flag(activated.fused, flag, value(1)));
        }
        if (is_extreme(c)) {
            double z = norm_constants<T>(c, rows, of_forward).y(static_cast<double>(value(0)));
            if (activated.fused.residual) z += static_cast<double>(value(2));
            return gradient_through(activated.fused, z, static_cast<double>(value(1)));
        }
        ThroughActivation<C> through{{}, activated.fused};
        for (std::size_t r = 0; r < RowsOfZ<T>::kRows; ++r) {
            through.row[r] = of_z.all.row[r][c * of_z.columns];
        }
        return static_cast<double>(through(value(0), value(1), value(2)));
    }
};

// Sums of g. in: x, dy, residual.
template <class T>
struct CollectActivated : CollectGradients<T> {
    const Affine<T>& of_forward;
    const RowsOfZ<T>& of_z;

    double reduce(const Region& region, double* a, double* b) const {
        const auto part = of_z.from(region.channels.begin);
        return this->setting.kernels.reduce(this->in, region,
                                            this->of.mean() + region.channels.begin, &part, a, b);
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const ThroughAt<T> through{this->in, this->of, of_forward, of_z};
        const auto x = [&](Index o, Index c, Index i) { return through.x(o, c, i); };
        CollectGradients<T>::keep(channels, n, a, b, through, x);
        if (kHasExtremes<T> && of_z.any_extreme) {
            for (Index c = channels.begin; c < channels.end; ++c) {
                if (!through.is_extreme(c)) continue;
                exact_gradient_sums(through, x, this->setting.plan.tiling, c, this->of.mean()[c],
                                    this->sum_dy[c], this->sum_dy_xmu[c]);
            }
        }
        return n;
    }
};

// Writes by GradientActivated. in: x, dy, residual; out: dx, dresidual.
template <class T>
struct ActivatedGradients : Gradients<T> {
    const Affine<T>& of_forward;
    const RowsOfZ<T>& of_z;

    [[nodiscard]] ThroughAt<T> through(const View<const T>* in) const {
        return {in, this->rows, of_forward, of_z};
    }
    [[nodiscard]] bool is_extreme(Index c, double n) const {
        return Gradients<T>::is_extreme(c, n) || through(nullptr).is_extreme(c);
    }
    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double n) const {
        const GradientConstants by = this->constants(c, n);
        const auto at_place = through(in);
        for_each_place_in(region, [&](Index o, Index i) {
            const double g = at_place(o, c, i);
            *at(out[0], o, c, i) = value_of<T>(by.dx(g, at_place.x(o, c, i)));
            if (of_z.all.activated->fused.residual) *at(out[1], o, c, i) = value_of<T>(g);
        });
    }
};

// The arrays of such a pass, in the order of the formulas: what it does without stands for itself
// as x, or as dx, which is not written twice.
template <class T>
struct ActivatedArrays {
    ActivatedArrays(const View<const T>& x, const View<T>& y, const Applied<T>& applied)
        : activated{applied.fused, applied.flags},
          in{x, applied.fused.residual ? applied.residual : x, x},
          out{y, y} {}
    ActivatedArrays(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                    const Applied<T>& applied)
        : activated{applied.fused, applied.flags},
          in{x, dy, applied.fused.reads_residual() ? applied.residual : x},
          out{dx, applied.fused.residual ? applied.dresidual : dx} {}

    Activated activated;
    View<const T> in[3];
    View<T> out[2];
};

// What a phase moves: `reads` arrays, and those that the call has besides.
constexpr int outputs_of(const Fused& fused, Pass pass) {
    return pass == Pass::forward ? 1 : 1 + int{fused.residual};
}
constexpr int operands_of(const Fused& fused, Pass pass, bool writes) {
    const int reads = pass == Pass::forward ? int{fused.residual} : int{fused.reads_residual()};
    const int inputs = pass == Pass::forward ? 1 : 2;
    return inputs + reads + (writes ? outputs_of(fused, pass) : 0);
}

template <class T>
Setting<T> prepare(const Problem& problem, const Fused& fused, Pass pass, bool writes, int phases) {
    const int outputs = phases == 2 ? outputs_of(fused, pass) : 0;
    return prepare<T>(problem, Work{operands_of(fused, pass, writes), phases, outputs}, pass,
                      Epilogue::activated);
}

template <class T>
double activated_forward(const Problem& problem, const View<const T>& x, const View<T>& y,
                         const Affine<T>& affine, double eps, const StatisticsOut& rows,
                         const Applied<T>& applied) {
    using F = Formula<Pass::forward, Epilogue::activated, Compute<T>>;
    const auto setting = prepare<T>(problem, applied.fused, Pass::forward, true, 2);
    const ActivatedArrays<T> arrays(x, y, applied);
    return setting.run(
        Both<CollectMoments<T>, Second<F, T, ActivatedNormal<T>>>{
            {setting, x, rows},
            {setting,
             arrays.in,
             arrays.out,
             {{rows, affine, eps}, arrays.activated},
             &arrays.activated}},
        problem);
}

template <class T>
void activated_apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                          const StatisticsOut& rows, double eps, const Affine<T>& affine,
                          const Applied<T>& applied) {
    using F = Formula<Pass::forward, Epilogue::activated, Compute<T>>;
    const auto setting = prepare<T>(problem, applied.fused, Pass::forward, true, 1);
    const ActivatedArrays<T> arrays(x, y, applied);
    Second<F, T, ActivatedNormal<T>>{
        setting, arrays.in, arrays.out, {{rows, affine, eps}, arrays.activated}, &arrays.activated}
        .run(problem);
}

// The backward pass, its first phase alone (`apply` false), or its second alone (`reduce` false, of
// n values).
template <class T>
void activated_backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                        const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                        double* sum_dy, double* sum_dy_xmu, const Applied<T>& applied, bool reduce,
                        bool apply, double n) {
    using F = Formula<Pass::backward, Epilogue::activated, Compute<T>>;
    using Summing = CollectActivated<T>;
    using Writing = Second<F, T, ActivatedGradients<T>>;
    const auto setting =
        prepare<T>(problem, applied.fused, Pass::backward, apply, reduce && apply ? 2 : 1);
    const ActivatedArrays<T> arrays(dy, x, dx, applied);
    const Affine<T>& affine = applied.of_forward;
    const RowsOfZ<T> of_z(problem, setting,
                          {of.mean(), of.mean_low(), of.rstd(), affine.weight, affine.bias},
                          arrays.activated);
    const Summing summing{{setting, arrays.in, of, sum_dy, sum_dy_xmu}, affine, of_z};
    if (!apply) return void(setting.run(FirstPhaseOnly<Summing>{summing}, problem));
    const ActivatedGradients<T> gradients{
        {of, weight, sum_dy, sum_dy_xmu, applied.scale}, affine, of_z};
    if (!reduce) {
        return Writing{setting, arrays.in, arrays.out, gradients, &arrays.activated, &of_z}.run(
            problem, n);
    }
    setting.run(
        Both<Summing, Writing>{
            summing, {setting, arrays.in, arrays.out, gradients, &arrays.activated, &of_z}},
        problem);
}

}  // namespace bnext::cpu
