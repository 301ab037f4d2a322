// The second phase of activated passes: a region, cut into runs (activated_runs.inl.hpp). Where
// lines are streamed, runs begin on their boundaries but for what is left at a region's ends.

// Writes `planes` planes of n values each, of channels k, k + 1, ... of the coefficients, that
// follow each other without a gap. Where there are several, n is at least a unit.
template <class Formula, class T>
BNEXT_NO_INLINE void write_activated_planes(const ActivatedRun<T>& run, Index planes, Index n,
                                            bool streams, const CoefficientsIn<Compute<T>>& all,
                                            Index k) {
    const Index total = planes * n;
    const Index head = streams || planes > 1 ? values_to_boundary(run.out[0], total) : 0;
    FlagWriter flags(all.activated->flags);
    if constexpr (Formula::kFlags == Flags::written) flags.begin_at(run.flag);
    write_walk(run, PlaneWalk<Formula, T>{all, k, n, total, head, streams}, *all.activated, flags);
    flags.finish();
}

template <class Formula, class T>
void write_activated_planar(const View<const T>* in, const View<T>* out, const Region& region,
                            const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const FlagBits& flags = all.activated->flags;
    const Index plane = region.tiling->inner();
    bool joined = plane >= kUnit<T> && out[0].stride.inner == 1;
    for (int i = 0; i < Formula::kReads; ++i) joined = joined && in[i].stride.channel == plane;
    for (int w = 0; w < Formula::kWrites; ++w) joined = joined && out[w].stride.channel == plane;
    if (flags.are_kept()) joined = joined && flags.stride.channel == plane;
    if constexpr (kWritesQuickly<T>) {
        const auto quickly = [&](const auto& formula) BNEXT_INLINE_LAMBDA {
            using Quick = std::remove_cvref_t<decltype(formula)>;
            write_planar<Quick>(in, out, region, all, access);
        };
        if (write_quickly<Formula>(*all.activated, out, access, true, quickly)) return;
    }
    const auto write = [&](Index o, Index c, Index planes, Index i, Index n) BNEXT_INLINE_LAMBDA {
        ActivatedRun<T> run{};
        T* begins[Formula::kWrites];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            run.in[r] = at(in[r], o, c, 0) + i;
            // Of what the second phase alone reads, what comes next in this run (ahead_of): asked
            // for a block ahead, a residual took 5 % longer (a Zen 5).
            if (access.ahead != 0 && r < Formula::kSummed) {
                run.ahead[r] = run_ahead(in[r], region, access, o, c, i);
            }
        });
        unrolled<Formula::kWrites>(
            [&](auto w) BNEXT_INLINE_LAMBDA { run.out[w] = begins[w] = at(out[w], o, c, 0) + i; });
        run.flag = flags.at(o, c, i);
        bool streams = access.stores == Stores::streaming;
        if (streams && streams_apart<Formula>(begins, run.in[1], flags)) {
            stream_dresidual(run.in[1], run.out[1], run.flag, planes * n, *all.activated);
            run.out[1] = nullptr;
        } else {
            streams = streams && begin_alike(begins);
        }
        write_activated_planes<Formula>(run, planes, n, streams, all, c - region.channels.begin);
    };
    for_each_written_plane(region, joined, write);
    if (access.stores == Stores::streaming) fence();
}

// --- rows ---------------------------------------------------------------------------------------

// Coefficients of so many columns stay in the first-level cache while rows are written.
inline constexpr Index kColumnsOfRuns = 512;

// Rows, of which runs of at most kColumnsOfRuns are written.
template <class Formula, class T>
struct ActivatedRows {
    ActivatedRun<T> first;  // row 0
    Index in_pitch[3];
    Index out_pitch[2];
    Index flag_pitch;
    Index ahead;  // rows

    // `count` rows from `row` on, columns [begin, end).
    BNEXT_NO_INLINE void write(const Activated& by, Index row, Index count, Index begin, Index end,
                               bool streams, FlagWriter& flags) const {
        ActivatedRun<T> run = first;
        for (Index c = begin; c < end; c += kColumnsOfRuns) {
            const Index behind = end - c < kColumnsOfRuns ? end : c + kColumnsOfRuns;
            for (Index r = row; r < row + count; ++r) {
                for (int i = 0; i < Formula::kReads; ++i) {
                    run.in[i] = first.in[i] + r * in_pitch[i];
                    run.ahead[i] = first.in[i] + (r + ahead) * in_pitch[i];
                }
                run.out[0] = first.out[0] + r * out_pitch[0];
                if (first.out[1] != nullptr) run.out[1] = first.out[1] + r * out_pitch[1];
                run.flag = first.flag + r * flag_pitch;
                write_run<Formula>(run, c, behind, streams, by, flags);
            }
        }
    }
};

