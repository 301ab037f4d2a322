// Units of data: V values of T that are read and written as one access, batches of them, and where
// those lie in shared memory.
#pragma once

#include "cuda/arguments.hpp"
#include "cuda/device.hpp"

namespace bnext::cuda {

template <class T, int V>
struct alignas(sizeof(T) * V) Unit {
    T value[V];
};

// What a kernel is made for: units of V values, I arrays that are read.
template <class T_, Layout L, int V_, int I>
struct Kind {
    using T = T_;
    using C = Compute<T>;
    using P = Param<T>;
    using U = Unit<T, V_>;
    static constexpr int V = V_;
    static constexpr int kInputs = I;
    static constexpr int kChannels = L == Layout::planar ? 1 : V;  // of a unit
    static constexpr int kPerChannel = V / kChannels;              // values of it, in a unit
    static constexpr KernelShape kShape = kernel_shape(DTypeOf<T>::value, L, V, I);
    static constexpr int kBatch = kShape.batch;  // units
    static constexpr int kAhead = kShape.ahead;  // batches
    static constexpr Runs kRuns = runs_of(L, V);
};

template <class K>
using Batch = typename K::U[K::kBatch];
template <class K>
inline constexpr unsigned kAllUnits = (1U << K::kBatch) - 1;  // as bits

// Value v of a unit, in the arithmetic's type.
template <class K>
BNEXT_DEVICE typename K::C wide(const typename K::U& unit, int v) {
    return device::widened_of<K::V>(unit.value, v);
}

// A batch's values, as sums take them: batch[u].value[v] is of channel v % kChannels.
template <class K, class F>
BNEXT_DEVICE void for_each_value(F&& f) {
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) {
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) f(u, v, K::kChannels == 1 ? 0 : v);
    }
}

// A batch's place in shared memory, by its number. Units of a warp lie side by side, so that all of
// a thread's are at distances known to the compiler. No other thread touches them, so that nothing
// has to be waited for.
template <class K>
inline constexpr int kUnitsOfWarp = kWarp * K::kBatch * K::kInputs;
template <class K>
BNEXT_DEVICE typename K::U* slots_of_thread(unsigned char* shared) {
    const int thread = device::thread();
    return reinterpret_cast<typename K::U*>(shared) + thread / kWarp * kUnitsOfWarp<K> +
           thread % kWarp;
}
template <class K>
constexpr int place_in_slot(int input, int unit) {
    return (input * K::kBatch + unit) * kWarp;
}
template <class K>
BNEXT_DEVICE Index bytes_of_slots(int threads, int slots) {
    return Index{slots} * K::kInputs * K::kBatch * threads *
           static_cast<Index>(sizeof(typename K::U));
}

}  // namespace bnext::cuda
