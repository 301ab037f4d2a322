// The sums of g = dy * act'(z) whose activation costs a few instructions, or which flags tell: g
// stays in registers between the inputs and the sums, as dy does in backward_reduce.inl.hpp. Packs,
// groups and columns are summed in the order of sums.inl.hpp.
//
// A gradient makes packs of g: at(j, x, dy) of the values of a run from j on.

// By z, from the coefficients of these values.
template <Activation A, class C>
struct GradientByZ {
    Normalize<Pack<C>> of_z;
    Fused fused;

    BNEXT_FORCE_INLINE void begin_run(Index) {}
    BNEXT_FORCE_INLINE Pack<C> at(Index, const Pack<C>& x, const Pack<C>& dy) const {
        const Pack<C> in[] = {x};
        Pack<C> z[1];
        of_z(in, z);
        return gradient_through<true>(fused, z[0], dy);
    }
};

// By the flags of a run. `kZero`: the other derivative is 0.
template <bool kZero, class C>
struct GradientOfFlags {
    GradientByFlags<C> of_run;

    BNEXT_FORCE_INLINE void begin_run(Index flag) { of_run.first = flag; }
    BNEXT_FORCE_INLINE Pack<C> at(Index j, const Pack<C>&, const Pack<C>& dy) const {
        return of_run.template at<kZero>(j, dy);
    }
};

// Calls f with what makes gradients by flags, if there are any, or with the activation as a
// constant, if it is a quick one. Returns whether it is one of these.
template <class T, class F>
BNEXT_FORCE_INLINE bool with_quick_gradient(const Activated& by, F&& f) {
    using C = Compute<T>;
    const Fused& fused = by.fused;
    if (by.flags.are_kept()) {
        const GradientByFlags<C> of_run(by, 0);
        if (of_run.is_zero) return f(GradientOfFlags<true, C>{of_run}), true;
        if constexpr (!kHasWalks<T>) return false;
        return f(GradientOfFlags<false, C>{of_run}), true;
    }
    if (fused.residual || fused.in_place) return false;
    if constexpr (!kHasWalks<T>) return with_activation_of<Activation::relu>(fused.activation, f);
    return with_quick_activation(fused.activation, f);
}

// A pack of gradients as they are summed.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> to_sum(const Pack<Compute<T>>& gradients) {
    if constexpr (kIs16Bit<T>) {
        return gradients;
    } else {
        return widen(gradients);
    }
}

// What makes the gradients of values whose coefficients get(row) gives.
template <Activation A, class C, class Get>
BNEXT_FORCE_INLINE GradientByZ<A, C> gradient_of(std::integral_constant<Activation, A>,
                                                 const CoefficientsIn<C>& of_z, Get&& get) {
    return {formula_from<Normalize<Pack<C>>>(of_z, get),
            {A, of_z.activated->fused.negative_slope, false}};
}
template <bool kZero, class C, class Get>
BNEXT_FORCE_INLINE GradientOfFlags<kZero, C> gradient_of(const GradientOfFlags<kZero, C>& by_flags,
                                                         const CoefficientsIn<C>&, Get&&) {
    return by_flags;
}

// --- planes
// -----------------------------------------------------------------------------------------

// RunSums of g.
template <class T, class Gradient>
class SumsInRegisters {
public:
    BNEXT_FORCE_INLINE SumsInRegisters(Sum<T> center, const Gradient& gradient,
                                       const FlagBits& flags, Index c)
        : sums_(center), gradient_(gradient), flags_(flags), channel_(c) {}

    BNEXT_FORCE_INLINE void begin_run(const T* const (&)[2], Index o, Index i, Index) {
        gradient_.begin_run(flags_.at(o, channel_, i));
    }
    BNEXT_FORCE_INLINE void add_pair(const T* const (&run)[2], Index j) {
        add_pack<0>(run, j, 0);
        add_pack<1>(run, j + kLanes, 0);
    }
    BNEXT_FORCE_INLINE void add(const T* const (&run)[2], Index j) { add_pack<0>(run, j, 0); }
    BNEXT_FORCE_INLINE void add_first(const T* const (&run)[2], Index j, int n) {
        add_pack<1>(run, j, n);
    }
    BNEXT_FORCE_INLINE void end_of_group() { sums_.end_of_group(); }
    BNEXT_FORCE_INLINE double first() const { return sums_.first(); }
    BNEXT_FORCE_INLINE double second() const { return sums_.second(); }

private:
    template <int H>
    BNEXT_FORCE_INLINE void add_pack(const T* const (&run)[2], Index j, int columns) {
        const auto x = load_columns(run[0] + j, columns);
        const auto dy = loaded(load_columns(run[1] + j, columns));
        sums_.template add_packs<H>(to_sum<T>(gradient_.at(j, x, dy)),
                                    load_sum(run[0] + j, columns, Sum<T>{0}));
    }

