// The kernels of the double backward pass (cpu/double_backward.hpp has the derivation):
//
//   find_twice_pilots  of each channel, values that sums of ddx and of g are about
//   reduce_twice       the sums of each channel's parts, about pilots
//   finish_twice       parts merged; coefficients, and gradients by the weight and the bias
//   apply_twice        the gradients by dy, x and the residual
//
// Units are single values, or of planes four: rows of single channels are as wide as a line of
// memory, and a thread has the sums of one channel.
//
// Bytes:  x, dy, ddx, ddresidual and the residual in each of two launches; each result once.
// Order:  a thread's values as they come; lanes of a warp by one tree; warps by their numbers;
// parts
//         by a warp, lanes taking them in turn, and one tree. A launch gives the same bits every
//         time.
// Error:  as on the CPU: products of float32 values are exact, sums in double, g and e rounded to
//         the arithmetic's type, results rounded once.
#pragma once

#include "core/double_backward.hpp"
#include "core/second_derivatives.hpp"
#include "cuda/activated.hpp"
#include "cuda/cell_kernels.hpp"
#include "cuda/per_channel.hpp"

namespace bnext::cuda {

template <class T, int V>
using TwiceKind = Kind<T, Layout::planar, V, 2>;

// The arrays in the order of TwiceArray: the first kInputs of them are read.
template <int N>
struct TwiceArrays {
    static constexpr int kCount = N;
    const Operand* of[N];
    BNEXT_DEVICE explicit TwiceArrays(const Arguments& a) {
        const Operand* const all[] = {
            &a.in[0],    &a.in[1],       &a.twice.ddx,  &a.twice.ddresidual,
            &a.residual, &a.twice.of_dy, &a.twice.of_x, &a.twice.of_residual};
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) of[i] = all[i];
    }
};
using TwiceInputs = TwiceArrays<5>;
using TwiceOperands = TwiceArrays<8>;

BNEXT_DEVICE bool is_curved(const Arguments& a) { return !a.fused.is_piecewise_linear(); }
BNEXT_DEVICE bool has_activation(const Arguments& a) {
    return a.fused.activation != Activation::none;
}
BNEXT_DEVICE int twice_sums(const Arguments& a) {
    return is_curved(a) ? kTwiceSums : kTwiceSumsOfLines;
}
BNEXT_DEVICE double* twice_pilot(const Arguments& a, int row, Index channel) {
    return a.twice.pilots + row * a.cut.channels + channel;
}

// --- pilots --------------------------------------------------------------------------------------

// The median of a channel's first, middle and last value, as on the CPU (cpu/view.hpp), but for
// which value of a unit that is.
template <class K>
BNEXT_DEVICE double usual_value(const Cut& cut, const Operand& of, Index channel) {
    using T = typename K::T;
    const auto value_at = [&](Index position) {
        const Index at = reinterpret_cast<Index>(of.data) + channel * of.channel +
                         position / cut.run * of.outer + position % cut.run * of.along;
        T value[1] = {device::load(reinterpret_cast<const T*>(at))};
        return static_cast<double>(device::widened_of<1>(value, 0));
    };
    const double first = value_at(0), middle = value_at(cut.positions / 2);
    const double last = value_at(cut.positions - 1);
    const double low = first < middle ? first : middle, high = first < middle ? middle : first;
    const double top = high < last ? high : last;
    return low < top ? top : low;
}

template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS find_twice_pilots(BNEXT_CONSTANT Arguments a) {
    const Index channel = channel_of_thread();
    if (channel >= a.cut.channels) return;
    const bool of_u = a.twice.centred && a.twice.ddx.data != nullptr;
    const bool of_g = a.twice.centred && !has_activation(a);
    *twice_pilot(a, 0, channel) = of_u ? usual_value<K>(a.cut, a.twice.ddx, channel) : 0.0;
    *twice_pilot(a, 1, channel) = of_g ? usual_value<K>(a.cut, a.in[1], channel) : 0.0;
}

// --- act' and act'' ------------------------------------------------------------------------------

template <class C>
BNEXT_DEVICE_CALL C curve_at(Activation activation, C z) {
    return second_derivative(activation, z);
}

