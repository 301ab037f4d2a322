// Between the phases, per channel: from sums to statistics, and to the coefficients of the second
// phase. Everything in double, rounded once in the end.
//
//     var = m2 / n,  rstd = 1 / sqrt(var + eps), and 0 where both are 0, as PyTorch has it
//
// Division and square root are rounded correctly everywhere, and nothing is fused, so all
// instruction sets give the same bits. A thousand channels are common, and 20,000 occur: done one
// by one, this would take as long as the phases.

inline void finish_statistics(Index channels, const double* m2, double count, double eps,
                              double* var, double* rstd) {
    const Wide n = broadcast(count), e = broadcast(eps), one = broadcast(1.0);
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide v =
            m2 != nullptr ? load_columns(m2 + c, columns) / n : load_columns(var + c, columns);
        const Wide sum = v + e;
        const Wide root = square_root(where_not_zero(sum, sum, one));
        if (m2 != nullptr) store_columns(var + c, columns, v);
        store_columns(rstd + c, columns, where_not_zero(sum, one / root, broadcast(0.0)));
    });
}

// What an optional parameter has for a pack of channels.
template <class P>
BNEXT_FORCE_INLINE Wide parameter(const P* values, Index c, int columns, double otherwise) {
    return values != nullptr ? widen(load_columns(values + c, columns)) : broadcast(otherwise);
}

// Rounds and stores coefficients. Those of 16-bit data are NaN without payload: what arithmetic
// makes of that, and of data's own NaN, survives the rounding of rounded_words (simd16.inl.hpp).
template <class T>
BNEXT_FORCE_INLINE void store_coefficients(Compute<T>* p, int columns, const Wide& values) {
    if constexpr (kIs16Bit<T>) {
        Wide plain;
        unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
            const Native<double> part = values.part[i];
            plain.part[i] = part == part ? part : __builtin_nan("") + Native<double>{};
        });
        store_columns(p, columns, round_to<Compute<T>>(plain));
    } else {
        store_columns(p, columns, round_to<Compute<T>>(values));
    }
}

// Whether any channel is beyond the second phase's arithmetic (cpu/extremes.hpp has the limits).
template <class C>
class ExtremesSeen {
public:
    // Of values that are as large as that, or larger.
    BNEXT_FORCE_INLINE void large(const Wide& values, double limit) {
        if constexpr (sizeof(C) == 4) {
            unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
                seen_ |= (values.part[i] >= limit) | (values.part[i] <= 0.0 - limit);
            });
        }
    }
    // Of values below `limit` that are not 0, where r is positive and below `below`.
    BNEXT_FORCE_INLINE void small(const Wide& values, double limit, const Wide& r, double below) {
        if constexpr (sizeof(C) == 4) {
            unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
                const Native<double> value = values.part[i];
                seen_ |= (value < limit) & (value > 0.0 - limit) & (value != 0.0) &
                         (r.part[i] < below) & (r.part[i] > 0.0);
            });
        }
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool any() const {
        bool any = false;
        for (int k = 0; k < Wide::kPartLanes; ++k) any |= seen_[k] != 0;
        return any;
    }

private:
    decltype(Native<double>{} < Native<double>{}) seen_{};
};

// Of kernel_table.hpp's y = (x - center) * scale + shift.
template <class T>
bool norm_coefficients(Index channels, const double* mean, const double* rstd,
                       const Param<T>* weight, const Param<T>* bias, Compute<T>* center,
                       Compute<T>* scale, Compute<T>* shift) {
    using C = Compute<T>;
    ExtremesSeen<C> extremes;
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide exact = load_columns(mean + c, columns);
        const Wide r = load_columns(rstd + c, columns);
        const Pack<C> rounded = round_to<C>(exact);
        const Wide low = exact - widen(rounded);
        const Wide factor = parameter(weight, c, columns, 1.0) * r;
        extremes.large(exact, kLargeDifferences);
        extremes.large(factor, kLargestScale);
        extremes.small(r, kSmallestScale, r, kSmallestScale);
        store_coefficients<T>(center + c, columns, exact);
        store_coefficients<T>(scale + c, columns, factor);
        store_coefficients<T>(shift + c, columns, parameter(bias, c, columns, 0.0) - low * factor);
    });
    return extremes.any();
}

// Of kernel_table.hpp's dx = ((x - center) * slope + (dy - offset)) * scale.
template <class T>
bool backward_coefficients(Index channels, const double* mean, const double* rstd,
                           const Param<T>* weight, const double* sum_dy, const double* sum_dy_xmu,
                           double count, Compute<T>* center, Compute<T>* slope, Compute<T>* offset,
                           Compute<T>* scale) {
    using C = Compute<T>;
    const Wide n = broadcast(count), zero = broadcast(0.0);
    ExtremesSeen<C> extremes;
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide exact = load_columns(mean + c, columns);
        const Wide r = load_columns(rstd + c, columns);
        const Pack<C> rounded = round_to<C>(exact);
        const Wide low = exact - widen(rounded);
        const Wide tilt = (zero - r) * (r * (load_columns(sum_dy_xmu + c, columns) / n));
        const Wide mean_dy = load_columns(sum_dy + c, columns) / n;
        const Wide factor = parameter(weight, c, columns, 1.0) * r;
        extremes.large(exact, kLargeDifferences);
        extremes.large(mean_dy, kLargeDifferences);
        extremes.large(factor, kLargestScale);
        extremes.large(tilt, kLargestScale);
        extremes.small(r, kSmallestScale, r, kSmallestScale);
        extremes.small(tilt, kSmallestScale, r, kSmallSlopesMatter);
        store_coefficients<T>(center + c, columns, exact);
        store_coefficients<T>(slope + c, columns, tilt);
        store_coefficients<T>(offset + c, columns, mean_dy + low * tilt);
        store_coefficients<T>(scale + c, columns, factor);
    });
    return extremes.any();
}
