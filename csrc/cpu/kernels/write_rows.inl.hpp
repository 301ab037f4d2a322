// What is written of rows.
//
// normalize:      y = xhat * weight + bias, with xhat = (x - mean) * rstd
// differentiate:  dx = rstd * (g - (sum g) / n - xhat * (sum g * xhat) / n),  g = dy * weight
//                 (Ba, Kiros and Hinton 2016; RMS, without the mean and sum g: Zhang and Sennrich
//                 2019), and for each column dweight = sum dy * xhat, dbias = sum dy.
//
// Derivation: with xhat_i = (x_i - mean) / sqrt(m2 / n + eps), d xhat_i / d x_j =
//     rstd * (delta_ij - 1/n - xhat_i * xhat_j / n).
// Traffic: x and y; x, dy and dx: inputs from a cache, where the sums of the block were just made.
// Order:   of each column, rows in turn, in double.
// Error:   a few units of the type of elementwise arithmetic, of xhat and of g; large means cancel
//          exactly in x - center, and what center lacks of the mean is in the shift.

// Calls f(j, some, line) for the packs of a row, of which `some` values exist (0: all): up to a
// line's beginning, and from there on, where whole packs begin with a line. f is compiled twice,
// for whole packs and for ends; with a call for each kind of pack, it was the largest part of these
// functions.
template <class T, class F>
BNEXT_FORCE_INLINE void for_each_pack_from_line(const T* written, Index n, bool from_line, F&& f) {
    Index j = 0;
    bool line = false;
    for (Index end = from_line ? values_to_boundary(written, n) : n;; end = n, line = true) {
        for (; j + kLanes <= end; j += kLanes) f(j, 0, line);
        if (j < end) f(j, static_cast<int>(end - j), false);
        j = end;
        if (end == n) return;
    }
}

// (`line`: a whole pack, on a line of the cache where it begins there.)
template <class C, class T>
BNEXT_FORCE_INLINE void put(T* p, int some, const Pack<C>& values, bool line) {
    if constexpr (std::is_same_v<C, Compute<T>>) {
        if (line) return stream(p, values);
    }
    store_as<C>(p, some, values);
}

template <class T, class C>
BNEXT_FORCE_INLINE void normalize_row(const T* x, T* y, Index n, const RowNumbers<C>& numbers,
                                      const Param<T>* weight, const Param<T>* bias, bool streams,
                                      const T* next) {
    const Pack<C> center = broadcast(numbers.center), scale = broadcast(numbers.scale),
                  shift = broadcast(numbers.shift);
    for_each_pack_from_line(y, n, streams, [&](Index j, int some, bool line) BNEXT_INLINE_LAMBDA {
        if (next != nullptr) prefetch_packs<1>(next + j);
        const Pack<C> xhat = fma(load_as<C>(x + j, some) - center, scale, shift);
        const Pack<C> value = fma(xhat, load_as<C>(weight + j, some), load_as<C>(bias + j, some));
        put<C>(y + j, some, value, line);
    });
}

template <class T>
void normalize_rows(const Matrix<const T>& x, const Matrix<T>& y, const RowBlock& block,
                    const RowStatistics& of, const Param<T>* weight, const Param<T>* bias,
                    const RowAccess& access) {
    const Index from = block.columns.begin, n = block.columns.size();
    const bool streams = access.stores == Stores::streaming;
    for (Index r = block.begin; r < block.end; ++r) {
        const bool has_next = r - block.begin < access.ahead;
        const T* const next = has_next ? x.row(r + block.rows()) + from : nullptr;
        const T* const in = x.row(r) + from;
        T* const out = y.row(r) + from;
        if (is_extreme_row<T>(of, r)) {
            normalize_row<T, double>(in, out, n, RowNumbers<double>(of, r), weight + from,
                                     bias + from, false, next);
        } else {
            normalize_row<T, Compute<T>>(in, out, n, RowNumbers<Compute<T>>(of, r), weight + from,
                                         bias + from, streams, next);
        }
    }
    if (streams) fence();
}

// The numbers of a row of dx: xhat as above, dx = g * scale + xhat * slope + offset.
template <class C>
struct GradientNumbers : RowNumbers<C> {
    C slope, offset;

