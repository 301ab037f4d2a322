// Planes of a few values as rows: each channel has several neighbouring columns of a row (Tiling).
// Kernels sum and write columns; here is what makes channels of them.

// A tile of such rows, or any other that is walked by rows.
BNEXT_FORCE_INLINE Tile rows_of_tile(const Tiling& tiling, Index t) {
    const Tile tile = tiling.tile(t);
    return tiling.columns() == 1 ? tile : Tile{tile.outer_begin, tile.outer_end, 0, 1};
}

// How many channels have at most `most` columns, a multiple of 16: whole packs of channels and so
// of columns. There are fewer columns in a channel than lanes, so 256 are enough for 16 channels.
BNEXT_FORCE_INLINE Index channels_of_strip(Index most, Index columns) {
    return columns == 1 ? most : most / (columns * kLanes) * kLanes;
}

// Adds up, in their order, what a channel's columns have; the sums take the place of the first.
BNEXT_FORCE_INLINE void sum_so_many_columns(double* values, Index channels, Index columns) {
    for (Index k = 0; k < channels; ++k) {
        double sum = values[k * columns];
        for (Index i = 1; i < columns; ++i) sum += values[k * columns + i];
        values[k] = sum;
    }
}

// The shortest sums are unrolled: as loops they take three times as long.
BNEXT_NO_INLINE inline void sum_columns(double* values, Index channels, Index columns) {
    switch (columns) {
        case 1: return;
        case 2: return sum_so_many_columns(values, channels, 2);
        case 3: return sum_so_many_columns(values, channels, 3);
        case 4: return sum_so_many_columns(values, channels, 4);
        default: return sum_so_many_columns(values, channels, columns);
    }
}

// A usual value of each channel in a tile, as the pilot of all its columns. It is one of the n that
// are summed, which is enough for float32; and of the data's own type, so that differences of
// 16-bit data are exact, which with a pilot near the mean they are not.
template <class T, class Value>
BNEXT_NO_INLINE void set_pilots_of_channels(const View<const T>& x, const Tile& tile, Index first,
                                            Index channels, Value* values) {
    set_usual_values(x, tile, first, channels, values);
}

// The origins (view.hpp) of a pack of channels, of which so many exist.
template <class T>
BNEXT_FORCE_INLINE Wide origins_apart(const View<const T>& x, const Tiling& tiling, Index first,
                                      Index channels) {
    double origins[kLanes] = {};
    const Tile all{0, tiling.outer(), 0, tiling.inner()};
    set_pilots_of_channels(x, all, first, channels < kLanes ? channels : kLanes, origins);
    return load_wide(origins);
}