    RunSums<T, 2, Deviation> sums_;
    Gradient gradient_;
    FlagBits flags_;
    Index channel_;
};

// Of the channels of a region, out of line for each way to make gradients.
template <class T, class How>
BNEXT_NO_INLINE void sum_planes_in_registers(const View<const T>* in, const Region& region,
                                             const double* mean,
                                             const CoefficientsIn<Compute<T>>& of_z, const How& how,
                                             double* sum_dy, double* sum_dy_xmu) {
    const Tiling& tiling = *region.tiling;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const auto gradient = gradient_of(how, of_z,
                                          [&](const Compute<T>* row)
                                              BNEXT_INLINE_LAMBDA { return broadcast(row[k]); });
        SumsInRegisters<T, std::remove_const_t<decltype(gradient)>> sums(
            static_cast<Sum<T>>(mean[k]), gradient, of_z.activated->flags, c);
        Index pending = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            add_tile<2>(in, tiling, tiling.tile(t), c, sums, pending);
        }
        sums.end_of_group();
        sum_dy[k] = sums.first();
        sum_dy_xmu[k] = sums.second();
        if constexpr (kIs16Bit<T>) {
            const auto center = static_cast<double>(static_cast<Sum<T>>(mean[k]));
            sum_dy_xmu[k] -= (mean[k] - center) * sum_dy[k];
        }
    }
}

// --- rows
// -------------------------------------------------------------------------------------------

// Columns that are gone through together: fewer than of dy, since z takes registers.
inline constexpr int kGradientPacks = kNativeBytes == 64 ? 2 : 1;

// Rows of x and dy, of as many columns, and the place of their flags.
template <class T>
struct RowsOfGradients {
    RowsIn<T> in[2];
    Index width, count, flag, flag_pitch;
};

// Adds a block of rows of G packs of columns from c on to the sums.
template <int G, class T, class How, class S>
BNEXT_FORCE_INLINE void add_rows_in_registers(const RowsOfGradients<T>& rows, Index c, int columns,
                                              const CoefficientsIn<Compute<T>>& of_z,
                                              const How& how, S& sums) {
    using C = Compute<T>;
    const auto gradient_at = [&](Index j) BNEXT_INLINE_LAMBDA {
        return gradient_of(how, of_z, [&](const C* row) BNEXT_INLINE_LAMBDA {
            return load_columns(row + j, columns);
        });
    };
    decltype(gradient_at(c)) gradient[G];
    Pack<Sum<T>> center[G];
    unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
        gradient[g] = gradient_at(c + g * kLanes);
        center[g] = load(sums.center + c + g * kLanes);
    });
    const RowsIn<T>(&in)[2] = rows.in;
    for (Index begin = 0; begin < rows.count; begin += kSummedRows) {
        const Index end = begin + kSummedRows < rows.count ? begin + kSummedRows : rows.count;
        Pack<Sum<T>> first[G], second[G];
        unrolled<G>([&](auto g)
                        BNEXT_INLINE_LAMBDA { first[g] = second[g] = broadcast(Sum<T>{0}); });
        for (Index r = begin; r < end; ++r) {
            const T* const x = in[0].first + r * in[0].pitch;
            const T* const dy = in[1].first + r * in[1].pitch;
            unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
                prefetch_next_block<G>(in[i].first, in[i].pitch, in[i].pitch == rows.width,
                                       rows.count, r, c);
            });
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                const Index j = c + g * kLanes;
                const auto of_x = load_columns(x + j, columns);
                const auto of_dy = loaded(load_columns(dy + j, columns));
                gradient[g].begin_run(rows.flag + r * rows.flag_pitch);
                const Pack<Sum<T>> of = to_sum<T>(gradient[g].at(j, of_x, of_dy));
                first[g] = first[g] + of;
                second[g] = fma(of, load_sum(x + j, columns, Sum<T>{0}) - center[g], second[g]);
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

// The same of all columns, out of line for each way to make gradients.
template <class T, class How, class S>
BNEXT_NO_INLINE void sum_rows_in_registers(const RowsOfGradients<T>& rows,
                                           const CoefficientsIn<Compute<T>>& of_z, const How& how,
                                           S& sums) {
    for_each_column_group<kGradientPacks>(
        rows.width, [&](auto packs, Index c, int columns) BNEXT_INLINE_LAMBDA {
            add_rows_in_registers<packs>(rows, c, columns, of_z, how, sums);
        });
}
