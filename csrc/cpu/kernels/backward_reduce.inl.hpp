// backward_reduce: per channel, s1 = sum dy and s2 = sum dy * (x - mean).
//
// With xhat = (x - mean) * rstd and n = outer * inner,
//   dbias = s1,  dweight = s2 * rstd,
//   dx = weight * rstd / n * (n * dy - s1 - xhat * rstd * s2)
// so both sums must be final, group-wide under sync, before any dx is written
// (Ioffe and Szegedy 2015, section 3).
//
// Traffic: x and dy once each.
// Order:   16 lanes over the region's values, then one lane tree (planar); blocks of 16 rows, then
//          the columns of a channel (interleaved, and small planes). Fixed by tile and lane, never
//          by thread arrival.
// Error:   everything in double, products of float32 values are exact: below float32's rounding.
//          For 16-bit data, groups of some 16 values are summed in float32, about the rounded
//          mean; what the rounding lost is put right afterwards. Sums that leave float32's range
//          are done again in double (cpu/range.hpp).

// Of channels that are one short plane each: what follows, with the same bits.
template <class T>
BNEXT_NO_INLINE double short_backward_reduce(const View<const T>* in, const Region& region,
                                             const double* mean, double* sum_dy,
                                             double* sum_dy_xmu) {
    const Index n = region.tiling->inner(), channels = region.channels.size();
    sum_lanes_of_all(channels, sum_dy, sum_dy_xmu,
                     [&](Index k, Wide& first, Wide& second) BNEXT_INLINE_LAMBDA {
                         const Index c = region.channels.begin + k;
                         const T* const run[] = {at(in[0], 0, c, 0), at(in[1], 0, c, 0)};
                         RunSums<T, 2, Difference> sums(static_cast<Sum<T>>(mean[k]));
                         sums.add_run(run, n);
                         sums.end_of_group();
                         first = sums.lanes_of_first();
                         second = sums.lanes_of_second();
                     });
    if constexpr (kIs16Bit<T>) {
        for (Index k = 0; k < channels; ++k) {
            const auto center = static_cast<double>(static_cast<Sum<T>>(mean[k]));
            sum_dy_xmu[k] -= (mean[k] - center) * sum_dy[k];
        }
    }
    return region.values();
}

template <class T>
double planar_backward_reduce(const View<const T>* in, const Region& region, const double* mean,
                              const CoefficientsIn<Compute<T>>*, double* sum_dy,
                              double* sum_dy_xmu) {
    const Tiling& tiling = *region.tiling;
    if (is_short_plane(tiling)) {
        return short_backward_reduce(in, region, mean, sum_dy, sum_dy_xmu);
    }
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const auto center = static_cast<Sum<T>>(mean[k]);
        RunSums<T, 2, Difference> sums(center);
        Index pending = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            add_tile<2>(in, tiling, tiling.tile(t), c, sums, pending);
        }
        sums.end_of_group();
        sum_dy[k] = sums.first();
        sum_dy_xmu[k] = sums.second();
        if constexpr (kIs16Bit<T>) {
            sum_dy_xmu[k] -= (mean[k] - static_cast<double>(center)) * sum_dy[k];
        }
    }
    return region.values();
}

// A chunk that is walked by rows is one tile.
template <class T>
double interleaved_backward_reduce(const View<const T>* in, const Region& region,
                                   const double* mean, const CoefficientsIn<Compute<T>>*,
                                   double* sum_dy, double* sum_dy_xmu) {
    const Tile rows = rows_of_tile(*region.tiling, region.tiles.begin);
    const Index columns = region.tiling->columns();
    Strip<Sum<T>, 256> sums;
    Sum<T>* const centers = sums.centers(columns);
    const Index strip = channels_of_strip(sums.kMost, columns);
    for (Index begin = 0; begin < region.channels.size(); begin += strip) {
        const Index left = region.channels.size() - begin;
        const Index channels = left < strip ? left : strip;
        for (Index c = 0; c < channels; ++c) centers[c] = static_cast<Sum<T>>(mean[begin + c]);
        sum_channels<2>(in, rows, region.channels.begin + begin, channels, columns, sums);
        for (Index c = 0; c < channels; ++c) {
            const double low = mean[begin + c] - static_cast<double>(centers[c]);
            sum_dy[begin + c] = sums.first[c];
            sum_dy_xmu[begin + c] = sums.second[c] - low * sums.first[c];
        }
    }
    return region.values();
}
