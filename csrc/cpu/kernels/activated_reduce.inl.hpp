// backward_reduce of an activated pass: per channel the sums of g and of g * (x - mean), with
// g = dy * act'(z) as the second phase makes it again (core/formulas.hpp), to the bit.
//
// Traffic: x, dy, and the residual or the flags once each.
// Order, error: of backward_reduce, for g rounded to the compute type.

template <class T>
using Through = ThroughActivation<Pack<Compute<T>>>;

template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> to_sum(const Pack<Compute<T>>& a) {
    if constexpr (kIs16Bit<T>) {
        return a;
    } else {
        return widen(a);
    }
}

// The pack of g, by the flags if there are any (not null).
template <class C, class T>
BNEXT_NO_INLINE Pack<C> gradient_out_of_line(const ThroughActivation<Pack<C>>& through, const T* x,
                                             const T* dy, const T* residual,
                                             const std::uint8_t* flags, int columns) {
    const Pack<C> of_dy = load_columns(dy, columns);
    if (flags != nullptr) return through.by_flag(of_dy, load_flags<C>(flags, columns));
    return through(load_columns(x, columns), of_dy, load_columns(residual, columns));
}

// The same, inline where formulas have an inline way (flags.inl.hpp).
template <class C, class T>
BNEXT_FORCE_INLINE Pack<C> gradient_of_pack(const ThroughActivation<Pack<C>>& through, const T* x,
                                            const T* dy, const T* residual,
                                            const std::uint8_t* flags, int columns) {
    if constexpr (kInlinesRelu<ThroughActivation<Pack<C>>, T>) {
        if (through.fused.activation == Activation::relu) {
            const Pack<C> of_dy = load_columns(dy, columns);
            if (flags == nullptr) return through.relu(load_columns(x, columns), of_dy);
            return relu_gradient_by_flags(flags, columns, of_dy);
        }
    }
    return gradient_out_of_line<C, T>(through, x, dy, residual, flags, columns);
}

// What deviations are taken of: x, or in place z.
template <class S>
BNEXT_FORCE_INLINE Pack<S> deviating(const Fused& fused, const Pack<S>& x) {
    return fused.in_place ? argument_of(fused, x) : x;
}

// RunSums of g, from x, dy and the residual.
template <class T>
class ActivatedSums {
public:
    BNEXT_FORCE_INLINE ActivatedSums(Sum<T> center, const CoefficientsIn<Compute<T>>& of_z, Index k,
                                     Index c)
        : sums_(center),
          through_(formula_of_channel<Through<T>>(of_z, k)),
          of_z_(of_z),
          channel_(c) {}

    BNEXT_FORCE_INLINE void begin_run(Index o, Index i) {
        flags_ = flags_at(of_z_, o, channel_, i);
    }
    BNEXT_FORCE_INLINE void add_pair(const T* const (&run)[3], Index j) {
        add_packs<0>(run, j, 0);
        add_packs<1>(run, j + kLanes, 0);
    }
    BNEXT_FORCE_INLINE void add(const T* const (&run)[3], Index j) { add_packs<0>(run, j, 0); }
    // Values that are not there have a gradient of 0.
    BNEXT_FORCE_INLINE void add_first(const T* const (&run)[3], Index j, int n) {
        add_packs<1>(run, j, n);
    }
    BNEXT_FORCE_INLINE void end_of_group() { sums_.end_of_group(); }
    BNEXT_FORCE_INLINE double first() const { return sums_.first(); }
    BNEXT_FORCE_INLINE double second() const { return sums_.second(); }

private:
    template <int H>
    BNEXT_FORCE_INLINE void add_packs(const T* const (&run)[3], Index j, int columns) {
        const auto g =
            gradient_of_pack<Compute<T>, T>(through_, run[0] + j, run[1] + j, run[2] + j,
                                            flags_ != nullptr ? flags_ + j : nullptr, columns);
        sums_.template add_packs<H>(
            to_sum<T>(g), deviating(through_.fused, load_sum(run[0] + j, columns, Sum<T>{0})));
    }

    RunSums<T, 2, Difference> sums_;
    Through<T> through_;
    const CoefficientsIn<Compute<T>>& of_z_;
    Index channel_;
    const std::uint8_t* flags_ = nullptr;
};

