// What instances/*.cu instantiate: every kernel of one data type.
#pragma once

#include "cuda/instances.hpp"
#include "cuda/kernels.hpp"

namespace bnext::cuda {

// Calls f with the Kind of that layout and unit, for I inputs.
template <class T, Layout L, int I, class F>
Kernel with_unit(int unit, F&& f) {
    Kernel kernel = nullptr;
    const auto try_unit = [&]<int V>() {
        if constexpr (has_unit(DTypeOf<T>::value, V)) {
            if (unit == V) kernel = f(Kind<T, L, V, I>{});
        }
    };
    try_unit.template operator()<1>();
    try_unit.template operator()<2>();
    try_unit.template operator()<4>();
    try_unit.template operator()<8>();
    return kernel;
}
template <class T, int I, class F>
Kernel with_kind(Layout layout, int unit, F&& f) {
    return layout == Layout::planar ? with_unit<T, Layout::planar, I>(unit, f)
                                    : with_unit<T, Layout::interleaved, I>(unit, f);
}

template <class T>
using ForwardFormula = Formula<Pass::forward, Epilogue::none, Compute<T>>;
template <class T>
using BackwardFormula = Formula<Pass::backward, Epilogue::none, Compute<T>>;

template <class T>
Kernel fused_forward(Layout layout, int unit) {
    return with_kind<T, ForwardFormula<T>::kReads>(layout, unit, [](auto kind) -> Kernel {
        using K = decltype(kind);
        return &fused<K, Forward<K>>;
    });
}

template <class T>
Kernel fused_backward(Layout layout, int unit) {
    return with_kind<T, BackwardFormula<T>::kReads>(layout, unit, [](auto kind) -> Kernel {
        using K = decltype(kind);
        return &fused<K, Backward<K>>;
    });
}

// The phases of one direction alone.
template <class T, class F, template <class> class Operation>
Kernel phase_of_formula(bool sums, Layout layout, int unit) {
    if (sums) {
        return with_kind<T, F::kSummed>(layout, unit, [](auto kind) -> Kernel {
            using K = decltype(kind);
            return &reduce<K, Operation<K>>;
        });
    }
    return with_kind<T, F::kReads>(layout, unit, [](auto kind) -> Kernel {
        using K = decltype(kind);
        return &apply<K, Operation<K>>;
    });
}

template <class T>
Kernel phase_kernel(Phase phase, Layout layout, int unit) {
    if (phase == Phase::collect_stats || phase == Phase::apply_norm) {
        return phase_of_formula<T, ForwardFormula<T>, Forward>(phase == Phase::collect_stats,
                                                               layout, unit);
    }
    return phase_of_formula<T, BackwardFormula<T>, Backward>(phase == Phase::backward_reduce,
                                                             layout, unit);
}

}  // namespace bnext::cuda
