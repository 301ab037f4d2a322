// What instances/passes_*.cu instantiate of double backward passes.
#pragma once

#include "cuda/twice_instances.hpp"
#include "cuda/twice_kernels.hpp"

namespace bnext::cuda {

template <class T>
Kernel twice_kernel(TwiceStep step, int unit) {
    if (step == TwiceStep::find_pilots) return &find_twice_pilots<TwiceKind<T, 1>>;
    const auto of_unit = [&]<int V>() -> Kernel {
        using K = TwiceKind<T, V>;
        return step == TwiceStep::reduce ? &reduce_twice<K> : &apply_twice<K>;
    };
    if (unit == 1) return of_unit.template operator()<1>();
    if constexpr (has_activated_unit(DTypeOf<T>::value, 4)) {
        if (unit == 4) return of_unit.template operator()<4>();
    }
    return nullptr;
}

template <class P>
Kernel finish_twice_kernel() {
    return &finish_twice<P>;
}

}  // namespace bnext::cuda
