// The steps of activated passes over a piece of a row (cpu/activated_rows.hpp), which stays in the
// first-level cache between them.
//
// argument:  z = xhat * weight + bias + residual, with xhat = (x - mean) * rstd
// widen:     data as what elementwise arithmetic is in
// narrow:    the reverse, rounded
//
// Traffic: x and the residual; y or dresidual.
// Order:   elementwise.
// Error:   of xhat, of the fused multiply-add, of the sum. Forward and backward call the same
//          functions, so z has the same bits in both.

template <class T, class S>
void argument_of_row(const RowStatistics& of, Index row, const RowPiece<T>& piece, S* z) {
    const RowNumbers<S> numbers(of, row);
    const Pack<S> center = broadcast(numbers.center), scale = broadcast(numbers.scale),
                  shift = broadcast(numbers.shift);
    const T *const x = piece.x, *const residual = piece.residual, *const next = piece.next;
    const Param<T>*const weight = piece.weight, *const bias = piece.bias;
    for_each_pack_of(0, piece.n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        if (next != nullptr) prefetch_packs<1>(next + j);
        const Pack<S> xhat = fma(load_as<S>(x + j, some) - center, scale, shift);
        Pack<S> at = fma(xhat, load_as<S>(weight + j, some), load_as<S>(bias + j, some));
        if (residual != nullptr) at = at + load_as<S>(residual + j, some);
        store(z + j, at);
    });
}

template <class T, class S>
void widen_row(const T* values, Index n, S* to) {
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        store(to + j, load_as<S>(values + j, some));
    });
}

template <class T, class S>
void narrow_row(const S* values, Index n, T* to, bool streams) {
    Index j = 0;
    if constexpr (std::is_same_v<S, Compute<T>>) {
        if (streams) {
            j = values_to_boundary(to, n);
            for_each_pack_of(0, j, [&](Index k, int some) BNEXT_INLINE_LAMBDA {
                store_as<S>(to + k, some, load(values + k));
            });
            for (; j + kLanes <= n; j += kLanes) stream(to + j, load(values + j));
        }
    }
    for_each_pack_of(j, n, [&](Index k, int some) BNEXT_INLINE_LAMBDA {
        store_as<S>(to + k, some, load_as<S>(values + k, some));
    });
}

template <class T, class S>
constexpr RowSteps<T, S> row_steps_of() {
    return {argument_of_row<T, S>, widen_row<T, S>, narrow_row<T, S>};
}
