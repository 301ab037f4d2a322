// The second phase of activated passes: a region, cut into runs (activated_runs.inl.hpp). Where
// lines are streamed, runs begin on their boundaries but for what is left at a region's ends.

// The values [j, end) of a run.
template <class Formula, class T>
BNEXT_FORCE_INLINE ActivatedRun<T> part_of(const ActivatedRun<T>& run, Index j, Index end) {
    ActivatedRun<T> part = run;
    for (int i = 0; i < Formula::kReads; ++i) {
        part.in[i] += j;
        part.ahead[i] += j;
    }
    for (int w = 0; w < Formula::kWrites; ++w) part.out[w] += j;
    for (int r = 0; r < Formula::kRows; ++r) part.row[r] += j * run.step;
    part.flag += j;
    part.n = end - j;
    return part;
}

// Coefficients of a channel, as 16 that are alike; of a pack across the end of one, those of two.
template <class Formula, class C>
struct AlikeCoefficients {
    alignas(64) C values[Formula::kRows][kLanes];

    BNEXT_FORCE_INLINE AlikeCoefficients(const CoefficientsIn<C>& all, Index k) {
        for (int r = 0; r < Formula::kRows; ++r) store(values[r], broadcast(all.row[r][k]));
    }
    BNEXT_FORCE_INLINE AlikeCoefficients(const CoefficientsIn<C>& all, Index k, int n) {
        for (int r = 0; r < Formula::kRows; ++r) {
            store(values[r], blend(n, broadcast(all.row[r][k]), broadcast(all.row[r][k + 1])));
        }
    }
    template <class Run>
    BNEXT_FORCE_INLINE void give(Run& run) const {
        for (int r = 0; r < Formula::kRows; ++r) run.row[r] = values[r];
    }
};

// Writes `planes` planes of n values each, of channels k, k + 1, ... of the coefficients, that
// follow each other without a gap. Where there are several, n is at least a pack.
template <class Formula, class T>
BNEXT_NO_INLINE void write_activated_planes(const ActivatedRun<T>& whole, Index planes, Index n,
                                            const CoefficientsIn<Compute<T>>& all, Index k) {
    const Index total = planes * n;
    const auto write = [&](const AlikeCoefficients<Formula, Compute<T>>& by, Index j, Index end,
                           bool streams) BNEXT_INLINE_LAMBDA {
        if (j >= end) return;
        ActivatedRun<T> run = part_of<Formula>(whole, j, end);
        by.give(run);
        run.streams = streams;
        write_run<Formula>(run, *all.activated);
    };
    Index j = whole.streams || planes > 1 ? values_to_boundary(whole.out[0], total) : 0;
    for (Index end = n;; end += n, ++k) {
        const AlikeCoefficients<Formula, Compute<T>> of_channel(all, k);
        if (end == n) write(of_channel, 0, j < n ? j : n, false);
        if (end == total) return write(of_channel, j, total, whole.streams);
        const Index packs = j < end ? j + (end - j) / kLanes * kLanes : j;
        write(of_channel, j, packs, whole.streams);
        j = packs;
        if (j < end) {
            write({all, k, static_cast<int>(end - j)}, j, j + kLanes, whole.streams);
            j += kLanes;
        }
    }
}

template <class Formula, class T>
void write_activated_planar(const View<const T>* in, const View<T>* out, const Region& region,
                            const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const FlagBits& flags = all.activated->flags;
    const Index plane = region.tiling->inner();
    bool joined = plane >= 2 * kUnit<T> && out[0].stride.inner == 1;
    for (int i = 0; i < Formula::kReads; ++i) joined = joined && in[i].stride.channel == plane;
    for (int w = 0; w < Formula::kWrites; ++w) joined = joined && out[w].stride.channel == plane;
    if (flags.are_kept()) joined = joined && flags.stride.channel == plane;
    const auto write = [&](Index o, Index c, Index planes, Index i, Index n) BNEXT_INLINE_LAMBDA {
        ActivatedRun<T> run{};
        T* begins[Formula::kWrites];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            run.in[r] = at(in[r], o, c, 0) + i;
            run.ahead[r] = run_ahead(in[r], region, access, o, c, i);
        });
        unrolled<Formula::kWrites>(
            [&](auto w) BNEXT_INLINE_LAMBDA { run.out[w] = begins[w] = at(out[w], o, c, 0) + i; });
        run.flag = flags.at(o, c, i);
        run.streams = access.stores == Stores::streaming && begin_alike(begins);
        write_activated_planes<Formula>(run, planes, n, all, c - region.channels.begin);
    };
    for_each_written_plane(region, joined, write);
    if (access.stores == Stores::streaming) fence();
}

// --- rows ---------------------------------------------------------------------------------------

// Coefficients of so many columns stay in the first-level cache while rows are written.
inline constexpr Index kColumnsOfRuns = 512;

// Writes `count` rows, columns [begin, end), by runs of at most kColumnsOfRuns.
template <class Formula, class T>
struct ActivatedRows {
    ActivatedRun<T> first;  // of row 0, from column 0 on
    Index in_pitch[3];
    Index out_pitch[2];
    Index flag_pitch;
    Index ahead;  // rows

    BNEXT_FORCE_INLINE void write(const Activated& by, Index row, Index count, Index begin,
                                  Index end, bool streams) const {
        for (Index c = begin; c < end; c += kColumnsOfRuns) {
            const Index columns = end - c < kColumnsOfRuns ? end - c : kColumnsOfRuns;
            for (Index r = row; r < row + count; ++r) {
                ActivatedRun<T> run = part_of<Formula>(first, c, c + columns);
                for (int i = 0; i < Formula::kReads; ++i) {
                    run.in[i] += r * in_pitch[i];
                    run.ahead[i] = run.in[i] + ahead * in_pitch[i];
                }
                for (int w = 0; w < Formula::kWrites; ++w) run.out[w] += r * out_pitch[w];
                run.flag += r * flag_pitch;
                run.streams = streams;
                write_run<Formula>(run, by);
            }
        }
    }
};

