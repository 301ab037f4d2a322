// Group and instance normalization of small slabs: both phases of a pass in one kernel, with all
// values of a slab in registers. A slab has a team of threads, a warp or a block; a cell has a
// power of two of lanes in it, so that cells of a few values leave few lanes idle.
//
// Bytes:  inputs once, the output once; a few numbers for each slab, backward two for each cell.
// Order:  a lane's values as they come; lanes by one tree; warps by their numbers. A launch gives
//         the same bits every time.
// Error:  all sums in double. Forward, deviations are from the slab's mean, which is corrected by
//         their own mean. Backward, with w the weight of a cell and n values of a slab,
//             dx = ((x - center) * slope + (w * dy - offset)) * rstd,
//             slope = -rstd^2 * s2 / n,  offset = s1 / n + low * slope
//         as Gradient has it (core/formulas.hpp), with one rounding more, of w * dy.
#pragma once

#include "cuda/cell_kernel.hpp"
#include "cuda/forward.hpp"

namespace bnext::cuda {

template <class C>
inline constexpr int kHeld = held_values(sizeof(C));

// A thread of a slab's team.
template <class T>
class SmallSlab {
public:
    using C = Compute<T>;
    using P = Param<T>;

    BNEXT_DEVICE explicit SmallSlab(const Arguments& a)
        : a_(a),
          team_(a.cells.team),
          lanes_(a.cells.lanes),
          slab_(device::block() * (device::threads() / team_) + device::thread() / team_),
          first_(slab_ * a.cells.of_slab),
          parameter_(a.cut.parameter(first_)),
          together_(static_cast<int>(a.cells.of_slab)),
          values_(static_cast<int>(a.cut.run)) {}

    [[nodiscard]] BNEXT_DEVICE bool exists() const { return slab_ < a_.cells.slabs; }
    [[nodiscard]] BNEXT_DEVICE bool leads() const { return device::thread() % team_ == 0; }
    [[nodiscard]] BNEXT_DEVICE double* statistic(Row row) const {
        return a_.statistics + static_cast<Index>(row) * a_.cells.slabs + slab_;
    }
    [[nodiscard]] BNEXT_DEVICE double* sums_of(int cell) const { return a_.sums + first_ + cell; }
    [[nodiscard]] BNEXT_DEVICE double count() const {
        return static_cast<double>(together_) * values_;
    }
    [[nodiscard]] BNEXT_DEVICE double parameter(const void* of, int cell, double otherwise) const {
        if (of == nullptr || cell >= together_) return otherwise;
        return static_cast<double>(static_cast<const P*>(of)[parameter_ + cell]);
    }

    // A thread's places, one after the other: f(h, cell, value, is the first of the cell, is the
    // last of it). All threads of a team come to the first and to the last places together.
    BNEXT_ANY_CALLEE
    template <class F>
    BNEXT_DEVICE void for_each_place(F&& f) const {
        const int in_team = device::thread() % team_, lane = in_team % lanes_;
        int begin = 0, round = 0;  // the first thread's cell and value
        BNEXT_UNROLL
        for (int h = 0; h < kHeld<C>; ++h) {
            if (begin >= together_) break;
            const bool last = round + lanes_ >= values_;
            f(h, begin + in_team / lanes_, round + lane, round == 0, last);
            round = last ? 0 : round + lanes_;
            if (last) begin += team_ / lanes_;
        }
    }
    [[nodiscard]] BNEXT_DEVICE bool has(int cell, int value) const {
        return cell < together_ && value < values_;
    }
    [[nodiscard]] BNEXT_DEVICE bool is_lane_0() const { return device::thread() % lanes_ == 0; }

    // All values of the thread; 0 where there are none.
    BNEXT_DEVICE void load(const Operand& from, C (&held)[kHeld<C>]) const {
        for_each_place([&](int h, int cell, int value, bool, bool) {
            held[h] = has(cell, value) ? at(from, cell, value) : C{0};
        });
    }
    [[nodiscard]] BNEXT_DEVICE C at(const Operand& from, int cell, int value) const {
        const U unit = device::load(reinterpret_cast<const U*>(address(from, cell, value)));
        return device::widened_of<1>(unit.value, 0);
    }
    BNEXT_DEVICE void store(const Operand& to, int cell, int value, C result) const {
        const C values[1] = {result};
        U unit;
        device::narrow<1>(unit.value, values);
        device::store_once(reinterpret_cast<U*>(address(to, cell, value)), unit);
    }

    // The sum over the lanes of a cell; every thread of a warp calls it.
    [[nodiscard]] BNEXT_DEVICE double over_cell(double value) const {
        for (int apart = lanes_ / 2; apart > 0; apart /= 2) {
            value += device::shuffle_xor(value, apart);
        }
        return value;
    }
    // The sum over the team. Each call has a place of its own in shared memory, `number`, which is
    // less than kNumbersOfWarp.
    [[nodiscard]] BNEXT_DEVICE double over_team(double value, int number) const {
        for (int apart = kWarp / 2; apart > 0; apart /= 2) {
            value += device::shuffle_xor(value, apart);
        }
        if (team_ == kWarp) return value;
        const int warps = team_ / kWarp, thread = device::thread();
        double* const of_warps =
            reinterpret_cast<double*>(device::shared_memory()) + number * (kMostThreads / kWarp);
        if (thread % kWarp == 0) of_warps[thread / kWarp] = value;
        device::block_barrier();
        double total = of_warps[0];
        for (int w = 1; w < warps; ++w) total += of_warps[w];
        return total;
    }

private:
    using U = Unit<T, 1>;

