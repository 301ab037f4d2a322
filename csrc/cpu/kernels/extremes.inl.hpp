// Channels whose sums leave the range of float32, done again in double.
//
// bfloat16 has float32's range, from 10^-40 to 3 * 10^38, so squares of its values, which are
// summed in float32 for a while, overflow above 10^19 and vanish below 10^-20. Sums show that:
//   - what overflows is infinite or NaN in the end;
//   - what vanishes is smaller by 2^-150 for each of n values, which does not matter beside a sum
//   of
//     at least n * 2^-110, and is taken for lost below.
// Such a channel's values are gone through one by one. That is slow, and rare but for channels
// without any variance or gradient, whose sums are 0 because they are: these are told apart by
// their bits, at a fraction of the time that summing takes.
//
// Traffic: the tile once more for its bits, twice more for moments, once for gradients; from a
//          cache.
// Order:   value by value. What is done again depends on the tile's data alone, so that the result
//          is the same whoever does it.
// Error:   of sums in double.

template <class T>
inline constexpr bool kMayLeaveRange = DTypeOf<T>::value == DType::bfloat16;

inline constexpr double kFarFromZero = 0x1p-40;

BNEXT_FORCE_INLINE double size_of_number(double a) { return a < 0.0 ? 0.0 - a : a; }

BNEXT_FORCE_INLINE bool is_in_range(double sum, double n) {
    const double size = size_of_number(sum);
    return size >= 0x1p-110 * n && size < __builtin_inf();
}

// Whether squares of deviations from a pilot are. Next to a pilot that far from 0 values lie too
// far apart for squares to vanish, so where their sum is 0 they are 0.
BNEXT_FORCE_INLINE bool are_squares_in_range(double sum_d2, double pilot, double n) {
    return is_in_range(sum_d2, n) || (sum_d2 == 0.0 && size_of_number(pilot) >= kFarFromZero);
}

// Whether gradients and their products with deviations are, by the same reasoning.
BNEXT_FORCE_INLINE bool are_products_in_range(double sum_dy, double sum_dy_xmu, double center,
                                              double n) {
    const double gradient = size_of_number(sum_dy);
    return gradient < __builtin_inf() &&
           (is_in_range(sum_dy_xmu, n) ||
            (sum_dy_xmu == 0.0 && size_of_number(center) >= kFarFromZero &&
             gradient >= 0x1p-60 * n));
}

// Calls f(o, i) for every value of a channel in a tile.
template <class F>
BNEXT_FORCE_INLINE void for_each_place(const Tile& tile, F&& f) {
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        for (Index i = tile.inner_begin; i < tile.inner_end; ++i) f(o, i);
    }
}

// Of a tile: the mean, relative to the channel's origin, and m2.
template <class T>
BNEXT_NO_INLINE void exact_moments(const View<const T>& x, const Tile& tile, Index c, double origin,
                                   double& mean, double& m2) {
    const auto n = static_cast<double>(tile.values());
    const auto from_origin = [&](Index o, Index i) BNEXT_INLINE_LAMBDA {
        return static_cast<double>(*at(x, o, c, i)) - origin;
    };
    double sum = 0.0, rest = 0.0, squares = 0.0;
    for_each_place(tile, [&](Index o, Index i) BNEXT_INLINE_LAMBDA { sum += from_origin(o, i); });
    const double near = sum / n;
    for_each_place(tile, [&](Index o, Index i) BNEXT_INLINE_LAMBDA {
        const double d = from_origin(o, i) - near;
        rest += d;
        squares += d * d;
    });
    const double all = squares - rest * (rest / n);
    mean = near + rest / n;
    m2 = all < 0.0 ? 0.0 : all;
}

// Of all tiles of a region: the sums of dy and of dy * (x - mean).
template <class T>
BNEXT_NO_INLINE void exact_gradient_sums(const View<const T>& dy, const View<const T>& x,
                                         const Region& region, Index c, double mean, double& sum_dy,
                                         double& sum_dy_xmu) {
    double s1 = 0.0, s2 = 0.0;
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
        for_each_place(region.tiling->tile(t), [&](Index o, Index i) BNEXT_INLINE_LAMBDA {
            const auto grad = static_cast<double>(*at(dy, o, c, i));
            s1 += grad;
            s2 += grad * (static_cast<double>(*at(x, o, c, i)) - mean);
        });
    }
    sum_dy = s1;
    sum_dy_xmu = s2;
}

// --- zeros --------------------------------------------------------------------------------------

// Whether a channel of planes has a value other than 0 in a tile.
template <class T>
BNEXT_FORCE_INLINE bool has_values(const View<const T>& x, const Tile& tile, Index c) {
    const Index n = tile.inner_end - tile.inner_begin;
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        const T* const run = at(x, o, c, 0) + tile.inner_begin;
        std::uint32_t bits = 0;
        for (Index j = 0; j < n; ++j) bits |= run[j].bits;
        if ((bits & 0x7fffU) != 0) return true;
    }
    return false;
}
template <class T>
BNEXT_NO_INLINE bool has_values(const View<const T>& x, const Region& region, Index c) {
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
        if (has_values(x, region.tiling->tile(t), c)) return true;
    }
    return false;
}

// Adds the bits of every column of rows to `bits`.
template <class T>
BNEXT_NO_INLINE void collect_bits(const View<const T>& x, const Tile& rows, Index first,
                                  Index width, std::uint16_t* bits) {
    for_each_row_block(rows, 1, [&](Index o, Index i, Index) BNEXT_INLINE_LAMBDA {
        const T* const row = at(x, o, 0, i) + first;
        for (Index k = 0; k < width; ++k) {
            bits[k] = static_cast<std::uint16_t>(bits[k] | row[k].bits);
        }
    });
}
BNEXT_FORCE_INLINE bool any_values(const std::uint16_t* bits, Index columns) {
    unsigned all = 0;
    for (Index k = 0; k < columns; ++k) all |= bits[k];
    return (all & 0x7fffU) != 0;
}
