// The numbers of a channel in the double backward pass (cpu/double_backward.hpp has the
// derivation): its sums, what the members of a group bring of them, and the coefficients that
// follow. Written once for the CPU and for a GPU.
//
// Members of a group hold parts of a channel's values, and each has gradients of its own by its
// dweight and dbias (p and q), since these are sums over its part. So p and q go into the sums
// before these are added up:
//     E[p g], E[p g xhat]                 in place of p E[g] and p G,
//     k + q + p xhat                      in place of k.
// Pilots are the same for all members. A part by itself has sums about means that are not its own,
// so its share in the gradient by the weight has them all:
//     rstd (sum u g - E[g] sum u - G sum u xhat + pilot (sum g - n E[g] - G sum xhat)),
// the last of which is 0 over the whole batch. (u and g about their pilots.)
#pragma once

#include "core/values.hpp"

namespace bnext {

// Sums over the values of a column, with d = x - mean, u = ddx - its pilot, g = dy act'(z) - its
// pilot, e = dy act''(z) and k = scale u + ddresidual. Curved activations alone
// have sums of e.
enum class TwiceSum : std::uint8_t { d, u, ud, g, gd, ug, e, ed, edd, ek, ekd };
inline constexpr int kTwiceSums = 11, kTwiceSumsOfLines = 6;

// Coefficients of each column, in the order of what they follow.
enum class TwiceRow : std::uint8_t {
    mean,    // of x
    mean_u,  // of ddx
    mean_g,  // of g
    scale,   // weight * rstd: of ddx in h, and of t
    slope,   // of x - mean in h, and of g in the gradient of x
    shift,   // of h
    of_u,    // the gradient of x, besides: of ddx,
    of_d,    // of x - mean,
    offset,  // and a number
};
inline constexpr int kTwiceRows = 9;

// --- of each value: V is a pack of doubles on a CPU, a double on a GPU ---------------------------

// Where a value is not 0, else.
BNEXT_FORMULA double where_not_zero(double test, double then, double otherwise) {
    return test != 0.0 ? then : otherwise;
}

template <class V, int N>
BNEXT_FORMULA V& sum_of(V (&sums)[N], TwiceSum which) {
    return sums[static_cast<int>(which)];
}

// Adds to the sums: d = x - mean, g about its pilot, and u if there is a ddx.
template <class V, int N>
BNEXT_FORMULA void add_twice(V (&sums)[N], const V& d, const V& g, bool has_u, const V& u) {
    V &of_d = sum_of(sums, TwiceSum::d), &of_g = sum_of(sums, TwiceSum::g);
    V& of_gd = sum_of(sums, TwiceSum::gd);
    of_d = of_d + d;
    of_g = of_g + g;
    of_gd = fma(g, d, of_gd);
    if (!has_u) return;
    V &of_u = sum_of(sums, TwiceSum::u), &of_ud = sum_of(sums, TwiceSum::ud);
    V& of_ug = sum_of(sums, TwiceSum::ug);
    of_u = of_u + u;
    of_ud = fma(u, d, of_ud);
    of_ug = fma(u, g, of_ug);
}
// The same of e and k, to the sums from `first` on.
template <class V>
BNEXT_FORMULA void add_curved(V* first, const V& d, const V& e, const V& k) {
    const V ed = e * d, ek = e * k;
    first[0] = first[0] + e;
    first[1] = first[1] + ed;
    first[2] = fma(ed, d, first[2]);
    first[3] = first[3] + ek;
    first[4] = fma(ek, d, first[4]);
}

// A product with the slope; where that is 0, 0, also of infinities, if `selects`.
template <class V>
BNEXT_FORMULA V times_slope(const V& value, const V& slope, bool selects) {
    const V product = value * slope;
    return selects ? where_not_zero(slope, product, like(slope, 0.0)) : product;
}

// h and the gradient by x of a place, in steps: what there is not is left out. `row` gives the
// coefficient of its channel (TwiceRow).
template <class V, class Rows>
BNEXT_FORMULA void begin_twice(const Rows& row, const V& x, V& h, V& of_x) {
    const V d = x - row(TwiceRow::mean);
    h = fma(d, row(TwiceRow::slope), row(TwiceRow::shift));
    of_x = fma(d, row(TwiceRow::of_d), row(TwiceRow::offset));
}
template <class V, class Rows>
BNEXT_FORMULA void take_ddx(const Rows& row, const V& ddx, V& h, V& of_x) {
    const V u = ddx - row(TwiceRow::mean_u);
    h = fma(u, row(TwiceRow::scale), h);
    of_x = fma(u, row(TwiceRow::of_u), of_x);
}
// Once h is whole: t, the gradient by the residual, of act''.
template <class V, class Rows>
BNEXT_FORMULA V take_curve(const Rows& row, const V& dy, const V& curve, const V& h, V& of_x) {
    const V t = (h * dy) * curve;
    of_x = fma(t, row(TwiceRow::scale), of_x);
    return t;
}
template <class V, class Rows>
BNEXT_FORMULA void end_twice(const Rows& row, const V& g, V& of_x) {
    of_x = fma(g - row(TwiceRow::mean_g), row(TwiceRow::slope), of_x);
}

// --- of each channel -----------------------------------------------------------------------------

// The sums of a channel, and the two that have p in them.
struct TwiceSums {
    double sum[kTwiceSums] = {};
    double pg = 0, pgd = 0;  // p g and p g d, with g not about its pilot

