// Batches unit by unit: what `Batches` and `Accumulator` do for kernels that keep no batch in
// registers (activated.hpp).
#pragma once

#include "cuda/accumulator.hpp"
#include "cuda/kernels.hpp"

namespace bnext::cuda {

template <class K>
BNEXT_DEVICE void store(Index at, const typename K::C (&values)[K::V], bool exists) {
    typename K::U unit;
    device::narrow<K::V>(unit.value, values);
    if (exists) device::store_once(reinterpret_cast<typename K::U*>(at), unit);
}

// A part's batches one after the other, in shared memory: those that are kept in slots of their
// own, the others in a ring of slots. Upwards from the first batch, or downwards from the last.
template <class K, bool kUpwards>
class Rolled {
    using U = typename K::U;
    static constexpr bool kAsync = device::kCopiesAsync<U>;

public:
    // `walk` is at the part's beginning, or behind its end. `has_last`: the ring has the last
    // batches, and slots those that are kept.
    BNEXT_DEVICE Rolled(const Arguments& a, const Walk<K::kRuns>& walk, unsigned char* shared,
                        Index channel, bool active, bool has_last)
        : a_(a),
          inputs_(a.in),
          shared_(slots_of_thread<K>(shared)),
          ahead_(a.cut, walk, inputs_.of, channel, active) {
        BNEXT_UNROLL_BY(1)
        for (int i = 0; i < K::kAhead; ++i) {
            ask(kUpwards ? i : a.cut.batches - 1 - i, has_last);
        }
    }

    // Where batch b is, the next one (place_in_slot); units that do not exist are 0.
    BNEXT_DEVICE const U* take(int b) const {
        device::wait_for_copies<K::kAhead - 1>();
        return slot_of_batch(b);
    }
    // Upwards: positions of the part from batch b on.
    [[nodiscard]] BNEXT_DEVICE int left() const {
        return ahead_.left() + K::kAhead * a_.cut.batch_rows;
    }
    // Once batch b is no more needed.
    BNEXT_DEVICE void next(int b) { ask(kUpwards ? b + K::kAhead : b - K::kAhead, false); }

private:
    BNEXT_DEVICE U* slot_of_batch(int b) const {
        const int slot = b < a_.kept ? b : a_.kept + ((b - a_.kept) & (K::kAhead - 1));
        return shared_ + slot * (K::kInputs * K::kBatch) * device::threads();
    }
    // Asks for batch b, if there is one and it is not there.
    BNEXT_DEVICE void ask(int b, bool has_it) {
        if (!kUpwards) ahead_.previous_batch(a_.cut, inputs_.of);
        if (!has_it && (kUpwards ? b < a_.cut.batches : b >= a_.kept)) copy(slot_of_batch(b));
        if (kUpwards) ahead_.next_batch(a_.cut, inputs_.of);
        device::commit_copies();  // an empty group too: waiting counts them
    }
    BNEXT_DEVICE void copy(U* slot) const {
        if constexpr (kAsync) {
            ahead_.template units_rolled<K::kBatch>(
                a_.cut, inputs_.of, [&](int u, bool exists, const Index(&at)[K::kInputs]) {
                    BNEXT_UNROLL
                    for (int i = 0; i < K::kInputs; ++i) {
                        U* const to = slot + place_in_slot<K>(i, u);
                        if (exists) {
                            device::copy_async(to, reinterpret_cast<const U*>(at[i]));
                        } else {
                            *to = U{};
                        }
                    }
                });
        } else {  // by way of registers, all units before the first is waited for
            Batch<K> found[K::kInputs];
            ahead_.template units<K::kBatch>(
                a_.cut, inputs_.of, [&](int u, bool exists, const Index(&at)[K::kInputs]) {
                    BNEXT_UNROLL
                    for (int i = 0; i < K::kInputs; ++i) {
                        found[i][u] = U{};
                        if (exists) found[i][u] = device::load(reinterpret_cast<const U*>(at[i]));
                    }
                });
            BNEXT_UNROLL
            for (int i = 0; i < K::kInputs; ++i) {
                BNEXT_UNROLL
                for (int u = 0; u < K::kBatch; ++u) slot[place_in_slot<K>(i, u)] = found[i][u];
            }
        }
    }

    const Arguments& a_;
    const Operands<K::kInputs> inputs_;
    U* shared_;
    Cursor<K::kInputs, K::kRuns> ahead_;  // at the batch to be asked for
};

// The sums of Accumulator, backward of any g in place of dy.
template <class K, int kSummed>
class RolledSums : public Accumulator<K, kSummed> {
    using C = typename K::C;
    using Base = Accumulator<K, kSummed>;
    static constexpr bool kForward = kSummed == 1;

public:
    BNEXT_DEVICE RolledSums(const Arguments& a, Index channel, bool active)
        : Base(a, channel, active) {}

    // Of the first batch, where the part has so many positions `left`.
    BNEXT_DEVICE void choose_pilots_of(const typename K::U* slot, int left, const Cut& cut) {
        Batch<K> x;
        unsigned exists = 0;
        BNEXT_UNROLL
        for (int u = 0; u < K::kBatch; ++u) {
            x[u] = slot[place_in_slot<K>(0, u)];
            if (left > u * cut.rows) exists |= 1U << u;
        }
        Base::choose_pilots(x, exists);
    }

    // A batch: each(f) calls f(v, x, g, exists) for all its values, v of their units. Twice, with
    // values scaled, where sums are not ordinary.
    template <class Each>
    BNEXT_DEVICE void add(Each&& each) {
        C first[K::kChannels], second[K::kChannels], scale[K::kChannels];
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) scale[c] = C{1};
        BNEXT_UNROLL_BY(1)
        for (int time = 0;; ++time) {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) first[c] = second[c] = C{0};
            each([&](int v, C x, C g, bool exists) {
                const int c = K::kChannels == 1 ? 0 : v;
                C d = device::fma_of(x, scale[c], -this->center_[c] * scale[c]);
                if (kForward) d = exists ? d : C{0};
                const C one = kForward ? d : g * scale[c];
                first[c] += one;
                second[c] = device::fma_of(one, d, second[c]);
            });
            bool ordinary = true;
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                if (Base::is_ordinary(first[c], second[c])) continue;
                ordinary = false;
                if (time == 0) scale[c] = Base::other_scale(this->center_[c], second[c]);
            }
            if (ordinary || time > 0) break;
        }
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            const double back = back_of(scale[c]);
            this->first_[c] += static_cast<double>(first[c]) * back;
            this->second_[c] += static_cast<double>(second[c]) * (back * back);
        }
    }
};

}  // namespace bnext::cuda
