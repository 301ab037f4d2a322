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

// kRows rows of a block, from r on. `begins`: theirs are the first sums of the chunk's columns. Of
// several rows, the sums of columns stay in registers from one to the next.
template <class T, class C, bool kCentered, bool kSums, int kRows>
BNEXT_FORCE_INLINE void differentiate_some(const RowGradient<T>& of, const RowBlock& block, Index r,
                                           double* dweight, double* dbias, bool begins,
                                           const RowAccess& access) {
    const Index from = block.columns.begin;
    const bool has_next = r + kRows - 1 - block.begin < access.ahead;
    const T *x[kRows], *dy[kRows], *next_x[kRows], *next_dy[kRows];
    T* dx[kRows];
    Pack<C> scale[kRows], shift[kRows], slope[kRows], offset[kRows], center[kRows];
    unrolled<kRows>([&](auto k) BNEXT_INLINE_LAMBDA {
        const GradientNumbers<C> numbers(of.of, of.sums, r + k,
                                         1.0 / static_cast<double>(of.width));
        center[k] = broadcast(numbers.center);
        scale[k] = broadcast(numbers.scale);
        shift[k] = broadcast(numbers.shift);
        slope[k] = broadcast(numbers.slope);
        offset[k] = broadcast(numbers.offset);
        const Index after = has_next ? r + k + block.rows() : r + k;
        next_x[k] = of.next_x.at(after, from);
        next_dy[k] = of.next_dy.at(after, from);
        x[k] = of.x.at(r + k, from);
        dy[k] = of.dy.at(r + k, from);
        dx[k] = of.dx.at(r + k, from);
    });
    const Param<T>* const weight = of.weight + from;
    const auto at = [&](Index j, int some, bool line) BNEXT_INLINE_LAMBDA {
        if (has_next) {
            unrolled<kRows>([&](auto k) BNEXT_INLINE_LAMBDA {
                prefetch_packs<1>(next_x[k] + j);
                prefetch_packs<1>(next_dy[k] + j);
            });
        }
        [[maybe_unused]] double* const of_weight = dweight + from + j;
        [[maybe_unused]] double* const of_bias = dbias + from + j;
        Wide sum_of_weight = broadcast(0.0), sum_of_bias = broadcast(0.0);
        if constexpr (kSums) {
            if (!begins) {
                sum_of_weight = load_columns(of_weight, some);
                if constexpr (kCentered) sum_of_bias = load_columns(of_bias, some);
            }
        }
        const Pack<C> times = load_as<C>(weight + j, some);
        unrolled<kRows>([&](auto k) BNEXT_INLINE_LAMBDA {
            const Pack<C> value = load_as<C>(x[k] + j, some);
            const Pack<C> xhat =
                kCentered ? fma(value - center[k], scale[k], shift[k]) : value * scale[k];
            const Pack<C> of_y = load_as<C>(dy[k] + j, some);
            const Pack<C> g = of_y * times;
            Pack<C> result = fma(g, scale[k], xhat * slope[k]);
            if constexpr (kCentered) result = result + offset[k];
            put<C>(dx[k] + j, some, result, line);
            if constexpr (kSums) {
                const Wide wide = widen(of_y);
                sum_of_weight = fma(wide, widen(xhat), sum_of_weight);
                if constexpr (kCentered) sum_of_bias = sum_of_bias + wide;
            }
        });
        if constexpr (kSums) {
            store_columns(of_weight, some, sum_of_weight);
            if constexpr (kCentered) store_columns(of_bias, some, sum_of_bias);
        }
    };
    for_each_pack_from_line(dx[0], block.columns.size(), access.stores == Stores::streaming, at);
}

// Rows that are written together, where the sums of columns are wanted: four of five stores are to
// these sums. In a cache that took 0.83 of the time ((2048, 100), a Zen 5), and 0.80 where the sums
// leave the first-level cache ((8192, 4096)). Short rows that are streamed took 1.2 of it.
template <class T>
inline constexpr int kRowsTogether = kNativeBytes == 64 && sizeof(T) < 8 ? 2 : 1;
inline constexpr Index kLongRow = 2048;

template <class T, bool kCentered>
void differentiate_rows(const RowGradient<T>& of, const RowBlock& block, double* dweight,
                        double* dbias, bool fresh, const RowAccess& access) {
    constexpr int kTogether = kRowsTogether<T>;
    const bool streams = access.stores == Stores::streaming;
    const bool alike = of.dx.pitch * static_cast<Index>(sizeof(T)) % 64 == 0;
    [[maybe_unused]] const bool pairs =
        dweight != nullptr && (!streams || (alike && block.columns.size() >= kLongRow));
    for (Index r = block.begin; r < block.end;) {
        const bool begins = fresh && r == block.begin;
        const bool extreme = is_extreme_row<T>(of.of, r);
        if constexpr (kTogether == 2) {
            if (pairs && r + 1 < block.end && !extreme && !is_extreme_row<T>(of.of, r + 1)) {
                differentiate_some<T, Compute<T>, kCentered, true, 2>(of, block, r, dweight, dbias,
                                                                      begins, access);
                r += 2;
                continue;
            }
        }
        const auto with = [&](auto type) BNEXT_INLINE_LAMBDA {
            using C = decltype(type);
            if (dweight != nullptr) {
                differentiate_some<T, C, kCentered, true, 1>(of, block, r, dweight, dbias, begins,
                                                             access);
            } else {
                differentiate_some<T, C, kCentered, false, 1>(of, block, r, nullptr, nullptr,
                                                              begins, access);
            }
        };
        extreme ? with(double{}) : with(Compute<T>{});
        ++r;
    }
    if (streams) fence();
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
