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

// What a kernel is made for. Values are float64, float32 or 16 bits wide; V is 1, or
// vector_of; I arrays are read.
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
    static constexpr int kBatch = batch_of(DTypeOf<T>::value, L, V > 1, I);  // units
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

// Which units of a batch exist, as bits; the others are 0. kAgain: they will be read again.
template <class K, bool kAgain>
BNEXT_DEVICE unsigned load_batch(Batch<K>& batch, const Operand& operand, Index first,
                                 const Walk& walk, bool active) {
    const auto* const data = static_cast<const typename K::T*>(operand.data) + first;
    unsigned exists = 0;
    walk.units<K::kBatch>(operand.outer, operand.along, [&](int u, bool inside, Index offset) {
        batch[u] = typename K::U{};
        if (active && inside) {
            const auto* const p = reinterpret_cast<const typename K::U*>(data + offset);
            batch[u] = kAgain ? device::load_again(p) : device::load_once(p);
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

// What a thread keeps of batch b between the phases: its own place in shared memory, which no other
// thread touches, so that nothing has to be waited for.
template <class K>
BNEXT_DEVICE typename K::U* kept_batch(unsigned char* shared, int input, Index b) {
    auto* const units = reinterpret_cast<typename K::U*>(shared);
    return units + ((b * K::kInputs + input) * K::kBatch) * device::threads() + device::thread();
}
template <class K>
BNEXT_DEVICE void keep_batch(const Batch<K>& batch, unsigned char* shared, int input, Index b) {
    typename K::U* const place = kept_batch<K>(shared, input, b);
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) place[u * device::threads()] = batch[u];
}
// The same straight from memory, still under way: wait_for_copies.
template <class K>
BNEXT_DEVICE void fetch_batch(const Operand& operand, Index first, const Walk& walk, bool active,
                              unsigned char* shared, int input, Index b) {
    const auto* const data = static_cast<const typename K::T*>(operand.data) + first;
    typename K::U* const place = kept_batch<K>(shared, input, b);
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
BNEXT_DEVICE void recall_batch(Batch<K>& batch, unsigned char* shared, int input, Index b) {
    const typename K::U* const place = kept_batch<K>(shared, input, b);
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) batch[u] = place[u * device::threads()];
}

template <class K>
BNEXT_DEVICE Index kept_bytes(int threads, Index batches) {
    return batches * K::kInputs * K::kBatch * threads * static_cast<Index>(sizeof(typename K::U));
}

}  // namespace bnext::cuda