    GradientNumbers() = default;
    BNEXT_FORCE_INLINE GradientNumbers(const RowStatistics& of, const RowSums& sums, Index row,
                                       double share)
        : RowNumbers<C>(of, row),
          slope(static_cast<C>(-of.rstd[row] * (sums.second[row] * share))),
          offset(static_cast<C>(-of.rstd[row] * (sums.first[row] * share))) {}
};

// Row r of a block. `begins`: its are the first sums of the chunk's columns.
template <class T, class C, bool kCentered, bool kSums>
BNEXT_FORCE_INLINE void differentiate_row(const RowGradient<T>& of, const RowBlock& block, Index r,
                                          double* dweight, double* dbias, bool begins,
                                          const RowAccess& access) {
    const GradientNumbers<C> numbers(of.of, of.sums, r, 1.0 / static_cast<double>(of.width));
    const Pack<C> center = broadcast(numbers.center), scale = broadcast(numbers.scale),
                  shift = broadcast(numbers.shift), slope = broadcast(numbers.slope),
                  offset = broadcast(numbers.offset);
    const Index from = block.columns.begin;
    const bool has_next = r - block.begin < access.ahead;
    const Index after = has_next ? r + block.rows() : r;
    const T* const next_x = of.next_x.at(after, from);
    const T* const next_dy = of.next_dy.at(after, from);
    const T* const x = of.x.at(r, from);
    const T* const dy = of.dy.at(r, from);
    T* const dx = of.dx.at(r, from);
    const Param<T>* const weight = of.weight + from;
    const auto at = [&](Index j, int some, bool line) BNEXT_INLINE_LAMBDA {
        if (has_next) {
            prefetch_packs<1>(next_x + j);
            prefetch_packs<1>(next_dy + j);
        }
        const Pack<C> value = load_as<C>(x + j, some);
        const Pack<C> xhat = kCentered ? fma(value - center, scale, shift) : value * scale;
        const Pack<C> of_y = load_as<C>(dy + j, some);
        const Pack<C> g = of_y * load_as<C>(weight + j, some);
        Pack<C> result = fma(g, scale, xhat * slope);
        if constexpr (kCentered) result = result + offset;
        put<C>(dx + j, some, result, line);
        if constexpr (kSums) {
            const Wide zero = broadcast(0.0), wide = widen(of_y);
            double* const of_weight = dweight + from + j;
            const Wide before = begins ? zero : load_columns(of_weight, some);
            store_columns(of_weight, some, fma(wide, widen(xhat), before));
            if constexpr (kCentered) {
                double* const of_bias = dbias + from + j;
                const Wide so_far = begins ? zero : load_columns(of_bias, some);
                store_columns(of_bias, some, so_far + wide);
            }
        }
    };
    for_each_pack_from_line(dx, block.columns.size(), access.stores == Stores::streaming, at);
}

template <class T, bool kCentered>
void differentiate_rows(const RowGradient<T>& of, const RowBlock& block, double* dweight,
                        double* dbias, bool fresh, const RowAccess& access) {
    for (Index r = block.begin; r < block.end; ++r) {
        const bool begins = fresh && r == block.begin;
        const auto with = [&](auto type) BNEXT_INLINE_LAMBDA {
            using C = decltype(type);
            if (dweight != nullptr) {
                differentiate_row<T, C, kCentered, true>(of, block, r, dweight, dbias, begins,
                                                         access);
            } else {
                differentiate_row<T, C, kCentered, false>(of, block, r, nullptr, nullptr, begins,
                                                          access);
            }
        };
        if (is_extreme_row<T>(of.of, r)) {
            with(double{});
        } else {
            with(Compute<T>{});
        }
    }
    if (access.stores == Stores::streaming) fence();
}

template <class T>
constexpr RowKernels<T> row_kernels_of() {
    return {row_moments<T>,
            normalize_rows<T>,
            {row_reduce<T, false>, row_reduce<T, true>},
            {differentiate_rows<T, false>, differentiate_rows<T, true>},
            row_steps_of<T, Compute<T>>(),
            row_steps_of<T, double>()};
}