// Rows of a tile, as write_rows (write_interleaved.inl.hpp) has them.
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_activated_rows(const View<const T>* in, const View<T>* out,
                                             const Tile& tile, Index first, Index width, bool dense,
                                             Stores stores, const CoefficientsIn<Compute<T>>& all) {
    const bool outer_only = is_outer_only(tile);
    const Activated& by = *all.activated;
    const auto pitch_of = [&](const Strides& stride) BNEXT_INLINE_LAMBDA {
        return outer_only ? stride.outer : stride.inner;
    };
    bool in_lines = stores == Stores::streaming && width >= 2 * kLanes;
    for (int w = 0; w < Formula::kWrites; ++w) {
        in_lines = in_lines && row_pitch(out[w], tile) * static_cast<Index>(sizeof(T)) % 64 == 0;
    }
    for_each_row_block(tile, kWrittenRows, [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
        ActivatedRows<Formula, T> rows{};
        T* begins[Formula::kWrites];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            rows.first.in[r] = at(in[r], o, 0, i) + first;
            rows.in_pitch[r] = row_pitch(in[r], tile);
        });
        unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA {
            rows.first.out[w] = begins[w] = at(out[w], o, 0, i) + first;
            rows.out_pitch[w] = row_pitch(out[w], tile);
        });
        for (int r = 0; r < Formula::kRows; ++r) rows.first.row[r] = all.row[r];
        rows.first.step = 1;
        rows.first.flag = by.flags.at(o, 0, i) + first;
        rows.flag_pitch = pitch_of(by.flags.stride);
        rows.ahead = count;
        if (!in_lines || !begin_alike(begins)) return rows.write(by, 0, count, 0, width, false);
        const bool wraps = dense && outer_only;
        const Index head = values_to_boundary(begins[0], width);
        // The last row of the tile has no next one to go on in.
        const Index whole = wraps ? (o + count < tile.outer_end ? count : count - 1) : 0;
        if (!wraps || o == tile.outer_begin) rows.write(by, 0, wraps ? 1 : count, 0, head, false);
        rows.write(by, 0, whole, head, head + width, true);
        rows.write(by, whole, count - whole, head, width, true);
    });
}

// Rows of few columns that leave no gap: as rows of many of them, with the coefficients repeated.
template <class Formula, class T>
struct RepeatedRows {
    static constexpr Index kMostWidth = 48, kLength = kMostWidth * kLanes;

    BNEXT_NO_INLINE static void write(const ActivatedRun<T>& all_of_them, Index width,
                                      const CoefficientsIn<Compute<T>>& all) {
        const ActivatedRun<T>& run = all_of_them;
        const Activated& by = *all.activated;
        Index head = run.streams ? values_to_boundary(run.out[0], run.n) : 0;
        Compute<T> values[Formula::kRows][kLength];
        const Index length = kLength / (width * kLanes) * (width * kLanes);
        for (int r = 0; r < Formula::kRows; ++r) {
            Index k = 0;
            for (Index c = 0; c < length; ++c) {
                values[r][c] = all.row[r][k];
                if (++k == width) k = 0;
            }
        }
        const auto write_from = [&](Index j, Index end, bool streams) BNEXT_INLINE_LAMBDA {
            ActivatedRun<T> part = part_of<Formula>(run, j, end);
            for (int r = 0; r < Formula::kRows; ++r) part.row[r] = values[r] + j % width;
            part.step = 1;
            part.streams = streams;
            write_run<Formula>(part, by);
        };
        if (head > 0) write_from(0, head, false);
        for (Index j = head; j < run.n;) {
            // Whole packs, of which the last one's coefficients are in the table as well.
            const Index room = (length - j % width) / kLanes * kLanes;
            const Index end = run.n - j < room ? run.n : j + room;
            write_from(j, end, run.streams);
            j = end;
        }
    }
};

template <class Formula, class T>
void write_activated_interleaved(const View<const T>* in, const View<T>* out, const Region& region,
                                 const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const Index columns = region.tiling->columns();
    const Index width = region.channels.size() * columns;
    const FlagBits& flags = all.activated->flags;
    bool dense = access.wraps;
    for (int w = 0; w < Formula::kWrites; ++w) dense = dense && out[w].stride.outer == width;
    for (int i = 0; i < Formula::kReads; ++i) dense = dense && in[i].stride.outer == width;
    if (flags.are_kept()) dense = dense && flags.stride.outer == width;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = rows_of_tile(*region.tiling, t);
        if (dense && is_outer_only(tile) && width <= RepeatedRows<Formula, T>::kMostWidth) {
            const Index o = tile.outer_begin, c = region.channels.begin;
            ActivatedRun<T> run{};
            T* begins[Formula::kWrites];
            unrolled<Formula::kReads>(
                [&](auto i) BNEXT_INLINE_LAMBDA { run.in[i] = run.ahead[i] = at(in[i], o, c, 0); });
            unrolled<Formula::kWrites>(
                [&](auto w) BNEXT_INLINE_LAMBDA { run.out[w] = begins[w] = at(out[w], o, c, 0); });
            run.flag = flags.at(o, c, 0);
            run.n = (tile.outer_end - o) * width;
            run.streams = access.stores == Stores::streaming && begin_alike(begins);
            RepeatedRows<Formula, T>::write(run, width, all);
            continue;
        }
        write_activated_rows<Formula>(in, out, tile, region.channels.begin * columns, width, dense,
                                      access.stores, all);
    }
    if (access.stores == Stores::streaming) fence();
}
