// Between the phases, per channel: from sums to statistics, and to the coefficients of the second
// phase. Everything in double, rounded once in the end.
//
//     var = m2 / n,  rstd = 1 / sqrt(var + eps), and 0 where both are 0, as PyTorch has it
//
// Division and square root are rounded correctly everywhere, and nothing is fused, so all
// instruction sets give the same bits. A thousand channels are common, and 20,000 occur: done one
// by one, this would take as long as the phases.

inline void finish_statistics(Index channels, const double* m2, double n, double eps, double* var,
                              double* rstd) {
    const Wide values = broadcast(n), e = broadcast(eps), one = broadcast(1.0);
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide v =
            m2 != nullptr ? load_columns(m2 + c, columns) / values : load_columns(var + c, columns);
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
        const Wide plain = pack_of<double>([&](auto i) BNEXT_INLINE_LAMBDA {
            const Doubles part = values.part[i];
            return part == part ? part : __builtin_nan("") + Doubles{};
        });
        store_columns(p, columns, round_to<Compute<T>>(plain));
    } else {
        store_columns(p, columns, round_to<Compute<T>>(values));
    }
}

// Whether test(i) is true of any lane of part i.
template <class Test>
BNEXT_FORCE_INLINE bool any_lane(Test&& test) {
    decltype(Doubles{} < Doubles{}) seen{};
    unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA { seen |= test(i); });
    bool any = false;
    for (int k = 0; k < Wide::kPartLanes; ++k) any |= seen[k] != 0;
    return any;
}

// Whether any of the sums is beyond what cpu/range.hpp takes as it is.
inline bool any_beyond(Index channels, const double* sums, double smallest) {
    Wide least = broadcast(1.0), rest = broadcast(0.0);
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide sum = load_columns(sums + c, columns, 1.0);
        unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
            const Native<double> value = sum.part[i], opposite = 0.0 - value;
            const Native<double> size = value > opposite ? value : opposite;
            least.part[i] = size < least.part[i] ? size : least.part[i];
            rest.part[i] += value - value;  // 0, or NaN of what is no number
        });
    });
    return any_lane([&](auto i) BNEXT_INLINE_LAMBDA {
        return (least.part[i] < smallest) | (rest.part[i] != 0.0);
    });
}

// Whether any channel may be beyond the second phase's arithmetic: cpu/extremes.hpp has the limits,
// and decides. Only the largest and smallest of all are kept here, so that nothing is to be seen of
// this beside the divisions. NaN is none of them.
template <class C>
class ExtremesSeen {
public:
    BNEXT_FORCE_INLINE void add(const Wide& values) {
        each([&](auto i) BNEXT_INLINE_LAMBDA {
            const Native<double> value = values.part[i];
            top_.part[i] = value > top_.part[i] ? value : top_.part[i];
            bottom_.part[i] = value < bottom_.part[i] ? value : bottom_.part[i];
        });
    }
    BNEXT_FORCE_INLINE void add_rstd(const Wide& r) {
        each([&](auto i) BNEXT_INLINE_LAMBDA { keep_least(r.part[i], least_r_.part[i]); });
    }
    // A slope may be small where r is not; both are seen in the larger of the two, at r's scale.
    BNEXT_FORCE_INLINE void add_slope(const Wide& slope, const Wide& r) {
        constexpr double kScale = kSmallSlopesMatter / (kSmallestScale * kSmallestScale);
        each([&](auto i) BNEXT_INLINE_LAMBDA {
            const Native<double> square = slope.part[i] * slope.part[i] * kScale;
            keep_least(square > r.part[i] ? square : r.part[i], least_slope_.part[i]);
        });
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool any() const {
        if constexpr (sizeof(C) > 4) return false;
        return any_lane([&](auto i) BNEXT_INLINE_LAMBDA {
            return (top_.part[i] >= kLargeDifferences) | (bottom_.part[i] <= -kLargeDifferences) |
                   (least_r_.part[i] < kSmallestScale) |
                   (least_slope_.part[i] < kSmallSlopesMatter);
        });
    }

private:
    template <class F>
    BNEXT_FORCE_INLINE static void each(F&& f) {
        if constexpr (sizeof(C) == 4) unrolled<Wide::kParts>(f);
    }
    BNEXT_FORCE_INLINE static void keep_least(const Native<double>& value, Native<double>& least) {
        least = value < least ? value : least;
    }

    Wide top_ = broadcast(0.0), bottom_ = broadcast(0.0);
    Wide least_r_ = broadcast(1.0), least_slope_ = broadcast(1.0);
};

// The mean minus its value in the compute type: for float64 data the low part that it has beside
// that (core/statistics.hpp).
template <class T>
BNEXT_FORCE_INLINE Wide low_part(const Wide& mean, const double* mean_low, int columns) {
    if constexpr (kHasMeanLow<T>) {
        return load_columns(mean_low, columns);
    } else {
        return mean - widen(round_to<Compute<T>>(mean));
    }
}

// Of Normalize.
template <class T>
bool norm_coefficients(Index channels, const Terms<T>& of, Compute<T>* const* rows) {
    using Row = Normalize<Compute<T>>;
    ExtremesSeen<Compute<T>> extremes;
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide exact = load_columns(of.mean + c, columns);
        const Wide r = load_columns(of.rstd + c, columns, 1.0);
        const Wide low = low_part<T>(exact, of.mean_low + c, columns);
        const Wide factor = parameter(of.weight, c, columns, 1.0) * r;
        const Wide bias = parameter(of.bias, c, columns, 0.0);
        extremes.add(exact);
        extremes.add(factor);
        extremes.add_rstd(r);
        store_coefficients<T>(rows[Row::kCenter] + c, columns, exact);
        store_coefficients<T>(rows[Row::kScale] + c, columns, factor);
        store_coefficients<T>(rows[Row::kShift] + c, columns, bias - low * factor);
    });
    return extremes.any();
}

// Of Gradient.
template <class T>
bool backward_coefficients(Index channels, const Terms<T>& of, Compute<T>* const* rows) {
    using Row = Gradient<Compute<T>>;
    const Wide n = broadcast(of.n), zero = broadcast(0.0);
    ExtremesSeen<Compute<T>> extremes;
    for_each_pack(channels, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Wide exact = load_columns(of.mean + c, columns);
        const Wide r = load_columns(of.rstd + c, columns, 1.0);
        const Wide low = low_part<T>(exact, of.mean_low + c, columns);
        const Wide tilt = (zero - r) * (r * (load_columns(of.sum_dy_xmu + c, columns) / n));
        const Wide mean_dy = load_columns(of.sum_dy + c, columns) / n;
        const Wide factor = of.scale != nullptr ? load_columns(of.scale + c, columns)
                                                : parameter(of.weight, c, columns, 1.0) * r;
        extremes.add(exact);
        extremes.add(mean_dy);
        extremes.add(factor);
        extremes.add(tilt);
        extremes.add_rstd(r);
        extremes.add_slope(tilt, r);
        store_coefficients<T>(rows[Row::kCenter] + c, columns, exact);
        store_coefficients<T>(rows[Row::kSlope] + c, columns, tilt);
        store_coefficients<T>(rows[Row::kOffset] + c, columns, mean_dy + low * tilt);
        store_coefficients<T>(rows[Row::kScale] + c, columns, factor);
    });
    return extremes.any();
}
