// Between the phases of group and instance normalization: from numbers of cells to numbers of slabs
// and of parameters, and back (core/cells.hpp). What reads and writes data are the kernels of batch
// normalization, to which a cell is a channel.
//
//   merge_slabs     forward: the moments of cells to their slab's, which each of them gets
//   spread_slabs    the statistics of slabs to their cells
//   share_sums      backward: the sums of cells to their slab's, of which each gets its share
//   sum_parameters  backward: dweight and dbias, over the examples
//
// Bytes:  tens for every cell, beside the data of a cell in the other launches.
// Order:  a warp has a slab, or a block some channels; lanes take cells in turn, and are added by
//         one tree; rows of threads are added by their numbers. A launch gives the same bits every
//         time.
// Error:  all in double. Means are relative to the slab's first cell's, and the slab's m2 is
//         sum m2 + n * sum (mean - mean of the slab)^2, in which nothing cancels.
#pragma once

#include "cuda/forward.hpp"

namespace bnext::cuda {

BNEXT_DEVICE double sum_over_lanes(double value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += device::shuffle_xor(value, lanes);
    return value;
}
BNEXT_DEVICE double largest_of_lanes(double value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const double other = device::shuffle_xor(value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

// The number of a thread's warp in the grid; warps past the last slab have nothing to do.
BNEXT_DEVICE Index warp_of_grid() {
    return device::block() * (device::threads() / kWarp) + device::thread() / kWarp;
}

// A place in a row of statistics: of a cell, of a slab.
BNEXT_DEVICE double* of_cell(const Arguments& a, Row row, Index cell) {
    return a.cells.rows + static_cast<Index>(row) * a.cut.channels + cell;
}
BNEXT_DEVICE double* of_slab(const Arguments& a, Row row, Index slab) {
    return a.statistics + static_cast<Index>(row) * a.cells.slabs + slab;
}

template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS merge_slabs(BNEXT_CONSTANT Arguments a) {
    const Index slab = warp_of_grid(), together = a.cells.of_slab;
    if (slab >= a.cells.slabs) return;
    const int lane = device::thread() % kWarp;
    const Index first = slab * together;
    const HighLow origin{*of_cell(a, Row::mean, first), *of_cell(a, Row::mean_low, first)};
    const auto from_origin = [&](Index cell) {
        return (*of_cell(a, Row::mean, cell) - origin.high) +
               (*of_cell(a, Row::mean_low, cell) - origin.low);
    };
    double sum = 0;
    for (Index c = lane; c < together; c += kWarp) sum += from_origin(first + c);
    const double offset = sum_over_lanes(sum) / static_cast<double>(together);
    double own = 0;
    for (Index c = lane; c < together; c += kWarp) {
        const double d = from_origin(first + c) - offset;
        own += *of_cell(a, Row::m2, first + c) + a.cells.count * (d * d);
    }
    const double m2 = sum_over_lanes(own);
    HighLow mean = two_sum(origin.high, origin.low + offset);
    if (sizeof(P) < 8) mean.low = 0.0;  // as every phase has it
    const double var = m2 / (a.cells.count * static_cast<double>(together));
    const double rstd = rstd_of(var, a.eps);
    for (Index c = lane; c < together; c += kWarp) {
        *of_cell(a, Row::mean, first + c) = mean.high;
        *of_cell(a, Row::mean_low, first + c) = mean.low;
        *of_cell(a, Row::rstd, first + c) = rstd;
    }
    if (lane != 0) return;
    *of_slab(a, Row::mean, slab) = mean.high;
    *of_slab(a, Row::mean_low, slab) = mean.low;
    *of_slab(a, Row::m2, slab) = m2;
    *of_slab(a, Row::var, slab) = var;
    *of_slab(a, Row::rstd, slab) = rstd;
}

template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS spread_slabs(BNEXT_CONSTANT Arguments a) {
    const Index cell = device::block() * device::threads() + device::thread();
    if (cell >= a.cut.channels) return;
    const Index slab = cell / a.cells.of_slab;
    *of_cell(a, Row::mean, cell) = *of_slab(a, Row::mean, slab);
    *of_cell(a, Row::mean_low, cell) = *of_slab(a, Row::mean_low, slab);
    *of_cell(a, Row::rstd, cell) = *of_slab(a, Row::rstd, slab);
}

// Weights below this share of the largest of their group stand for it, as on the CPU
// (cpu/cell_phases.hpp): all of a cell is multiplied by its weight, so the slab's sums are divided
// by it first. The least is a number of P whose reciprocal is finite.
inline constexpr double kSmallestWeight = 0x1p-60;
template <class P>
inline constexpr double kLeastDivisor = sizeof(P) == 8 ? 0x1p-1020 : 0x1p-149;

template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS share_sums(BNEXT_CONSTANT Arguments a) {
    const Index slab = warp_of_grid(), together = a.cells.of_slab;
    if (slab >= a.cells.slabs) return;
    const int lane = device::thread() % kWarp;
    const Index first = slab * together, cells = a.cut.channels;
    const Index first_parameter = a.cut.parameter(first);
    const P* const weight = static_cast<const P*>(a.weight);
    const auto given = [&](Index c) {
        return weight != nullptr ? static_cast<double>(weight[first_parameter + c]) : 1.0;
    };
    double largest = 0, s1 = 0, s2 = 0;
    for (Index c = lane; c < together; c += kWarp) {
        const double w = given(c), size = w < 0.0 ? -w : w;
        largest = size > largest ? size : largest;
        s1 += w * a.sums[first + c];
        s2 += w * a.sums[cells + first + c];
    }
    largest = largest_of_lanes(largest);
    s1 = sum_over_lanes(s1);
    s2 = sum_over_lanes(s2);
    const double share = largest * kSmallestWeight;
    const double least = share > kLeastDivisor<P> ? share : kLeastDivisor<P>;
    for (Index c = lane; c < together; c += kWarp) {
        const double w = given(c);
        const bool small = (w < 0.0 ? -w : w) < least && largest > 0.0;
        const P by = static_cast<P>(small ? (w < 0.0 ? -least : least) : w);
        // (Where all are 0, so are the sums.)
        const double inverse = largest > 0.0 ? 1.0 / static_cast<double>(by) : 1.0;
        a.cells.shares[first + c] = s1 * inverse;
        a.cells.shares[cells + first + c] = s2 * inverse;
        // The slabs of the first example have all parameters.
        if (first < a.cut.parameters && weight != nullptr) {
            static_cast<P*>(a.cells.weight)[first + c] = by;
        }
    }
}

// A block has `columns` channels (a power of two up to a warp): each of its rows of threads takes
// every so many-th example.
template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS sum_parameters(BNEXT_CONSTANT Arguments a) {
    const int columns = a.cut.columns, rows = device::threads() / columns;
    const int column = device::thread() % columns, row = device::thread() / columns;
    const Index channels = a.cut.parameters, cells = a.cut.channels;
    const Index channel = device::block() * columns + column;
    auto* const shared = reinterpret_cast<double*>(device::shared_memory());
    double of_dweight = 0, of_dbias = 0;
    if (channel < channels) {
        for (Index cell = row * channels + channel; cell < cells; cell += rows * channels) {
            const double rstd = *of_slab(a, Row::rstd, cell / a.cells.of_slab);
            of_dweight += rstd * a.sums[cells + cell];
            of_dbias += a.sums[cell];
        }
    }
    shared[device::thread()] = of_dweight;
    shared[device::threads() + device::thread()] = of_dbias;
    device::block_barrier();
    if (row != 0 || channel >= channels) return;
    for (int r = 1; r < rows; ++r) {
        of_dweight += shared[r * columns + column];
        of_dbias += shared[device::threads() + r * columns + column];
    }
    static_cast<P*>(a.dweight)[channel] = static_cast<P>(of_dweight);
    static_cast<P*>(a.dbias)[channel] = static_cast<P>(of_dbias);
}

}  // namespace bnext::cuda