// Of a channel: z at its values.
template <class C>
struct TwiceDerivatives {
    Fused fused;
    C center = 0, scale = 0, shift = 0;

    BNEXT_DEVICE TwiceDerivatives(const Arguments& a, Index channel, bool active)
        : fused(fused_of(a)) {
        if (!active || !has_activation(a)) return;
        center = static_cast<C>(*statistic(a, Row::mean, channel));
        scale = static_cast<C>(*scale_of_z(a, channel));
        shift = static_cast<C>(*shift_of_z(a, channel));
    }
    BNEXT_DEVICE void take(C x, C residual, C& slope, C& curve) const {
        C z = device::fma_of(x - center, scale, shift);
        if (fused.residual) z = z + residual;
        slope = gradient_through(fused, z, C{1});
        curve = fused.is_piecewise_linear() ? C{0} : curve_at<C>(fused.activation, z);
    }
};

// A unit of an array; 0 where there is none.
template <class K>
BNEXT_DEVICE typename K::U twice_unit(const Operand* of, Index at, bool exists) {
    typename K::U unit{};
    if (exists && of->data != nullptr) unit = device::load(reinterpret_cast<typename K::U*>(at));
    return unit;
}

// --- sums ----------------------------------------------------------------------------------------

// The numbers of a part: of each sum, its columns.
BNEXT_DEVICE double* twice_partials(const Arguments& a, Index slab, int part) {
    return a.twice.partials + (slab * a.cut.parts + part) * twice_sums(a) * a.cut.columns;
}

// A thread's sums to its block's.
BNEXT_DEVICE void merge_twice(const Arguments& a, const double (&own)[kTwiceSums], double* scratch,
                              double* result) {
    const int lane = device::thread() % kWarp, warp = device::thread() / kWarp;
    const int columns = a.cut.columns, count = twice_sums(a), width = count * columns;
    BNEXT_UNROLL
    for (int s = 0; s < kTwiceSums; ++s) {
        if (s >= count) break;
        double sum = own[s];
        for (int lanes = kWarp / 2; lanes >= columns; lanes /= 2) {
            sum += device::shuffle_xor(sum, lanes);
        }
        if (lane < columns) scratch[warp * width + s * columns + lane] = sum;
    }
    device::block_barrier();
    for (int i = device::thread(); i < width; i += device::threads()) {
        double sum = scratch[i];
        for (int w = 1; w < device::threads() / kWarp; ++w) sum += scratch[w * width + i];
        result[i] = sum;
    }
}

template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS reduce_twice(BNEXT_CONSTANT Arguments a) {
    using C = typename K::C;
    using U = typename K::U;
    const Cut& cut = a.cut;
    const Place place = place_of(cut, device::block());
    const Index channel = cut.channel(place.group, device::thread() % cut.columns);
    const bool active = channel < cut.channels;
    const TwiceDerivatives<C> derivatives(a, channel, active);
    const bool curved = is_curved(a), activated = has_activation(a);
    const bool has_u = a.twice.ddx.data != nullptr;
    double mean = 0, of_u = 0, of_g = 0, scale = 0;
    if (active) {
        mean = *statistic(a, Row::mean, channel);
        of_u = *twice_pilot(a, 0, channel);
        of_g = *twice_pilot(a, 1, channel);
        scale = parameter<K>(a, a.weight, channel, 1.0) * *statistic(a, Row::rstd, channel);
    }
    double sums[kTwiceSums] = {};
    const TwiceInputs inputs(a);
    Cursor<TwiceInputs::kCount, K::kRuns> at(cut, Walk<K::kRuns>(cut, place.part, device::thread()),
                                             inputs.of, channel, active);
    at.all_units(cut, inputs.of, [&](const Index(&from)[TwiceInputs::kCount]) {
        const U x = twice_unit<K>(inputs.of[0], from[0], true);
        const U dy = twice_unit<K>(inputs.of[1], from[1], true);
        const U ddx = twice_unit<K>(inputs.of[2], from[2], true);
        const U ddresidual = twice_unit<K>(inputs.of[3], from[3], curved);
        const U residual = twice_unit<K>(inputs.of[4], from[4], activated);
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const C value = wide<K>(x, v);
            C g = wide<K>(dy, v), e = C{0};
            if (activated) {
                C slope, curve;
                derivatives.take(value, wide<K>(residual, v), slope, curve);
                e = g * curve;
                g = curved ? g * slope
                           : static_cast<C>(times_slope(static_cast<double>(g),
                                                        static_cast<double>(slope), true));
            }
            const double d = static_cast<double>(value) - mean;
            const double u = has_u ? static_cast<double>(wide<K>(ddx, v)) - of_u : 0.0;
            add_twice(sums, d, static_cast<double>(g) - of_g, has_u, u);
            if (!curved) continue;
            const double k = device::fma_of(u, scale, static_cast<double>(wide<K>(ddresidual, v)));
            add_curved(sums + kTwiceSumsOfLines, d, static_cast<double>(e), k);
        }
    });
    merge_twice(a, sums, reinterpret_cast<double*>(device::shared_memory()),
                twice_partials(a, place.group, place.part));
}