    [[nodiscard]] BNEXT_FORMULA double operator[](TwiceSum which) const {
        return sum[static_cast<int>(which)];
    }
};
// How many there are, as rows of numbers: the sums in their order, pg and pgd.
constexpr int twice_rows_of(bool curved) { return (curved ? kTwiceSums : kTwiceSumsOfLines) + 2; }

// f(row, number) for each of them.
template <class Sums, class F>
BNEXT_FORMULA void for_each_twice_sum(Sums& sums, bool curved, const F& f) {
    const int count = curved ? kTwiceSums : kTwiceSumsOfLines;
    for (int s = 0; s < kTwiceSums; ++s) {  // unrolled on a GPU, where sums are in registers
        if (s < count) f(s, sums.sum[s]);
    }
    f(count, sums.pg);
    f(count + 1, sums.pgd);
}

// What a channel's coefficients follow from besides sums.
struct TwiceChannel {
    bool centred, curved;  // whether statistics are the batch's; whether there is an act''
    double rstd, scale, low;
    double p, q;  // gradients by dweight and dbias
    double pilot_u, pilot_g;

    // The sums of n values, as they are added up over members.
    BNEXT_FORMULA void take_in(TwiceSums& sums, double n) const {
        double* const s = sums.sum;
        const auto at = [](TwiceSum which) { return static_cast<int>(which); };
        sums.pg = p * (s[at(TwiceSum::g)] + n * pilot_g);
        sums.pgd = p * (s[at(TwiceSum::gd)] + pilot_g * s[at(TwiceSum::d)]);
        if (!curved) return;
        const double of_xhat = rstd * p, number = q - of_xhat * low;
        s[at(TwiceSum::ek)] += number * s[at(TwiceSum::e)] + of_xhat * s[at(TwiceSum::ed)];
        s[at(TwiceSum::ekd)] += number * s[at(TwiceSum::ed)] + of_xhat * s[at(TwiceSum::edd)];
    }
};

// What follows from the sums of the whole batch.
struct TwiceMeans {
    double n;
    double u = 0, g = 0, with_u = 0, with_g = 0, covariance = 0;  // E[u], E[g], U, G, K
    double pg = 0, with_pg = 0;                                   // E[p g], E[p g xhat]
    double t = 0, td = 0;                                         // sums of t, and of t (x - mean)

    BNEXT_FORMULA TwiceMeans(const TwiceChannel& of, const TwiceSums& sums, double count)
        : n(count) {
        if (of.centred) {
            u = sums[TwiceSum::u] / n;
            g = sums[TwiceSum::g] / n;
            with_u = of.rstd * (sums[TwiceSum::ud] / n - of.low * u);
            with_g = of.rstd * (sums[TwiceSum::gd] / n - of.low * g);
            covariance = sums[TwiceSum::ug] / n - u * g;
            pg = sums.pg / n;
            with_pg = of.rstd * (sums.pgd / n - of.low * pg);
        }
        if (of.curved) {
            t = of_t(of, sums);
            td = of_td(of, sums, t);
        }
    }

