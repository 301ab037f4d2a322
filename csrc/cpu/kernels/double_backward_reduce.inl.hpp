// The first phase of the double backward pass: the sums of TwiceSum (core/double_backward.hpp).
//
// Traffic: each input once.
// Order:   planar, 16 lanes over a region's values, then one lane tree; by rows, blocks of 16 rows,
//          then the blocks in turn. No result depends on threads.
// Error:   products of float32 values are exact, sums in double, g and e rounded to the compute
//          type. Pilots keep means of ddx and dy that are large beside their deviations out of
//          them.

// x - mean; 0 in the lanes behind the first `some`, unless all exist (0).
BNEXT_FORCE_INLINE Wide from_mean(const Wide& x, const Wide& mean, int some) {
    const Wide d = x - mean;
    if (some == 0) return d;
    alignas(64) double lanes[kLanes];
    store(lanes, d);
    for (int lane = some; lane < kLanes; ++lane) lanes[lane] = 0.0;
    return load(lanes);
}

// What the values of a channel are taken about.
struct TwiceCenters {
    double mean, u, g, scale;
};

// G: of dy itself, or of g as `gradients_of_run` left it.
template <class T, class G>
BNEXT_NO_INLINE void add_run(const TwiceRun<T>& run, const G* g, Index n, const TwiceCenters& about,
                             double (*lanes)[kLanes]) {
    Wide sums[kTwiceSumsOfLines];
    unrolled<kTwiceSumsOfLines>([&](auto s) BNEXT_INLINE_LAMBDA { sums[s] = load(lanes[s]); });
    const Wide mean = broadcast(about.mean), of_u = broadcast(about.u), of_g = broadcast(about.g);
    const T *const x = run.x, *const ddx = run.ddx;
    // Where a run ends, d, u and g are 0.
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Wide d = from_mean(load_as<double>(x + j, some), mean, some);
        const Wide here = load_as<double>(g + j, some, about.g) - of_g;
        const bool has_u = ddx != nullptr;
        add_twice(sums, d, here, has_u,
                  has_u ? load_as<double>(ddx + j, some, about.u) - of_u : of_u);
    });
    unrolled<kTwiceSumsOfLines>([&](auto s) BNEXT_INLINE_LAMBDA { store(lanes[s], sums[s]); });
}

// k of a pack.
template <class T>
BNEXT_FORCE_INLINE Wide curved_factor(const TwiceRun<T>& run, Index j, int some, const Wide& of_u,
                                      const Wide& scale) {
    Wide k = broadcast(0.0);
    if (run.ddresidual != nullptr) k = load_as<double>(run.ddresidual + j, some);
    if (run.ddx != nullptr) k = fma(load_as<double>(run.ddx + j, some) - of_u, scale, k);
    return k;
}

template <class T>
BNEXT_NO_INLINE void add_curved_run(const TwiceRun<T>& run, const Compute<T>* e, Index n,
                                    const TwiceCenters& about, double (*lanes)[kLanes]) {
    constexpr int kSums = kTwiceSums - kTwiceSumsOfLines;
    Wide sums[kSums];
    unrolled<kSums>([&](auto s) BNEXT_INLINE_LAMBDA { sums[s] = load(lanes[s]); });
    const Wide mean = broadcast(about.mean), of_u = broadcast(about.u);
    const Wide scale = broadcast(about.scale);
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        add_curved(sums, load_as<double>(run.x + j, some) - mean, load_as<double>(e + j, some),
                   curved_factor(run, j, some, of_u, scale));
    });
    unrolled<kSums>([&](auto s) BNEXT_INLINE_LAMBDA { store(lanes[s], sums[s]); });
}

template <class T>
void planar_twice_reduce(const DoubleBackward<T>& of, const Region& region, double* sums,
                         Index pitch) {
    using C = Compute<T>;
    const Tiling& tiling = *region.tiling;
    const int rows = of.is_curved() ? kTwiceSums : kTwiceSumsOfLines;
    alignas(64) C slope[kTwicePiece], curve[kTwicePiece];
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const TwiceCenters about{of.coefficients(TwiceRow::mean)[c], of.pilot_u[c], of.pilot_g[c],
                                 of.coefficients(TwiceRow::scale)[c]};
        alignas(64) double lanes[kTwiceSums][kLanes] = {};
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = tiling.tile(t);
            for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
                TwiceRun<T> run(of, o, c, tile.inner_begin);
                Index left = tile.inner_end - tile.inner_begin;
                if (!of.has_activation()) {
                    add_run(run, run.dy, left, about, lanes);
                    continue;
                }
                for (; left > 0; left -= kTwicePiece, run.advance(kTwicePiece)) {
                    const Index n = left < kTwicePiece ? left : kTwicePiece;
                    derive_run(of, run, c, 0, n, slope, curve);
                    gradients_of_run(run.dy, of.is_curved(), n, slope, curve);
                    add_run(run, static_cast<const C*>(slope), n, about, lanes);
                    if (of.is_curved()) {
                        add_curved_run(run, curve, n, about, lanes + kTwiceSumsOfLines);
                    }
                }
            }
        }
        for (int s = 0; s < rows; ++s) {
            sums[s * pitch + c - region.channels.begin] = sum_lanes(load(lanes[s]));
        }
    }
}

// --- sums of rows -------------------------------------------------------------------------------

inline constexpr int kTwiceColumns = 256;

// The centers of a strip's columns.
struct TwiceStrip {
    const double *mean, *scale;
    alignas(64) double u[kTwiceColumns], g[kTwiceColumns];
};