// --- numbers of channels -------------------------------------------------------------------------

template <class P>
BNEXT_DEVICE double of_parameter(const void* values, Index channel, double otherwise) {
    return values != nullptr ? static_cast<double>(static_cast<const P*>(values)[channel])
                             : otherwise;
}

template <class P>
BNEXT_DEVICE TwiceChannel twice_channel(const Arguments& a, Index channel) {
    const double rstd = *statistic(a, Row::rstd, channel);
    return {a.twice.centred,
            is_curved(a),
            rstd,
            of_parameter<P>(a.weight, channel, 1.0) * rstd,
            sizeof(P) == 8 ? *statistic(a, Row::mean_low, channel) : 0.0,
            of_parameter<P>(a.twice.ddweight, channel, 0.0),
            of_parameter<P>(a.twice.ddbias, channel, 0.0),
            *twice_pilot(a, 0, channel),
            *twice_pilot(a, 1, channel)};
}

// A row of sums for each channel, to read or to write.
template <class F>
BNEXT_DEVICE void for_each_row(const Arguments& a, double* rows, Index channel, TwiceSums& sums,
                               const F& f) {
    for_each_twice_sum(sums, is_curved(a), [&](int row, double& number) {
        f(rows[row * a.cut.channels + channel], number);
    });
}

// The coefficients of a channel, and its gradients by parameters, from the sums of the whole batch,
// or of a part of it and of all.
template <class P>
BNEXT_DEVICE void take_twice(const Arguments& a, Index channel, const TwiceChannel& of,
                             const TwiceSums& part, const TwiceSums& all, double count,
                             bool is_part) {
    const TwiceMeans means(of, all, count);
    const TwiceParameters gradients =
        is_part ? twice_share(of, part, a.count, means) : twice_parameters(of, all, means);
    if (a.twice.of_weight != nullptr) {
        static_cast<P*>(a.twice.of_weight)[channel] = static_cast<P>(gradients.of_weight);
    }
    if (a.twice.of_bias != nullptr) {
        static_cast<P*>(a.twice.of_bias)[channel] = static_cast<P>(gradients.of_bias);
    }
    double row[kTwiceRows];
    set_twice_rows(of, means, is_part, a.twice.ddx.data != nullptr,
                   *statistic(a, Row::mean, channel), row);
    for (int r = 0; r < kTwiceRows; ++r) a.twice.rows[r * a.cut.channels + channel] = row[r];
}