// stream_dresidual of `count` rows; those that wrap are one piece of memory, from value `begin` to
// value `end`: so far as dx is written with them, which may lie over dy.
template <class Rows>
BNEXT_FORCE_INLINE void stream_rows_of_dresidual(const Rows& rows, Index width, Index count,
                                                 bool wraps, Index begin, Index end,
                                                 const Activated& by) {
    const auto& first = rows.first;
    if (wraps) {
        return stream_dresidual(first.in[1] + begin, first.out[1] + begin, first.flag + begin,
                                end - begin, by);
    }
    for (Index r = 0; r < count; ++r) {
        stream_dresidual(first.in[1] + r * rows.in_pitch[1], first.out[1] + r * rows.out_pitch[1],
                         first.flag + r * rows.flag_pitch, width, by);
    }
}

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
    FlagWriter flags(by.flags);
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
        rows.first.flag = by.flags.at(o, 0, i) + first;
        rows.flag_pitch = pitch_of(by.flags.stride);
        rows.ahead = count;
        const bool apart = in_lines && streams_apart<Formula>(begins, rows.first.in[1], by.flags);
        if (!apart && (!in_lines || !begin_alike(begins))) {
            return rows.write(by, 0, count, 0, width, false, flags);
        }
        const bool wraps = dense && outer_only;
        const Index head = values_to_boundary(begins[0], width);
        if (apart) {
            const Index begin = o == tile.outer_begin ? 0 : head;
            const Index end = count * width + (o + count < tile.outer_end ? head : 0);
            stream_rows_of_dresidual(rows, width, count, wraps, begin, end, by);
            rows.first.out[1] = nullptr;
        }
        // The last row of the tile has no next one to go on in.
        const Index whole = wraps ? (o + count < tile.outer_end ? count : count - 1) : 0;
        if (!wraps || o == tile.outer_begin) {
            rows.write(by, 0, wraps ? 1 : count, 0, head, false, flags);
        }
        rows.write(by, 0, whole, head, head + width, true, flags);
        rows.write(by, whole, count - whole, head, width, true, flags);
    });
    flags.finish();
}

// Rows of few columns that leave no gap: as rows of many of them, with the coefficients repeated.
template <class Formula, class T>
struct RepeatedRows {
    static constexpr Index kMostWidth = 48, kLength = kMostWidth * kLanes;

    // For n values.
    static bool pays(Index width, Index n) { return width <= kMostWidth && n >= 4 * kLength; }

    // n values that follow each other; the run's coefficients are set here.
    BNEXT_NO_INLINE static void write(ActivatedRun<T>& run, Index n, Index width, bool streams,
                                      const CoefficientsIn<Compute<T>>& all) {
        Compute<T> values[Formula::kRows][kLength];
        const Index length = kLength / (width * kLanes) * (width * kLanes);
        for (int r = 0; r < Formula::kRows; ++r) {
            Index k = 0;
            for (Index c = 0; c < length; ++c) {
                values[r][c] = all.row[r][k];
                if (++k == width) k = 0;
            }
        }
        FlagWriter flags(all.activated->flags);
        const Index head = streams ? values_to_boundary(run.out[0], n) : 0;
        for (Index j = 0; j < n;) {
            const Index phase = j % width;
            for (int r = 0; r < Formula::kRows; ++r) run.row[r] = values[r] + phase;
            // Whole packs, of which the last one's coefficients are in the table as well.
            const Index room = (length - phase) / kLanes * kLanes;
            const Index some = j < head ? head - j : (n - j < room ? n - j : room);
            write_run<Formula>(run, 0, some, streams && j >= head, *all.activated, flags);
            for (int i = 0; i < Formula::kReads; ++i) run.in[i] += some;
            for (int w = 0; w < Formula::kWrites; ++w) run.out[w] += some;
            run.flag += some;
            j += some;
        }
        flags.finish();
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
    if constexpr (kWritesQuickly<T>) {
        const bool fill_words = rows_fill_words(flags, out[0], region);
        const auto quickly = [&](const auto& formula) BNEXT_INLINE_LAMBDA {
            using Quick = std::remove_cvref_t<decltype(formula)>;
            write_interleaved<Quick>(in, out, region, all, access);
        };
        if (write_quickly<Formula>(*all.activated, out, access, fill_words, quickly)) return;
    }
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = rows_of_tile(*region.tiling, t);
        const Index o = tile.outer_begin, c = region.channels.begin;
        if (dense && is_outer_only(tile) &&
            RepeatedRows<Formula, T>::pays(width, (tile.outer_end - o) * width)) {
            ActivatedRun<T> run{};
            T* begins[Formula::kWrites];
            unrolled<Formula::kReads>([&](auto i)
                                          BNEXT_INLINE_LAMBDA { run.in[i] = at(in[i], o, c, 0); });
            unrolled<Formula::kWrites>(
                [&](auto w) BNEXT_INLINE_LAMBDA { run.out[w] = begins[w] = at(out[w], o, c, 0); });
            run.flag = flags.at(o, c, 0);
            const bool streams = access.stores == Stores::streaming && begin_alike(begins);
            RepeatedRows<Formula, T>::write(run, (tile.outer_end - o) * width, width, streams, all);
            continue;
        }
        write_activated_rows<Formula>(in, out, tile, region.channels.begin * columns, width, dense,
                                      access.stores, all);
    }
    if (access.stores == Stores::streaming) fence();
}
