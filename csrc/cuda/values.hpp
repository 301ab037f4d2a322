// Units of data: V values of T that are read and written as one access, and what a thread does with
// a batch of them.
#pragma once

#include "cuda/arguments.hpp"
#include "cuda/device.hpp"
#include "cuda/kernel_shape.hpp"

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
};

template <class K>
using Batch = typename K::U[K::kBatch];

// A batch's values, as sums take them: batch[u].value[v] is of channel v % kChannels.
template <class K, class F>
BNEXT_DEVICE void for_each_value(F&& f) {
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) {
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) f(u, v, K::kChannels == 1 ? 0 : v);
    }
}

template <class K>
BNEXT_DEVICE unsigned units_of_batch(const Walk& walk, bool active) {
    unsigned exists = 0;
    walk.units<K::kBatch>(0, 0, [&](int u, bool inside, Index) {
        if (active && inside) exists |= 1U << u;
    });
    return exists;
}

// Which units of a batch exist, as bits; the others are 0.
template <class K>
BNEXT_DEVICE unsigned load_batch(Batch<K>& batch, const Operand& operand, Index first,
                                 const Walk& walk, bool active) {
    const auto* const data = static_cast<const typename K::T*>(operand.data) + first;
    unsigned exists = 0;
    walk.units<K::kBatch>(operand.outer, operand.along, [&](int u, bool inside, Index offset) {
        batch[u] = typename K::U{};
        if (active && inside) {
            batch[u] = device::load(reinterpret_cast<const typename K::U*>(data + offset));
            exists |= 1U << u;
        }
    });
    return exists;
}

template <class K>
BNEXT_DEVICE void store_batch(const Batch<K>& batch, const Operand& operand, Index first,
                              const Walk& walk, bool active) {
    auto* const data = static_cast<typename K::T*>(operand.data) + first;
    walk.units<K::kBatch>(operand.outer, operand.along, [&](int u, bool inside, Index offset) {
        if (active && inside) {
            device::store_once(reinterpret_cast<typename K::U*>(data + offset), batch[u]);
        }
    });
}

// A thread's place in shared memory for a batch, by the slot's number. No other thread touches it,
// so that nothing has to be waited for.
template <class K>
BNEXT_DEVICE typename K::U* slot_of(unsigned char* shared, int input, int slot) {
    auto* const units = reinterpret_cast<typename K::U*>(shared);
    return units + ((slot * K::kInputs + input) * K::kBatch) * device::threads() + device::thread();
}
template <class K>
BNEXT_DEVICE void keep_batch(const Batch<K>& batch, unsigned char* shared, int input, int slot) {
    typename K::U* const place = slot_of<K>(shared, input, slot);
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) place[u * device::threads()] = batch[u];
}
template <class K>
BNEXT_DEVICE void recall_batch(Batch<K>& batch, unsigned char* shared, int input, int slot) {
    const typename K::U* const place = slot_of<K>(shared, input, slot);
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) batch[u] = place[u * device::threads()];
}
// From memory to its slot, still under way: wait_for_copies.
template <class K>
BNEXT_DEVICE void fetch_batch(const Operand& operand, Index first, const Walk& walk, bool active,
                              unsigned char* shared, int input, int slot) {
    const auto* const data = static_cast<const typename K::T*>(operand.data) + first;
    typename K::U* const place = slot_of<K>(shared, input, slot);
    walk.units<K::kBatch, false>(
        operand.outer, operand.along, [&](int u, bool inside, Index offset) {
            typename K::U* const to = place + u * device::threads();
            if (active && inside) {
                device::copy_async(to, reinterpret_cast<const typename K::U*>(data + offset));
            } else {
                *to = typename K::U{};
            }
        });
}

template <class K>
BNEXT_DEVICE Index bytes_of_slots(int threads, int slots) {
    return Index{slots} * K::kInputs * K::kBatch * threads *
           static_cast<Index>(sizeof(typename K::U));
}

}  // namespace bnext::cuda