    [[nodiscard]] BNEXT_DEVICE Index address(const Operand& operand, int cell, int value) const {
        const Index example = a_.cut.of_example != 0 ? first_ / a_.cut.of_example : 0;
        const Index within = first_ - example * a_.cut.of_example + cell;
        return reinterpret_cast<Index>(operand.data) + example * operand.example +
               within * operand.channel + value * static_cast<Index>(sizeof(T));
    }

    const Arguments& a_;
    int team_, lanes_;
    Index slab_, first_, parameter_;
    int together_, values_;  // cells of a slab, values of a cell
};

template <class T>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS small_forward(BNEXT_CONSTANT Arguments a) {
    using C = Compute<T>;
    const SmallSlab<T> slab(a);
    if (!slab.exists()) return;
    C x[kHeld<C>] = {};
    slab.load(a.in[0], x);
    const double n = slab.count(), pilot = static_cast<double>(slab.at(a.in[0], 0, 0));
    double sum = 0;
    slab.for_each_place([&](int h, int cell, int value, bool, bool) {
        if (slab.has(cell, value)) sum += static_cast<double>(x[h]) - pilot;
    });
    const double near = pilot + slab.over_team(sum, 0) / n;
    double first = 0, second = 0;
    slab.for_each_place([&](int h, int cell, int value, bool, bool) {
        if (!slab.has(cell, value)) return;
        const double d = static_cast<double>(x[h]) - near;
        first += d;
        second = device::fma_of(d, d, second);
    });
    first = slab.over_team(first, 1);
    second = slab.over_team(second, 2);
    HighLow mean = two_sum(near, first / n);
    if (sizeof(C) < 8) mean.low = 0.0;
    double m2 = second - first * (first / n);
    m2 = m2 < 0.0 ? 0.0 : m2;
    const double var = m2 / n, rstd = rstd_of(var, a.eps);
    if (slab.leads()) {
        *slab.statistic(Row::mean) = mean.high;
        *slab.statistic(Row::mean_low) = mean.low;
        *slab.statistic(Row::m2) = m2;
        *slab.statistic(Row::var) = var;
        *slab.statistic(Row::rstd) = rstd;
    }
    using F = Normalize<C>;
    F formula{};
    formula.row[F::kCenter] = static_cast<C>(mean.high);
    const double low = low_part<C>(mean);
    slab.for_each_place([&](int h, int cell, int value, bool begins, bool) {
        if (begins) {
            const double scale = slab.parameter(a.weight, cell, 1.0) * rstd;
            formula.row[F::kScale] = static_cast<C>(scale);
            formula.row[F::kShift] =
                static_cast<C>(slab.parameter(a.bias, cell, 0.0) - low * scale);
        }
        const C in[] = {x[h]};
        C out[1];
        formula(in, out);
        if (slab.has(cell, value)) slab.store(a.out[0], cell, value, out[0]);
    });
}

template <class T>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS small_backward(BNEXT_CONSTANT Arguments a) {
    using C = Compute<T>;
    const SmallSlab<T> slab(a);
    if (!slab.exists()) return;
    C x[kHeld<C>] = {}, dy[kHeld<C>] = {};
    slab.load(a.in[0], x);
    slab.load(a.in[1], dy);
    const HighLow mean{*slab.statistic(Row::mean), *slab.statistic(Row::mean_low)};
    const double rstd = *slab.statistic(Row::rstd), low = low_part<C>(mean), n = slab.count();
    const C center = static_cast<C>(mean.high);
    double of_dy = 0, of_dy_xmu = 0, s1 = 0, s2 = 0;
    slab.for_each_place([&](int h, int cell, int value, bool, bool ends) {
        if (slab.has(cell, value)) {
            const double g = static_cast<double>(dy[h]);
            of_dy += g;
            of_dy_xmu = device::fma_of(g, static_cast<double>(x[h] - center), of_dy_xmu);
        }
        if (!ends) return;
        const double sum = slab.over_cell(of_dy);
        const double sum_xmu = slab.over_cell(of_dy_xmu) - low * sum;
        of_dy = of_dy_xmu = 0;
        if (!slab.has(cell, 0) || !slab.is_lane_0()) return;
        slab.sums_of(cell)[0] = sum;
        slab.sums_of(cell)[a.cut.channels] = sum_xmu;
        const double weight = slab.parameter(a.weight, cell, 1.0);
        s1 = device::fma_of(weight, sum, s1);
        s2 = device::fma_of(weight, sum_xmu, s2);
    });
    s1 = slab.over_team(s1, 0) / n;
    s2 = slab.over_team(s2, 1) / n;
    const double tilt = -rstd * (rstd * s2);
    const C slope = static_cast<C>(tilt), offset = static_cast<C>(s1 + low * tilt);
    const C scale = static_cast<C>(rstd);
    C weight = 1;
    slab.for_each_place([&](int h, int cell, int value, bool begins, bool) {
        if (begins) weight = static_cast<C>(slab.parameter(a.weight, cell, 1.0));
        if (!slab.has(cell, value)) return;
        const C g = device::fma_of(weight, dy[h], -offset);
        slab.store(a.out[0], cell, value, device::fma_of(x[h] - center, slope, g) * scale);
    });
}

}  // namespace bnext::cuda
