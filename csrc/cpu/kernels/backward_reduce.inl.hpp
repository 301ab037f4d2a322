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

// Planes below a group of RunSums are short.
BNEXT_FORCE_INLINE bool is_short_plane(const Tiling& tiling) {
    return tiling.outer() == 1 && tiling.inner() < kGroup;
}

// The sums of a short plane whose values are summed in double: the sums of RunSums, with the same
// bits. In a cache, processors are slowed by additions, which conversions to double are for Zen
// cores as well: differences and every other addition are made by the multiplier, and of a rest of
// half a pack, only that half is converted.
template <class T>
class ShortSums {
    using Part = Native<double>;

public:
    BNEXT_FORCE_INLINE explicit ShortSums(double center)
        : one_(broadcast(1.0).part[0]), minus_center_(broadcast(0.0 - center).part[0]) {
        unrolled<Wide::kParts>([&](auto i)
                                   BNEXT_INLINE_LAMBDA { first_[i] = second_[i] = Part{}; });
    }
    BNEXT_FORCE_INLINE void add_run(const T* x, const T* dy, Index n) {
        constexpr int kAll = Wide::kParts, kHalf = kAll / 2;
        Index j = 0;
        for (; j + kLanes <= n; j += kLanes) add<kAll>(load_wide(x + j), load_wide(dy + j));
        if (j == n) return;
        const int rest = static_cast<int>(n - j);
        const Wide of_x = load_first_sum(x + j, rest, 0.0);
        const Wide of_dy = load_first_sum(dy + j, rest, 0.0);
        rest <= kLanes / 2 ? add<kHalf>(of_x, of_dy) : add<kAll>(of_x, of_dy);
    }
    [[nodiscard]] BNEXT_FORCE_INLINE Doubles lanes_of_first() const { return add_parts(first_); }
    [[nodiscard]] BNEXT_FORCE_INLINE Doubles lanes_of_second() const { return add_parts(second_); }

private:
    // The first kParts parts of a pack.
    template <int kParts>
    BNEXT_FORCE_INLINE void add(const Wide& x, const Wide& dy) {
        unrolled<kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
            const Part value = dy.part[i], d = fma_parts(x.part[i], one_, minus_center_);
            first_[i] = i % 2 == 0 ? first_[i] + value : fma_parts(value, one_, first_[i]);
            second_[i] = fma_parts(value, d, second_[i]);
        });
    }

    Part one_, minus_center_;
    Part first_[Wide::kParts], second_[Wide::kParts];
};

// Of channels that are one short plane each: what follows, with the same bits.
template <class T>
BNEXT_NO_INLINE double short_backward_reduce(const View<const T>* in, const Region& region,
                                             const double* mean, double* sum_dy,
                                             double* sum_dy_xmu) {
    const Index n = region.tiling->inner(), channels = region.channels.size();
    const Index first = region.channels.begin;
    if constexpr (!kIs16Bit<T>) {
        const View<const T> of_x = in[0], of_dy = in[1];
        sum_lanes_of_all(channels, sum_dy, sum_dy_xmu,
                         [&](Index k, Doubles& a, Doubles& b) BNEXT_INLINE_LAMBDA {
                             ShortSums<T> sums(mean[k]);
                             sums.add_run(at(of_x, 0, first + k, 0), at(of_dy, 0, first + k, 0), n);
                             a = sums.lanes_of_first();
                             b = sums.lanes_of_second();
                         });
    } else {
        sum_lanes_of_all(
            channels, sum_dy, sum_dy_xmu, [&](Index k, Doubles& a, Doubles& b) BNEXT_INLINE_LAMBDA {
                const T* const run[] = {at(in[0], 0, first + k, 0), at(in[1], 0, first + k, 0)};
                RunSums<T, 2, Deviation> sums(static_cast<Sum<T>>(mean[k]));
                sums.add_run(run, n);
                sums.end_of_group();
                a = add_parts(sums.lanes_of_first().part);
                b = add_parts(sums.lanes_of_second().part);
            });
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