    // The sum of t over what has these sums: t = (k + shift + slope d) e.
    [[nodiscard]] BNEXT_FORMULA double of_t(const TwiceChannel& of, const TwiceSums& sums) const {
        const double slope = slope_of(of), shift = -of.scale * u - slope * of.low;
        return sums[TwiceSum::ek] + shift * sums[TwiceSum::e] + slope * sums[TwiceSum::ed];
    }
    [[nodiscard]] BNEXT_FORMULA double of_td(const TwiceChannel& of, const TwiceSums& sums,
                                             double sum_of_t) const {
        const double slope = slope_of(of), shift = -of.scale * u - slope * of.low;
        return sums[TwiceSum::ekd] + shift * sums[TwiceSum::ed] + slope * sums[TwiceSum::edd] -
               of.low * sum_of_t;
    }

private:
    [[nodiscard]] BNEXT_FORMULA double slope_of(const TwiceChannel& of) const {
        return -of.rstd * (of.scale * with_u);
    }
};

// Gradients by the weight and the bias.
struct TwiceParameters {
    double of_weight, of_bias;
};

// Of the whole batch.
BNEXT_FORMULA TwiceParameters twice_parameters(const TwiceChannel& of, const TwiceSums& sums,
                                               const TwiceMeans& means) {
    const double of_dx = of.centred ? means.n * (means.covariance - means.with_u * means.with_g)
                                    : sums[TwiceSum::ug];
    return {of.rstd * of_dx + of.rstd * means.td, means.t};
}
// The share of a part with n values, whose statistics are the whole batch's.
BNEXT_FORMULA TwiceParameters twice_share(const TwiceChannel& of, const TwiceSums& part, double n,
                                          const TwiceMeans& means) {
    const double with_u = of.rstd * (part[TwiceSum::ud] - of.low * part[TwiceSum::u]);
    const double xhat = of.rstd * (part[TwiceSum::d] - of.low * n);
    const double about_pilot =
        part[TwiceSum::ug] - means.g * part[TwiceSum::u] - means.with_g * with_u;
    const double of_pilot = part[TwiceSum::g] - n * means.g - means.with_g * xhat;
    const double t = of.curved ? means.of_t(of, part) : 0.0;
    const double td = of.curved ? means.of_td(of, part, t) : 0.0;
    return {of.rstd * (about_pilot + of.pilot_u * of_pilot) + of.rstd * td, t};
}

// The coefficients of a channel; `is_part`: p differs among members. A member without a ddx, 0
// where others have theirs, has the numbers that follow from it.
BNEXT_FORMULA void set_twice_rows(const TwiceChannel& of, const TwiceMeans& means, bool is_part,
                                  bool has_ddx, double mean, double (&row)[kTwiceRows]) {
    const auto set = [&](TwiceRow which, double value) { row[static_cast<int>(which)] = value; };
    const double slope = of.rstd * (of.p - of.scale * means.with_u);
    double of_d =
        -of.rstd * of.rstd *
        (of.scale * (means.covariance - 3.0 * means.with_u * means.with_g) + means.with_pg);
    double offset = 0;
    if (of.centred) {
        of_d -= of.rstd * of.rstd * (of.scale * (means.td / means.n));
        offset = -of.scale * (means.t / means.n);
        if (is_part) offset += of.rstd * (of.p * (of.pilot_g + means.g) - means.pg);
    }
    const double of_u = -of.rstd * (of.scale * means.with_g);
    double shift = of.q - slope * of.low;
    offset -= of_d * of.low;
    const double mean_u = of.pilot_u + means.u;
    if (!has_ddx && mean_u != 0.0) {
        shift -= of.scale * mean_u;
        offset -= of_u * mean_u;
    }
    set(TwiceRow::mean, mean);
    set(TwiceRow::mean_u, mean_u);
    set(TwiceRow::mean_g, of.pilot_g + means.g);
    set(TwiceRow::scale, of.scale);
    set(TwiceRow::slope, slope);
    set(TwiceRow::shift, shift);
    set(TwiceRow::of_u, of_u);
    set(TwiceRow::of_d, of_d);
    set(TwiceRow::offset, offset);
}

}  // namespace bnext
