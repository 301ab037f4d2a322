// backward_reduce of an activated pass: per channel the sums of g and of g * (x - mean), with
// g = dy * act'(z) as the second phase makes it again (core/formulas.hpp), to the bit.
//
// Traffic: x, dy, and the residual or the flags once each.
// Order, error: of backward_reduce, for g rounded to the compute type.

// A pack of g, which is of the compute type.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_gradient(const Compute<T>* g) {
    if constexpr (kIs16Bit<T>) {
        return load(g);
    } else {
        return load_wide(g);
    }
}

// RunSums of g, which is made piece by piece from x, dy and the residual.
template <class T>
class ActivatedSums {
    using C = Compute<T>;

public:
    BNEXT_FORCE_INLINE ActivatedSums(Sum<T> center, const CoefficientsIn<C>& of_z, Index k, Index c)
        : sums_(center), activated_(*of_z.activated), channel_(c) {
        for (int r = 0; r < kRows; ++r) store(rows_[r], broadcast(of_z.row[r][k]));
    }

    BNEXT_FORCE_INLINE void begin_run(const T* const (&run)[3], Index o, Index i, Index n) {
        for (int k = 0; k < 3; ++k) run_.in[k] = run[k];
        run_.flag = activated_.flags.at(o, channel_, i);
        n_ = n;
        made_ = 0;
    }
    BNEXT_FORCE_INLINE void add_pair(const T* const (&run)[3], Index j) {
        make(j);
        add_packs<0>(run, j, 0);
        add_packs<1>(run, j + kLanes, 0);
    }
    BNEXT_FORCE_INLINE void add(const T* const (&run)[3], Index j) {
        make(j);
        add_packs<0>(run, j, 0);
    }
    // Values that are not there have a gradient of 0.
    BNEXT_FORCE_INLINE void add_first(const T* const (&run)[3], Index j, int n) {
        make(j);
        add_packs<1>(run, j, n);
    }
    BNEXT_FORCE_INLINE void end_of_group() { sums_.end_of_group(); }
    BNEXT_FORCE_INLINE double first() const { return sums_.first(); }
    BNEXT_FORCE_INLINE double second() const { return sums_.second(); }

private:
    static constexpr int kRows = Normalize<C>::kRows;

    // The gradients from j on, where they are not made yet.
    BNEXT_FORCE_INLINE void make(Index j) {
        if (j < made_) return;
        begin_ = j;
        made_ = n_ - j < kPiece ? n_ : j + kPiece;
        using Z = Normalize<C>;
        const ZOfRun<T> z{rows_[Z::kCenter], rows_[Z::kScale], rows_[Z::kShift], 0};
        gradient_of_piece(run_, z, begin_, made_, activated_, gradients_);
    }
    template <int H>
    BNEXT_FORCE_INLINE void add_packs(const T* const (&run)[3], Index j, int columns) {
        sums_.template add_packs<H>(
            load_gradient<T>(gradients_ + (j - begin_)),
            deviating(activated_.fused, load_sum(run[0] + j, columns, Sum<T>{0})));
    }

    RunSums<T, 2, Difference> sums_;
    const Activated& activated_;
    Index channel_;
    ActivatedRun<T> run_{};
    Index n_ = 0, begin_ = 0, made_ = 0;
    alignas(64) C rows_[kRows][kLanes];
    alignas(64) C gradients_[kPiece];
};

template <class T>
double planar_activated_reduce(const View<const T>* in, const Region& region, const double* mean,
                               const CoefficientsIn<Compute<T>>* of_z, double* sum_dy,
                               double* sum_dy_xmu) {
    if constexpr (kSumsInRegisters<T>) {
        const auto quickly = [&](const auto& how) BNEXT_INLINE_LAMBDA {
            sum_planes_in_registers<T>(in, region, mean, *of_z, how, sum_dy, sum_dy_xmu);
        };
        if (with_quick_gradient<T>(*of_z->activated, quickly)) return region.values();
    }
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

inline constexpr Index kActivatedColumns = 256;  // summed together

// Adds a block of rows to the sums of g, which `gradients` has; row r of x begins at x_of(r).
template <class T, class S, class XOf>
BNEXT_FORCE_INLINE void add_gradient_rows(
    const Compute<T> (&gradients)[kSummedRows][kActivatedColumns + kLanes], Index rows, Index width,
    const Fused& fused, XOf&& x_of, S& sums) {
    for_each_column_group<kGroupPacks>(
        width, [&](auto packs, Index c, int columns) BNEXT_INLINE_LAMBDA {
            constexpr int G = decltype(packs){};
            Pack<Sum<T>> center[G], first_sum[G], second_sum[G];
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                center[g] = load(sums.center + c + g * kLanes);
                first_sum[g] = second_sum[g] = broadcast(Sum<T>{0});
            });
            for (Index r = 0; r < rows; ++r) {
                const T* const x = x_of(r);
                unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                    const Index k = c + g * kLanes;
                    const Pack<Sum<T>> of = load_gradient<T>(gradients[r] + k);
                    const Pack<Sum<T>> at_x = deviating(fused, load_sum(x + k, columns, Sum<T>{0}));
                    first_sum[g] = first_sum[g] + of;
                    second_sum[g] = fma(of, at_x - center[g], second_sum[g]);
                });
            }
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                double* const s1 = sums.first + c + g * kLanes;
                double* const s2 = sums.second + c + g * kLanes;
                store(s1, load(s1) + widen(first_sum[g]));
                store(s2, load(s2) + widen(second_sum[g]));
            });
        });
}