template <class T>
double planar_activated_reduce(const View<const T>* in, const Region& region, const double* mean,
                               const CoefficientsIn<Compute<T>>* of_z, double* sum_dy,
                               double* sum_dy_xmu) {
    const Tiling& tiling = *region.tiling;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const auto center = static_cast<Sum<T>>(mean[k]);
        ActivatedSums<T> sums(center, *of_z, k, c);
        Index pending = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            add_tile<3>(in, tiling, tiling.tile(t), c, sums, pending);
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

// Adds a block of rows of G packs of columns from c on to the sums of g. `of_z`, `flags`: from
// column 0 on.
template <int G, class T, class S>
BNEXT_FORCE_INLINE void add_activated_rows(const RowsIn<T> (&in)[3], std::uint8_t* flags,
                                           Index flags_pitch, Index width, Index rows, Index c,
                                           int columns, const CoefficientsIn<Compute<T>>& of_z,
                                           S& sums) {
    const FormulaGroup<Through<T>, T, G> through(of_z, c, columns);
    Pack<Sum<T>> center[G];
    unrolled<G>([&](auto g)
                    BNEXT_INLINE_LAMBDA { center[g] = load(sums.center + c + g * kLanes); });
    for (Index begin = 0; begin < rows; begin += kSummedRows) {
        const Index end = begin + kSummedRows < rows ? begin + kSummedRows : rows;
        Pack<Sum<T>> first[G], second[G];
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            first[g] = broadcast(Sum<T>{0});
            second[g] = broadcast(Sum<T>{0});
        });
        for (Index r = begin; r < end; ++r) {
            unrolled<3>([&](auto i) BNEXT_INLINE_LAMBDA {
                prefetch_next_block<G>(in[i].first, in[i].pitch, in[i].pitch == width, rows, r, c);
            });
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                const auto at_pack = [&](int i) BNEXT_INLINE_LAMBDA {
                    return in[i].first + r * in[i].pitch + c + g * kLanes;
                };
                const Pack<Sum<T>> of = to_sum<T>(gradient_of_pack<Compute<T>, T>(
                    through.pack[g], at_pack(0), at_pack(1), at_pack(2),
                    flags != nullptr ? flags + r * flags_pitch + c + g * kLanes : nullptr,
                    columns));
                const Pack<Sum<T>> x = deviating(through.pack[g].fused,
                                                 load_sum(at_pack(0), columns, Sum<T>{0}));
                first[g] = first[g] + of;
                second[g] = fma(of, x - center[g], second[g]);
            });
        }
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            double* const s1 = sums.first + c + g * kLanes;
            double* const s2 = sums.second + c + g * kLanes;
            store(s1, load(s1) + widen(first[g]));
            store(s2, load(s2) + widen(second[g]));
        });
    }
}

template <class T>
double interleaved_activated_reduce(const View<const T>* in, const Region& region,
                                    const double* mean, const CoefficientsIn<Compute<T>>* of_z,
                                    double* sum_dy, double* sum_dy_xmu) {
    const Tile rows = rows_of_tile(*region.tiling, region.tiles.begin);
    const Index columns = region.tiling->columns();
    Strip<Sum<T>, 256> sums;
    Sum<T>* const centers = sums.centers(columns);
    const Index strip = channels_of_strip(sums.kMost, columns);
    for (Index begin = 0; begin < region.channels.size(); begin += strip) {
        const Index left = region.channels.size() - begin;
        const Index channels = left < strip ? left : strip;
        const Index width = channels * columns;
        const Index first = (region.channels.begin + begin) * columns;
        for (Index c = 0; c < channels; ++c) centers[c] = static_cast<Sum<T>>(mean[begin + c]);
        if (columns > 1) spread(sums.shared, sums.center, channels, columns);
        for (Index c = 0; c < (width + kLanes - 1) / kLanes * kLanes; ++c) {
            sums.first[c] = sums.second[c] = 0.0;
        }
        CoefficientsIn<Compute<T>> of_strip = *of_z;
        for (int r = 0; r < Through<T>::kRows; ++r) of_strip.row[r] += begin * columns;
        for_each_row_block(rows, rows_of_block<T>(width, row_pitch(in[0], rows)),
                           [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
                               RowsIn<T> block[3];
                               unrolled<3>([&](auto k) BNEXT_INLINE_LAMBDA {
                                   block[k] = {at(in[k], o, 0, i) + first, row_pitch(in[k], rows)};
                               });
                               std::uint8_t* flags = flags_at(*of_z, o, 0, i);
                               Index flags_pitch = 0;
                               if (flags != nullptr) {
                                   flags += first;
                                   flags_pitch = row_pitch(of_z->activated->flags, rows);
                               }
                               for_each_column_group<1>(width, [&](auto packs, Index c,
                                                                   int some) BNEXT_INLINE_LAMBDA {
                                   add_activated_rows<packs, T>(block, flags, flags_pitch, width,
                                                                count, c, some, of_strip, sums);
                               });
                           });
        sum_columns(sums.first, channels, columns);
        sum_columns(sums.second, channels, columns);
        for (Index c = 0; c < channels; ++c) {
            const double low = mean[begin + c] - static_cast<double>(centers[c]);
            sum_dy[begin + c] = sums.first[c];
            sum_dy_xmu[begin + c] = sums.second[c] - low * sums.first[c];
        }
    }
    return region.values();
}
