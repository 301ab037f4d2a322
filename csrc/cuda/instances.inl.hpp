// What instances/*.cu instantiate: every kernel of one data type.
#pragma once

#include <array>
#include <type_traits>

#include "cuda/activated.hpp"
#include "cuda/instances.hpp"
#include "cuda/kernels.hpp"

namespace bnext::cuda {

enum class Phases { fused, reduce, apply };

template <class T, Pass kPass, Phases kPhases>
Kernel kernel_for(Layout layout, int unit) {
    using F = Formula<kPass, Epilogue::none, Compute<T>>;
    constexpr int kInputs = kPhases == Phases::reduce ? F::kSummed : F::kReads;
    Kernel kernel = nullptr;
    const auto try_kind = [&]<Layout L, int V>() {
        if constexpr (has_unit(DTypeOf<T>::value, V)) {
            using K = Kind<T, L, V, kInputs>;
            using Operation = std::conditional_t<kPass == Pass::forward, Forward<K>, Backward<K>>;
            if (layout != L || unit != V) return;
            if constexpr (kPhases == Phases::fused) kernel = &fused<K, Operation>;
            if constexpr (kPhases == Phases::reduce) kernel = &reduce<K, Operation>;
            if constexpr (kPhases == Phases::apply) kernel = &apply<K, Operation>;
        }
    };
    const auto try_unit = [&]<int V>() {
        try_kind.template operator()<Layout::planar, V>();
        try_kind.template operator()<Layout::interleaved, V>();
    };
    try_unit.template operator()<1>();
    try_unit.template operator()<2>();
    try_unit.template operator()<4>();
    try_unit.template operator()<8>();
    return kernel;
}

template <class T>
Kernel fused_forward(Layout layout, int unit) {
    return kernel_for<T, Pass::forward, Phases::fused>(layout, unit);
}
template <class T>
Kernel fused_backward(Layout layout, int unit) {
    return kernel_for<T, Pass::backward, Phases::fused>(layout, unit);
}
template <class T>
Kernel phase_kernel(Phase phase, Layout layout, int unit) {
    constexpr std::array kKernels{
        &kernel_for<T, Pass::forward, Phases::reduce>,
        &kernel_for<T, Pass::forward, Phases::apply>,
        &kernel_for<T, Pass::backward, Phases::reduce>,
        &kernel_for<T, Pass::backward, Phases::apply>,
    };
    return kKernels[static_cast<std::size_t>(phase)](layout, unit);
}

template <class T>
Kernel activated_kernel(Pass pass, Layout layout, int unit) {
    Kernel kernel = nullptr;
    const auto try_kind = [&]<Layout L, int V>() {
        if constexpr (has_activated_unit(DTypeOf<T>::value, V)) {
            if (activated_layout(layout, unit) != L || unit != V) return;
            using X = Kind<T, L, V, 1>;
            using Both = Kind<T, L, V, 2>;
            kernel = pass == Pass::forward ? &activated<X, ForwardActivated<X>>
                                           : &activated<Both, BackwardActivated<Both>>;
        }
    };
    try_kind.template operator()<Layout::planar, 1>();
    try_kind.template operator()<Layout::planar, 4>();
    try_kind.template operator()<Layout::interleaved, 4>();
    return kernel;
}

}  // namespace bnext::cuda
