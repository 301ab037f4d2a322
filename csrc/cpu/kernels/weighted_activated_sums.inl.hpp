// The first phase of an activated backward pass over positions that count: per channel the sums of
// g and of g * (x - mean), with g made piece by piece (weighted_activated.inl.hpp).
//
// Traffic: of what counts x, dy, and the residual or the flags once each.
// Order, error: of weighted_sums.inl.hpp, for g rounded to the compute type; planes end a group
// with
//          each piece.

// Adds the values of a plane's run that count, by pieces, to sums of g and of g * (x - center).
template <class T, class Rows, class Sums>
BNEXT_FORCE_INLINE void add_counted_gradients(const ActivatedRun<T>& run, const Rows& rows,
                                              const CountedRun<Compute<T>>& counts, Index n,
                                              const Activated& by, Sums& sums) {
    using C = Compute<T>;
    using Z = Normalize<C>;
    const ZOfRun<T> z{rows.row[Z::kCenter], rows.row[Z::kScale], rows.row[Z::kShift], rows.step};
    const T* const x = run.in[0];
    alignas(64) C g[kPiece];
    for_each_piece(n, 0, false, [&](Index begin, Index end, bool) BNEXT_INLINE_LAMBDA {
        if (!counts.any_counts(begin, end)) return;
        gradient_of_counted(run, z, begin, end, by, g);
        const auto add = [&](auto h, Index j, int columns) BNEXT_INLINE_LAMBDA {
            sums.add_packs(h, counts.counted(j, columns), load_gradient<T>(g + (j - begin)),
                           load_sum(x + j, columns, Sum<T>{0}));
        };
        Index j = begin;
        for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
            add(Number<0>{}, j, 0);
            add(Number<1>{}, j + kLanes, 0);
        }
        for_each_pack_of(j, end, [&](Index k, int columns) BNEXT_INLINE_LAMBDA {
            add(Number<0>{}, k, columns);
        });
        sums.end_of_group();
    });
}

template <class T>
double planar_counted_activated_reduce(const View<const T>* in, const Region& region,
                                       const double* mean, const CoefficientsIn<Compute<T>>* of_z,
                                       double* sum_dy, double* sum_dy_xmu) {
    const Weights<Compute<T>>& weights = *of_z->weights;
    const Activated& by = *of_z->activated;
    const Tiling& tiling = *region.tiling;
    RowsOfRun<Normalize<Compute<T>>, Compute<T>> rows;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const auto center = static_cast<Sum<T>>(mean[k]);
        CountedSums<T, 2, false> sums(center);
        rows.set_channel(*of_z, k);
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            if (weights.tiles[t].weight == 0.0) continue;
            const Tile tile = tiling.tile(t);
            for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
                ActivatedRun<T> run{};
                for (int i = 0; i < 3; ++i) run.in[i] = at(in[i], o, c, 0) + tile.inner_begin;
                run.flag = by.flags.at(o, c, tile.inner_begin);
                add_counted_gradients(run, rows,
                                      {weights, weights.number(o, tile.inner_begin), false},
                                      tile.inner_end - tile.inner_begin, by, sums);
            }
        }
        sum_dy[k] = sums.first();
        sum_dy_xmu[k] = sums.second();
        if constexpr (kIs16Bit<T>) {
            sum_dy_xmu[k] -= (mean[k] - static_cast<double>(center)) * sum_dy[k];
        }
    }
    return weight_of(region, weights);
}

// Adds the rows [begin, end) of those that count to the sums of g, of `width` columns from `first`
// on; `of_z` begins there.
template <class T, class S>
BNEXT_NO_INLINE void add_counted_activated_rows(const View<const T>* in, Index begin, Index end,
                                                Index first, Index width,
                                                const CoefficientsIn<Compute<T>>& of_z, S& sums) {
    using C = Compute<T>;
    using Z = Normalize<C>;
    const Weights<C>& weights = *of_z.weights;
    const Activated& by = *of_z.activated;
    const ZOfRun<T> z{of_z.row[Z::kCenter], of_z.row[Z::kScale], of_z.row[Z::kShift], 1};
    alignas(64) C gradients[kSummedRows][kActivatedColumns + kLanes];
    const T* x[kSummedRows];
    for (Index next = begin; next < end; next += kSummedRows) {
        const Index rows = end - next < kSummedRows ? end - next : kSummedRows;
        for (Index r = 0; r < rows; ++r) {
            const Index number = weights.counted[next + r];
            const Index o = number / weights.inner, i = number % weights.inner;
            ActivatedRun<T> run{};
            for (int k = 0; k < 3; ++k) run.in[k] = at(in[k], o, 0, i) + first;
            run.flag = by.flags.at(o, 0, i) + first;
            x[r] = run.in[0];
            gradient_of_counted(run, z, 0, width, by, gradients[r]);
        }
        add_gradient_rows<T>(
            gradients, rows, width, by.fused, [&](Index r) BNEXT_INLINE_LAMBDA { return x[r]; },
            sums);
    }
}

template <class T>
double interleaved_counted_activated_reduce(const View<const T>* in, const Region& region,
                                            const double* mean,
                                            const CoefficientsIn<Compute<T>>* of_z, double* sum_dy,
                                            double* sum_dy_xmu) {
    const Weights<Compute<T>>& weights = *of_z->weights;
    const TileOfWeights& tile = weights.tiles[region.tiles.begin];
    const Index begin = tile.begin, end = weights.tiles[region.tiles.begin + 1].begin;
    Strip<Sum<T>, kActivatedColumns> sums;
    for (Index from = 0; from < region.channels.size(); from += sums.kMost) {
        const Index left = region.channels.size() - from;
        const Index channels = left < sums.kMost ? left : sums.kMost;
        for (Index c = 0; c < channels; ++c) sums.center[c] = static_cast<Sum<T>>(mean[from + c]);
        for (Index c = 0; c < (channels + kLanes - 1) / kLanes * kLanes; ++c) {
            sums.first[c] = sums.second[c] = 0.0;
        }
        CoefficientsIn<Compute<T>> of_strip = *of_z;
        for (int r = 0; r < Normalize<Compute<T>>::kRows; ++r) of_strip.row[r] += from;
        add_counted_activated_rows(in, begin, end, region.channels.begin + from, channels, of_strip,
                                   sums);
        for (Index c = 0; c < channels; ++c) {
            const double low = mean[from + c] - static_cast<double>(sums.center[c]);
            sum_dy[from + c] = sums.first[c];
            sum_dy_xmu[from + c] = sums.second[c] - low * sums.first[c];
        }
    }
    return tile.weight;
}
