// The second phase of the double backward pass: results by the coefficients of TwiceRow
// (double_backward_kernels.hpp), in double and rounded once.
//
// Traffic: each input once, each result once.
// Order:   elementwise.

template <class T>
BNEXT_FORCE_INLINE void write_result(T* p, int some, bool streams, const Wide& values) {
    if (p == nullptr) return;
    if constexpr (!kIs16Bit<T>) {
        if (streams && some == 0) return stream(p, round_to<Compute<T>>(values));
    }
    store_as(p, some, values);
}

// n values, of which the first is column k's; kStep 0: all of them are. `slope`, `curve`: null
// where there is none.
template <int kStep, class T>
BNEXT_NO_INLINE void write_run_twice(const DoubleBackward<T>& of, const TwiceRun<T>& run, Index n,
                                     Index k, const Compute<T>* slope, const Compute<T>* curve,
                                     bool streams) {
    Wide alike[kTwiceRows];
    if constexpr (kStep == 0) {
        unrolled<kTwiceRows>([&](auto r)
                                 BNEXT_INLINE_LAMBDA { alike[r] = broadcast(of.row[r][k]); });
    }
    const TwiceRun<T> at_run = run;
    const bool selects = !of.is_curved();
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const auto row = [&](TwiceRow which) BNEXT_INLINE_LAMBDA {
            const int r = static_cast<int>(which);
            return kStep == 0 ? alike[r] : load_columns(of.row[r] + k + j, some);
        };
        const auto from = [](T* p, Index by)
                              BNEXT_INLINE_LAMBDA { return p != nullptr ? p + by : nullptr; };
        Wide g = load_as<double>(at_run.dy + j, some), h, of_x;
        begin_twice(row, load_as<double>(at_run.x + j, some), h, of_x);
        if (at_run.ddx != nullptr) {
            take_ddx(row, load_as<double>(at_run.ddx + j, some), h, of_x);
        }
        if (at_run.ddresidual != nullptr) h = h + load_as<double>(at_run.ddresidual + j, some);
        if (curve != nullptr) {
            const Wide t = take_curve(row, g, load_as<double>(curve + j, some), h, of_x);
            write_result(from(at_run.of_residual, j), some, streams, t);
        }
        if (slope != nullptr) {
            const Wide by = load_as<double>(slope + j, some);
            g = times_slope(g, by, selects);
            h = times_slope(h, by, selects);
        }
        end_twice(row, g, of_x);
        write_result(from(at_run.of_dy, j), some, streams, h);
        write_result(from(at_run.of_x, j), some, streams, of_x);
    });
}

// Whether lines begin where the results of a run do, as far as there are any.
template <class T>
BNEXT_FORCE_INLINE bool begins_lines(const TwiceRun<T>& run) {
    const auto place = [](const T* p) BNEXT_INLINE_LAMBDA {
        return p == nullptr ? 0 : reinterpret_cast<std::uintptr_t>(p) % 64;
    };
    return (place(run.of_dy) | place(run.of_x) | place(run.of_residual)) == 0;
}

// A run by pieces, with act' and act'' of each.
template <int kStep, class T>
BNEXT_FORCE_INLINE void write_pieces(const DoubleBackward<T>& of, TwiceRun<T> run, Index n, Index k,
                                     bool streams) {
    using C = Compute<T>;
    if (!of.has_activation()) {
        return write_run_twice<kStep, T>(of, run, n, k, nullptr, nullptr, streams);
    }
    alignas(64) C slope[kTwicePiece], curve[kTwicePiece];
    for (Index left = n; left > 0; left -= kTwicePiece, k += kStep * kTwicePiece) {
        const Index some = left < kTwicePiece ? left : kTwicePiece;
        derive_run(of, run, k, kStep, some, slope, curve);
        write_run_twice<kStep, T>(of, run, some, k, slope, of.is_curved() ? curve : nullptr,
                                  streams);
        run.advance(kTwicePiece);
    }
}

// Tiles from the last to the first: what the first phase read last, a cache still holds.
template <class T>
void planar_twice_write(const DoubleBackward<T>& of, const Region& region, Stores stores) {
    const Tiling& tiling = *region.tiling;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = tiling.tile(t);
        const Index n = tile.inner_end - tile.inner_begin;
        for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
            for (Index c = region.channels.begin; c < region.channels.end; ++c) {
                TwiceRun<T> run(of, o, c, tile.inner_begin);
                const T* const one = run.of_dy != nullptr ? run.of_dy : run.of_x;
                Index head = 0;
                if (stores == Stores::streaming && one != nullptr) {
                    head = values_to_boundary(one, n);
                    if (head > 0) write_pieces<0>(of, run, head, c, false);
                    run.advance(head);
                }
                if (head == n) continue;
                const bool streams = stores == Stores::streaming && begins_lines(run);
                write_pieces<0>(of, run, n - head, c, streams);
            }
        }
    }
    if (stores == Stores::streaming) fence();
}

template <class T>
void interleaved_twice_write(const DoubleBackward<T>& of, const Region& region, Stores stores) {
    const Tiling& tiling = *region.tiling;
    const Index columns = tiling.columns(), first = region.channels.begin * columns;
    const Index width = region.channels.size() * columns;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = rows_of_tile(tiling, t);
        for_each_row_block(
            tile, kSummedRows, [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
                const TwiceRows<T> rows(of, tile, o, i, first);
                for (Index k = 0; k < width; k += kTwiceColumns) {
                    const Index left = width - k;
                    const Index here = left < kTwiceColumns ? left : Index{kTwiceColumns};
                    for (Index r = 0; r < count; ++r) {
                        TwiceRun<T> run = rows.row(r);
                        run.advance(k);
                        const bool streams = stores == Stores::streaming && begins_lines(run);
                        write_pieces<1>(of, run, here, first + k, streams);
                    }
                }
            });
    }
    if (stores == Stores::streaming) fence();
}

template <class T>
constexpr DoubleBackwardKernels<T> double_backward_kernels_of() {
    return {{planar_twice_reduce<T>, interleaved_twice_reduce<T>},
            {planar_twice_write<T>, interleaved_twice_write<T>}};
}