// Adds `count` rows to the sums of g. `of_z`, the run and its flags: from column 0 on.
template <class T, class S>
BNEXT_FORCE_INLINE void add_activated_rows(const ActivatedRun<T>& first, const Index (&pitch)[3],
                                           Index flag_pitch, Index width, Index count,
                                           const CoefficientsIn<Compute<T>>& of_z, S& sums) {
    using C = Compute<T>;
    using Z = Normalize<C>;
    const ZOfRun<T> z{of_z.row[Z::kCenter], of_z.row[Z::kScale], of_z.row[Z::kShift], 1};
    alignas(64) C gradients[kSummedRows][kActivatedColumns + kLanes];
    for (Index begin = 0; begin < count; begin += kSummedRows) {
        const Index rows = count - begin < kSummedRows ? count - begin : kSummedRows;
        for (Index r = 0; r < rows; ++r) {
            ActivatedRun<T> run = first;
            for (int i = 0; i < 3; ++i) {
                run.in[i] += (begin + r) * pitch[i];
                run.ahead[i] = run.in[i] + kSummedRows * pitch[i];
            }
            run.flag += (begin + r) * flag_pitch;
            gradient_of_piece(run, z, 0, width, *of_z.activated, gradients[r]);
        }
        const T* const x = first.in[0] + begin * pitch[0];
        add_gradient_rows<T>(
            gradients, rows, width, of_z.activated->fused,
            [&](Index r) BNEXT_INLINE_LAMBDA { return x + r * pitch[0]; }, sums);
    }
}

// The same, in registers where that is possible.
template <class T, class S>
BNEXT_FORCE_INLINE void sum_activated_rows(const ActivatedRun<T>& first, const Index (&pitch)[3],
                                           Index flag_pitch, Index width, Index count,
                                           const CoefficientsIn<Compute<T>>& of_z, S& sums) {
    if constexpr (kSumsInRegisters<T>) {
        const RowsOfGradients<T> rows{{{first.in[0], pitch[0]}, {first.in[1], pitch[1]}},
                                      width,
                                      count,
                                      first.flag,
                                      flag_pitch};
        const auto quickly = [&](const auto& how) BNEXT_INLINE_LAMBDA {
            sum_rows_in_registers(rows, of_z, how, sums);
        };
        if (with_quick_gradient<T>(*of_z.activated, quickly)) return;
    }
    add_activated_rows(first, pitch, flag_pitch, width, count, of_z, sums);
}

template <class T>
double interleaved_activated_reduce(const View<const T>* in, const Region& region,
                                    const double* mean, const CoefficientsIn<Compute<T>>* of_z,
                                    double* sum_dy, double* sum_dy_xmu) {
    const Tile rows = rows_of_tile(*region.tiling, region.tiles.begin);
    const Index columns = region.tiling->columns();
    Strip<Sum<T>, kActivatedColumns> sums;
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
        for (int r = 0; r < Normalize<Compute<T>>::kRows; ++r) of_strip.row[r] += begin * columns;
        const FlagBits& flags = of_z->activated->flags;
        const Index flag_pitch = is_outer_only(rows) ? flags.stride.outer : flags.stride.inner;
        Index pitch[3];
        for (int k = 0; k < 3; ++k) pitch[k] = row_pitch(in[k], rows);
        for_each_row_block(rows, rows_of_block<T>(width, pitch[0]),
                           [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
                               ActivatedRun<T> run{};
                               for (int k = 0; k < 3; ++k) run.in[k] = at(in[k], o, 0, i) + first;
                               run.flag = flags.at(o, 0, i) + first;
                               sum_activated_rows(run, pitch, flag_pitch, width, count, of_strip,
                                                  sums);
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