// A warp for each channel.
template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS finish_twice(BNEXT_CONSTANT Arguments a) {
    const Index channel = warp_of_grid();
    if (channel >= a.cut.channels) return;
    const int lane = device::thread() % kWarp;
    const auto read = [](double from, double& to) { to = from; };
    const TwiceChannel of = twice_channel<P>(a, channel);
    TwiceSums sums;
    if (a.twice.partials == nullptr) {  // given ones
        if (lane != 0) return;
        TwiceSums all;
        for_each_row(a, a.twice.total, channel, all, read);
        if (a.twice.sums != nullptr) for_each_row(a, a.twice.sums, channel, sums, read);
        const bool is_part = a.twice.sums != nullptr && a.count != a.twice.count;
        return take_twice<P>(a, channel, of, sums, all, a.twice.count, is_part);
    }
    const Index slab = channel / a.cut.columns;
    const int column = static_cast<int>(channel % a.cut.columns);
    BNEXT_UNROLL
    for (int s = 0; s < kTwiceSums; ++s) {
        if (s >= twice_sums(a)) break;
        double own = 0;
        for (int part = lane; part < a.cut.parts; part += kWarp) {
            own += twice_partials(a, slab, part)[s * a.cut.columns + column];
        }
        sums.sum[s] = sum_over_lanes(own);
    }
    if (lane != 0) return;
    of.take_in(sums, a.count);
    if (a.twice.sums == nullptr) return take_twice<P>(a, channel, of, sums, sums, a.count, false);
    for_each_row(a, a.twice.sums, channel, sums, [](double& to, double from) { to = from; });
}

// --- results -------------------------------------------------------------------------------------

template <class K>
BNEXT_DEVICE void store_twice(const Operand* of, Index at, const double (&values)[K::V]) {
    if (of->data == nullptr) return;
    typename K::C narrow[K::V];
    BNEXT_UNROLL
    for (int v = 0; v < K::V; ++v) narrow[v] = static_cast<typename K::C>(values[v]);
    store<K>(at, narrow, true);
}

template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS apply_twice(BNEXT_CONSTANT Arguments a) {
    using C = typename K::C;
    using U = typename K::U;
    const Cut& cut = a.cut;
    // Backwards: the caches have the end of what came before.
    const Place place = place_of(cut, cut.slabs * cut.parts - 1 - device::block());
    const Index channel = cut.channel(place.group, device::thread() % cut.columns);
    const bool active = channel < cut.channels;
    const TwiceDerivatives<C> derivatives(a, channel, active);
    const bool curved = is_curved(a), activated = has_activation(a);
    double rows[kTwiceRows] = {};
    if (active) {
        BNEXT_UNROLL
        for (int r = 0; r < kTwiceRows; ++r) rows[r] = a.twice.rows[r * cut.channels + channel];
    }
    const auto row = [&](TwiceRow which) { return rows[static_cast<int>(which)]; };
    const TwiceOperands arrays(a);
    Cursor<TwiceOperands::kCount, K::kRuns> cursor(
        cut, Walk<K::kRuns>(cut, place.part, device::thread()), arrays.of, channel, active);
    cursor.all_units(cut, arrays.of, [&](const Index(&at)[TwiceOperands::kCount]) {
        const U x = twice_unit<K>(arrays.of[0], at[0], true);
        const U dy = twice_unit<K>(arrays.of[1], at[1], true);
        const U ddx = twice_unit<K>(arrays.of[2], at[2], true);
        const U ddresidual = twice_unit<K>(arrays.of[3], at[3], true);
        const U residual = twice_unit<K>(arrays.of[4], at[4], activated);
        double of_dy[K::V], of_x[K::V], of_residual[K::V];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const C value = wide<K>(x, v);
            double g = static_cast<double>(wide<K>(dy, v)), h = 0, sum = 0;
            begin_twice(row, static_cast<double>(value), h, sum);
            if (a.twice.ddx.data != nullptr) {
                take_ddx(row, static_cast<double>(wide<K>(ddx, v)), h, sum);
            }
            h += static_cast<double>(wide<K>(ddresidual, v));
            of_residual[v] = 0;
            if (activated) {
                C slope, curve;
                derivatives.take(value, wide<K>(residual, v), slope, curve);
                if (curved) {
                    of_residual[v] = take_curve(row, g, static_cast<double>(curve), h, sum);
                }
                g = times_slope(g, static_cast<double>(slope), !curved);
                h = times_slope(h, static_cast<double>(slope), !curved);
            }
            end_twice(row, g, sum);
            of_dy[v] = h;
            of_x[v] = sum;
        }
        store_twice<K>(arrays.of[5], at[5], of_dy);
        store_twice<K>(arrays.of[6], at[6], of_x);
        store_twice<K>(arrays.of[7], at[7], of_residual);
    });
}

}  // namespace bnext::cuda
