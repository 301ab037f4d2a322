// The sums of rows: of a forward pass, moments; of a backward pass, g = dy * weight and g * xhat.
//
// Moments. Within a tile of n <= 4096 values, with a pilot p and d = x - p,
//     mean = p + (sum d) / n,    m2 = sum d^2 - (sum d)^2 / n
// and tiles are merged as core/moments.hpp says, about the row's origin. All of it in double. The
// pilot is the tile's first value, which loses a factor of n at most of the 2^53 that double has;
// of float64 data it is the tile's mean, found by a look at the tile before, which a cache still
// has. Without centering the origin and all pilots are 0, and m2 is the sum of squares.
//
// Traffic: x once; backward, x and dy once.
// Order:   16 lanes, one lane tree per tile, tiles in turn. Backward, one lane tree for each piece.
// Error:   float32 and 16 bits: m2 within 4096 * 2^-53 = 5e-13 relative at worst; float64: a few
//          2^-53; both whatever mean/std is. Products of a backward pass are rounded to the type of
//          elementwise arithmetic (xhat, g), and summed in double.

struct RunOfSums {
    double d;
    double d2;
};

template <class T>
BNEXT_FORCE_INLINE RunOfSums sums_of_run(const T* x, Index n, double pilot) {
    const Deviation<double> from_pilot(broadcast(pilot));
    Wide first = broadcast(0.0), second = broadcast(0.0);
    for_each_pack(n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Wide d = from_pilot(load_as<double>(x + j, some, pilot));
        first = first + d;
        second = fma(d, d, second);
    });
    return {sum_lanes(first), sum_lanes(second)};
}

template <class T>
BNEXT_FORCE_INLINE double sum_of_squares(const T* x, Index n) {
    Wide sum = broadcast(0.0);
    for_each_pack(n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Wide value = load_as<double>(x + j, some);
        sum = fma(value, value, sum);
    });
    return sum_lanes(sum);
}

template <class T>
void row_moments(const Matrix<const T>& x, Index width, const RowBlock& block, bool centered,
                 const RowSums& moments) {
    for (Index r = 0; r < block.rows(); ++r) {
        const T* const row = x.row(block.begin + r);
        const double origin = centered ? origin_of_row(row, width) : 0.0;
        Moments sum;
        for (Index j = block.columns.begin; j < block.columns.end; j += kRowTileValues) {
            const Index left = block.columns.end - j;
            const Index values = left < kRowTileValues ? left : kRowTileValues;
            if (!centered) {
                sum.m2 += sum_of_squares(row + j, values);
                continue;
            }
            const auto n = static_cast<double>(values);
            auto pilot = static_cast<double>(row[j]);
            RunOfSums s = sums_of_run(row + j, values, pilot);
            if constexpr (sizeof(T) == 8) {
                pilot = pilot + s.d / n;
                s = sums_of_run(row + j, values, pilot);
            }
            const double share = s.d / n;
            const double m2 = s.d2 - s.d * share;
            merge(sum, {n, (pilot - origin) + share, m2 < 0.0 ? 0.0 : m2});
        }
        moments.first[r] = sum.mean;
        moments.second[r] = sum.m2;
    }
}

// What turns a row's values into xhat: (x - center) * scale + shift.
template <class C>
struct RowNumbers {
    C center, scale, shift;

    BNEXT_FORCE_INLINE RowNumbers(const RowStatistics& of, Index row) {
        const double mean = of.mean[row], rstd = of.rstd[row];
        center = static_cast<C>(mean);
        scale = static_cast<C>(rstd);
        // A NaN has no payload (rounded_words, simd16.inl.hpp).
        const double low = (mean - static_cast<double>(center)) + of.mean_low[row];
        shift = low == low ? static_cast<C>(-low * rstd) : static_cast<C>(__builtin_nan(""));
    }
};

template <class T, class C, bool kCentered>
BNEXT_FORCE_INLINE void reduce_row(const RowGradient<T>& of, const ColumnRange& columns, Index r,
                                   Doubles& of_g, Doubles& of_g_xhat) {
    const RowNumbers<C> numbers(of.of, r);
    const Pack<C> center = broadcast(numbers.center), scale = broadcast(numbers.scale),
                  shift = broadcast(numbers.shift);
    const T* const x = of.x.at(r, columns.begin);
    const T* const dy = of.dy.at(r, columns.begin);
    const Param<T>* const weight = of.weight + columns.begin;
    Wide first = broadcast(0.0), second = broadcast(0.0);
    const Deviation<C> from_center(center);  // conversions to double keep the adding pipes busy
    for_each_pack(columns.size(), [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Pack<C> xhat =
            kCentered ? fma(from_center(load_as<C>(x + j, some, numbers.center)), scale, shift)
                      : load_as<C>(x + j, some) * scale;
        const Pack<C> g = load_as<C>(dy + j, some) * load_as<C>(weight + j, some);
        const Wide wide = widen(g);
        if constexpr (kCentered) first = first + wide;
        second = fma(wide, widen(xhat), second);
    });
    of_g = add_parts(first.part);
    of_g_xhat = add_parts(second.part);
}

template <class T, bool kCentered>
void row_reduce(const RowGradient<T>& of, const RowBlock& block, const RowSums& sums) {
    const auto sums_of = [&](Index k, Doubles& a, Doubles& b) BNEXT_INLINE_LAMBDA {
        const Index r = block.begin + k;
        if (is_extreme_row<T>(of.of, r)) {
            reduce_row<T, double, kCentered>(of, block.columns, r, a, b);
        } else {
            reduce_row<T, Compute<T>, kCentered>(of, block.columns, r, a, b);
        }
    };
    sum_lanes_of_all(block.rows(), sums.first, sums.second, sums_of);
}
