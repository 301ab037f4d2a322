// Helpers that several phases share: walking the rows of an interleaved tile, and writing a run of
// consecutive values with the stores that the plan chose.

// Calls f(o, i) for every row of the tile, in index order.
template <class F>
BNEXT_FORCE_INLINE void for_each_row(const Tile& tile, F&& f) {
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        for (Index i = tile.inner_begin; i < tile.inner_end; ++i) f(o, i);
    }
}

template <class T>
BNEXT_FORCE_INLINE T* at(const View<T>& view, Index o, Index c, Index i) {
    return view.data + o * view.stride.outer + c * view.stride.channel + i * view.stride.inner;
}

// Values before p reaches a 64-byte boundary (p is a multiple of sizeof(T)), at most n.
template <class T>
BNEXT_FORCE_INLINE int values_to_boundary(const T* p, Index n) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) % 64);
    const Index head = (past == 0 ? 0 : 64 - past) / static_cast<Index>(sizeof(T));
    return static_cast<int>(head < n ? head : n);
}

// Writes out[j] = f(j) for j in [0, n), where `whole(j)` computes the 16 values from j on, and
// `part(j, k)` a pack of which the first k lanes count. Streaming stores need whole, aligned lines:
// what precedes the first and follows the last goes through the cache.
template <class T, class Whole, class Part>
BNEXT_FORCE_INLINE void write_run(T* out, Index n, Stores stores, Whole&& whole, Part&& part) {
    Index j = 0;
    if (stores == Stores::streaming) {
        if (const int head = values_to_boundary(out, n); head > 0) {
            store_first(out, head, part(j, head));
            j = head;
        }
        for (; j + kLanes <= n; j += kLanes) stream(out + j, whole(j));
    } else {
        for (; j + kLanes <= n; j += kLanes) store(out + j, whole(j));
    }
    if (j < n) {
        const int rest = static_cast<int>(n - j);
        store_first(out + j, rest, part(j, rest));
    }
}