template <int N>
BNEXT_FORCE_INLINE void add_to_columns(const Wide (&sums)[N], double* to, Index pitch, int some) {
    unrolled<N>([&](auto s) BNEXT_INLINE_LAMBDA {
        double* const p = to + s * pitch;
        store_columns(p, some, load_columns(p, some) + sums[s]);
    });
}

template <class T, class G>
BNEXT_NO_INLINE void add_rows_twice(const TwiceRows<T>& rows, const G* g, Index g_pitch,
                                    Index count, Index width, const TwiceStrip& about, double* to,
                                    Index pitch) {
    const T *const x = rows.first.x, *const ddx = rows.first.ddx;
    for_each_pack_of(0, width, [&](Index k, int some) BNEXT_INLINE_LAMBDA {
        Wide sums[kTwiceSumsOfLines];
        unrolled<kTwiceSumsOfLines>([&](auto s) BNEXT_INLINE_LAMBDA { sums[s] = broadcast(0.0); });
        const Wide mean = load_columns(about.mean + k, some);
        const Wide of_u = load(about.u + k), of_g = load(about.g + k);
        for (Index r = 0; r < count; ++r) {
            prefetch_packs<1>(x + (r + count) * rows.x + k);
            prefetch_packs<1>(g + (r + count) * g_pitch + k);
            if (ddx != nullptr) prefetch_packs<1>(ddx + (r + count) * rows.ddx + k);
            const Wide d = load_as<double>(x + r * rows.x + k, some) - mean;
            const Wide here = load_as<double>(g + r * g_pitch + k, some) - of_g;
            const bool has_u = ddx != nullptr;
            add_twice(sums, d, here, has_u,
                      has_u ? load_as<double>(ddx + r * rows.ddx + k, some) - of_u : of_u);
        }
        add_to_columns(sums, to + k, pitch, some);
    });
}

template <class T>
BNEXT_NO_INLINE void add_curved_rows(const TwiceRows<T>& rows, const Compute<T>* e, Index e_pitch,
                                     Index count, Index width, const TwiceStrip& about, double* to,
                                     Index pitch) {
    constexpr int kSums = kTwiceSums - kTwiceSumsOfLines;
    for_each_pack_of(0, width, [&](Index k, int some) BNEXT_INLINE_LAMBDA {
        Wide sums[kSums];
        unrolled<kSums>([&](auto s) BNEXT_INLINE_LAMBDA { sums[s] = broadcast(0.0); });
        const Wide mean = load_columns(about.mean + k, some), of_u = load(about.u + k);
        const Wide scale = load_columns(about.scale + k, some);
        for (Index r = 0; r < count; ++r) {
            const TwiceRun<T> run = rows.row(r);
            add_curved(sums, load_as<double>(run.x + k, some) - mean,
                       load_as<double>(e + r * e_pitch + k, some),
                       curved_factor(run, k, some, of_u, scale));
        }
        add_to_columns(sums, to + k, pitch, some);
    });
}

// A chunk that is walked by rows is one tile.
template <class T>
void interleaved_twice_reduce(const DoubleBackward<T>& of, const Region& region, double* sums,
                              Index pitch) {
    using C = Compute<T>;
    constexpr Index kPitch = kTwiceColumns;
    const Tiling& tiling = *region.tiling;
    const Tile tile = rows_of_tile(tiling, region.tiles.begin);
    const Index columns = tiling.columns();
    const Index strip = channels_of_strip(kTwiceColumns, columns);
    const int sum_rows = of.is_curved() ? kTwiceSums : kTwiceSumsOfLines;
    alignas(64) C slopes[kSummedRows * kPitch], curves[kSummedRows * kPitch];
    TwiceStrip about{};
    for (Index begin = region.channels.begin; begin < region.channels.end; begin += strip) {
        const Index left = region.channels.end - begin, channels = left < strip ? left : strip;
        const Index width = channels * columns, first = begin * columns;
        about.mean = of.coefficients(TwiceRow::mean) + first;
        about.scale = of.coefficients(TwiceRow::scale) + first;
        for (Index c = 0; c < channels; ++c) {
            const double u = of.pilot_u[begin + c];
            const double g = of.pilot_g[begin + c];
            for (Index i = 0; i < columns; ++i) {
                about.u[c * columns + i] = u;
                about.g[c * columns + i] = g;
            }
        }
        double* const to = sums + (begin - region.channels.begin) * columns;
        for (int s = 0; s < sum_rows; ++s) {
            for (Index k = 0; k < width; ++k) to[s * pitch + k] = 0.0;
        }
        for_each_row_block(
            tile, kSummedRows, [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
                const TwiceRows<T> rows(of, tile, o, i, first);
                if (!of.has_activation()) {
                    add_rows_twice(rows, rows.first.dy, rows.dy, count, width, about, to, pitch);
                    return;
                }
                for (Index r = 0; r < count; ++r) {
                    const TwiceRun<T> run = rows.row(r);
                    derive_run(of, run, first, 1, width, slopes + r * kPitch, curves + r * kPitch);
                    gradients_of_run(run.dy, of.is_curved(), width, slopes + r * kPitch,
                                     curves + r * kPitch);
                }
                add_rows_twice(rows, static_cast<const C*>(slopes), kPitch, count, width, about, to,
                               pitch);
                if (of.is_curved()) {
                    add_curved_rows(rows, curves, kPitch, count, width, about,
                                    to + kTwiceSumsOfLines * pitch, pitch);
                }
            });
    }
}
