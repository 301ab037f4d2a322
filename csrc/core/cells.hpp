// Cells, slabs, parameters.
//
// A cell is a largest set of values that share their moments and their weight: kernels sum and
// write cells (Problem::channels of them). A slab is a set of cells that are normalized together,
// by the moments of all. Two maps give the slab and the parameter of a cell, which is the index of
// its weight and bias:
//
//     norm of (N, C, L)    cells    slab of cell c    parameter of cell c
//     batch                C        c                 c
//     instance             N * C    c                 c mod C
//     group, G groups      N * C    c div (C / G)     c mod C
//
// The cells of a slab follow each other. Every row of numbers has one for each cell; after a merge
// all cells of a slab have the slab's. So the coefficients and the second phase go by cells alone,
// and know no maps; where both are the identity, merging is nothing.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/dtype.hpp"
#include "core/moments.hpp"
#include "core/statistics.hpp"

namespace bnext {

// Batch normalization.
struct OneToOne {
    static constexpr Index cells_of_slab = 1;

    static constexpr Index slab(Index cell) { return cell; }
    static constexpr Index parameter(Index cell) { return cell; }
};

struct CellMaps {
    Index cells_of_slab;
    Index parameters;

    [[nodiscard]] constexpr Index slab(Index cell) const { return cell / cells_of_slab; }
    [[nodiscard]] constexpr Index parameter(Index cell) const { return cell % parameters; }

    static constexpr CellMaps instance_norm(Index channels) { return {1, channels}; }
    static constexpr CellMaps group_norm(Index channels, Index groups) {
        return {channels / groups, channels};
    }
};

template <class Maps>
inline constexpr bool kIsIdentity = std::is_same_v<Maps, OneToOne>;

// Forward. Of cells [begin, end), whole slabs, whose rows have mean, mean_low and m2 of n values
// each: gives every cell the moments of its slab, merged in the order of cells, with means relative
// to the first cell's. Returns the n of a slab. Without low parts, as of narrow data, mean_low is
// 0.
template <class Maps>
double merge_slabs(const Maps& maps, Index begin, Index end, double n, bool low_parts,
                   const StatisticsOut& rows) {
    if constexpr (kIsIdentity<Maps>) return n;
    for (Index first = begin; first < end; first += maps.cells_of_slab) {
        const double origin = rows.mean()[first], low = rows.mean_low()[first];
        Moments slab;
        for (Index c = first; c < first + maps.cells_of_slab; ++c) {
            merge(slab, {n, (rows.mean()[c] - origin) + (rows.mean_low()[c] - low), rows.m2()[c]});
        }
        const HighLow mean = two_sum(origin, slab.mean + low);
        for (Index c = first; c < first + maps.cells_of_slab; ++c) {
            rows.mean()[c] = mean.high;
            rows.mean_low()[c] = low_parts ? mean.low : 0.0;
            rows.m2()[c] = slab.m2;
        }
    }
    return n * static_cast<double>(maps.cells_of_slab);
}

// Backward. With a = sum of dy and b = sum of dy * (x - mean) of every cell of a slab, the slab's
// sums: s1 = sum of weight * a, s2 = sum of weight * b. No weight (null): 1.
struct SlabSums {
    double s1 = 0, s2 = 0;
};
template <class P>
SlabSums sum_slab(Index cells, const P* weight, const double* a, const double* b) {
    SlabSums sums;
    for (Index c = 0; c < cells; ++c) {
        const double factor = weight != nullptr ? static_cast<double>(weight[c]) : 1.0;
        sums.s1 += factor * a[c];
        sums.s2 += factor * b[c];
    }
    return sums;
}
// The same of all slabs, for each of their cells. The parameters of a slab's cells follow each
// other as the cells do.
template <class Maps, class P>
void sum_slabs(const Maps& maps, Index cells, const P* weight, const double* a, const double* b,
               double* s1, double* s2) {
    for (Index first = 0; first < cells; first += maps.cells_of_slab) {
        const P* const of_slab = weight != nullptr ? weight + maps.parameter(first) : nullptr;
        const SlabSums sums = sum_slab(maps.cells_of_slab, of_slab, a + first, b + first);
        std::fill_n(s1 + first, maps.cells_of_slab, sums.s1);
        std::fill_n(s2 + first, maps.cells_of_slab, sums.s2);
    }
}

// dbias = sum of a, dweight = sum of rstd * b, over the cells of every parameter, in their order.
template <class Maps>
void sum_parameters(const Maps& maps, Index cells, const double* a, const double* b,
                    const double* rstd, double* dweight, double* dbias) {
    for (Index c = 0; c < cells; ++c) {
        const Index p = maps.parameter(c);
        const bool first = p == c;
        dweight[p] = (first ? 0.0 : dweight[p]) + rstd[c] * b[c];
        dbias[p] = (first ? 0.0 : dbias[p]) + a[c];
    }
}

}  // namespace bnext
