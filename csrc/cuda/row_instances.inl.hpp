// What instances/passes_*.cu instantiate for rows of one data type.
#pragma once

#include "cuda/row_backward.hpp"
#include "cuda/row_forward.hpp"
#include "cuda/row_instances.hpp"

namespace bnext::cuda {

template <class T>
Kernel row_kernel(Pass pass, bool activated, int unit) {
    Kernel kernel = nullptr;
    const auto take = [&]<class K>() {
        kernel = pass == Pass::forward ? &normalize_row<K> : &differentiate_row<K>;
    };
    const auto try_unit = [&]<int V>() {
        if (unit != V) return;
        if constexpr (has_activated_unit(DTypeOf<T>::value, V)) {
            if (activated) return take.template operator()<RowKind<T, V, true>>();
        }
        if constexpr (has_row_unit(DTypeOf<T>::value, V)) {
            if (!activated) take.template operator()<RowKind<T, V, false>>();
        }
    };
    try_unit.template operator()<1>();
    try_unit.template operator()<2>();
    try_unit.template operator()<4>();
    try_unit.template operator()<8>();
    return kernel;
}

template <class T>
Kernel row_columns_kernel() {
    return &sum_columns<T>;
}

template <class P>
Kernel row_merge_kernel() {
    return &merge_row_sums<P>;
}

}  // namespace bnext::cuda
