// What instances/*.cu instantiate: every kernel of one data type.
#pragma once

#include "cuda/instances.hpp"
#include "cuda/kernels.hpp"

namespace bnext::cuda {

// Calls f with the Kind of that layout, for I inputs, in vectors or single values.
template <class T, int I, class F>
Kernel with_kind(Layout layout, bool vectors, F&& f) {
    constexpr DType kType = DTypeOf<T>::value;
    constexpr Layout kPlanar = Layout::planar, kInterleaved = Layout::interleaved;
    if (layout == kPlanar) {
        return vectors ? f(Kind<T, kPlanar, vector_of(kType, kPlanar), I>{})
                       : f(Kind<T, kPlanar, 1, I>{});
    }
    return vectors ? f(Kind<T, kInterleaved, vector_of(kType, kInterleaved), I>{})
                   : f(Kind<T, kInterleaved, 1, I>{});
}

template <class T>
Kernel fused_forward(Layout layout, bool vectors) {
    return with_kind<T, 1>(layout, vectors, [](auto kind) -> Kernel {
        using K = decltype(kind);
        return &fused<K, Forward<K>>;
    });
}

template <class T>
Kernel fused_backward(Layout layout, bool vectors) {
    return with_kind<T, 2>(layout, vectors, [](auto kind) -> Kernel {
        using K = decltype(kind);
        return &fused<K, Backward<K>>;
    });
}

template <class T>
Kernel phase_kernel(Phase phase, Layout layout, bool vectors) {
    if (phase == Phase::collect_stats || phase == Phase::apply_norm) {
        return with_kind<T, 1>(layout, vectors, [phase](auto kind) -> Kernel {
            using K = decltype(kind);
            return phase == Phase::collect_stats ? &reduce<K, Forward<K>> : &apply<K, Forward<K>>;
        });
    }
    return with_kind<T, 2>(layout, vectors, [phase](auto kind) -> Kernel {
        using K = decltype(kind);
        return phase == Phase::backward_reduce ? &reduce<K, Backward<K>> : &apply<K, Backward<K>>;
    });
}

}  // namespace bnext::cuda
