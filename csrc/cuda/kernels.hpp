// The kernels, written once for both directions: an Operation (forward.hpp, backward.hpp) says what
// is summed, and by which formula (core/formulas.hpp) values are written.
//
//   fused   both phases: a slab's parts are read once from memory, wait for each other's sums, and
//           are written from what shared memory kept. What did not fit is read again, backwards, so
//           that what was read last, and the second-level cache still has, comes first.
//           Bytes: inputs once (again for what is not kept), the output once.
//   reduce  the first phase alone; the last block of a slab merges. Bytes: inputs once.
//   apply   the second phase alone. Bytes: inputs once, the output once.
//
// Order of sums: a thread's values as they come; lanes of a warp by one tree; warps, then parts, by
// their numbers. Nothing depends on which block comes first.
#pragma once

#include "cuda/backward.hpp"

namespace bnext::cuda {

// The channels of a slab, each by one thread of the block: f(its number in the slab, its number).
template <class F>
BNEXT_DEVICE void for_each_channel(const Cut& cut, Index slab, F&& f) {
    for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
        const Index channel = cut.channel(slab, 0) + c;
        if (channel < cut.channels) f(c, channel);
    }
}

// Arrays that a kernel reads or writes.
template <int N>
struct Operands {
    const Operand* of[N];

    BNEXT_DEVICE explicit Operands(const Operand* first) {
        BNEXT_UNROLL
        for (int i = 0; i < N; ++i) of[i] = first + i;
    }
};

// A part's batches one after the other, by way of shared memory, several asked for before the first
// is used: those that are kept, to slots of their own; the others through a ring of slots. Where
// units are too small to be copied that way, the others are loaded when they are used.
//
// Upwards from the first batch, or downwards from the last, when the ring has what was read last.
template <class K, bool kUpwards>
class Batches {
public:
    // `walk` is at the part's beginning, or behind its end.
    BNEXT_DEVICE Batches(const Arguments& a, const Walk<K::kRuns>& walk, unsigned char* shared,
                         Index channel, bool active)
        : a_(a),
          inputs_(a.in),
          shared_(slots_of_thread<K>(shared)),
          ahead_(a.cut, walk, inputs_.of, channel, active) {
        if constexpr (kAsync) {
            BNEXT_UNROLL_BY(1)
            for (int i = 0; i < K::kAhead; ++i)
                fetch(kUpwards ? i : a.cut.batches - 1 - i, !kUpwards);
        }
    }

    // Batch b, the next one. Which of its units exist, as bits; the others are 0. (Downwards nobody
    // asks which.)
    BNEXT_DEVICE unsigned take(Batch<K> (&in)[K::kInputs], int b) {
        unsigned exists = kAllUnits<K>;
        const int left = ahead_.left() + (kAsync ? K::kAhead : 0) * a_.cut.batch_rows;
        if (kUpwards && left <= a_.cut.last_step) {
            exists = 0;
            BNEXT_UNROLL
            for (int u = 0; u < K::kBatch; ++u) {
                if (left > u * a_.cut.rows) exists |= 1U << u;
            }
        }
        if constexpr (kAsync) {
            device::wait_for_copies<K::kAhead - 1>();
            recall(in, b);
            fetch(kUpwards ? b + K::kAhead : b - K::kAhead, false);
        } else {
            if (!kUpwards) ahead_.previous_batch(a_.cut, inputs_.of);
            const bool keeps = b < a_.kept;
            if (keeps && !kUpwards) {
                recall(in, b);
            } else {
                load(in);
                if (keeps) keep(in, b);
            }
            if (kUpwards) ahead_.next_batch(a_.cut, inputs_.of);
        }
        return exists;
    }

private:
    using U = typename K::U;
    static constexpr bool kAsync = device::kCopiesAsync<U>;
    static_assert((K::kAhead & (K::kAhead - 1)) == 0);

    BNEXT_DEVICE U* slot_of_batch(int b) const {
        const int slot = b < a_.kept ? b : a_.kept + ((b - a_.kept) & (K::kAhead - 1));
        return shared_ + slot * (K::kInputs * K::kBatch) * device::threads();
    }
    BNEXT_DEVICE void recall(Batch<K> (&in)[K::kInputs], int b) const {
        const U* const slot = slot_of_batch(b);
        BNEXT_UNROLL
        for (int i = 0; i < K::kInputs; ++i) {
            BNEXT_UNROLL
            for (int u = 0; u < K::kBatch; ++u) in[i][u] = slot[place_in_slot<K>(i, u)];
        }
    }
    BNEXT_DEVICE void keep(const Batch<K> (&in)[K::kInputs], int b) const {
        U* const slot = slot_of_batch(b);
        BNEXT_UNROLL
        for (int i = 0; i < K::kInputs; ++i) {
            BNEXT_UNROLL
            for (int u = 0; u < K::kBatch; ++u) slot[place_in_slot<K>(i, u)] = in[i][u];
        }
    }
    BNEXT_DEVICE void load(Batch<K> (&in)[K::kInputs]) const {
        for_each_unit([&](int u, bool exists, const Index(&at)[K::kInputs]) {
            BNEXT_UNROLL
            for (int i = 0; i < K::kInputs; ++i) {
                in[i][u] = U{};
                if (exists) in[i][u] = device::load(reinterpret_cast<const U*>(at[i]));
            }
        });
    }
    // Batch b, if there is one. Downwards, what is kept and what the ring has already is not asked
    // for.
    BNEXT_DEVICE void fetch(int b, bool has_it) {
        if (!kUpwards) ahead_.previous_batch(a_.cut, inputs_.of);
        if (kUpwards ? b < a_.cut.batches : (b >= a_.kept && !has_it)) {
            U* const slot = slot_of_batch(b);
            for_each_unit([&](int u, bool exists, const Index(&at)[K::kInputs]) {
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
        }
        if (kUpwards) ahead_.next_batch(a_.cut, inputs_.of);
        device::commit_copies();  // an empty group too: waiting counts them
    }
    template <class F>
    BNEXT_DEVICE void for_each_unit(F&& f) const {
        ahead_.template units<K::kBatch>(a_.cut, inputs_.of, f);
    }

    const Arguments& a_;
    const Operands<K::kInputs> inputs_;
    U* shared_;
    Cursor<K::kInputs, K::kRuns> ahead_;  // at the batch to be asked for
};

// Asks for a part to be in the second-level cache: the next one, while the device's memory would
// wait for blocks that wait for each other.
template <class K>
BNEXT_DEVICE void prefetch_part(const Arguments& a, const Walk<K::kRuns>& begin, Index channel) {
    if (!tuning::kPrefetchNext) return;
    const Operands<K::kInputs> inputs(a.in);
    Cursor<K::kInputs, K::kRuns> cursor(a.cut, begin, inputs.of, channel, channel < a.cut.channels);
    BNEXT_UNROLL_BY(1)
    for (int b = 0; b < a.cut.batches; ++b) {
        cursor.template units<K::kBatch>(
            a.cut, inputs.of, [&](int, bool exists, const Index(&at)[K::kInputs]) {
                BNEXT_UNROLL
                for (int i = 0; i < K::kInputs; ++i) {
                    if (exists) device::prefetch(reinterpret_cast<const void*>(at[i]));
                }
            });
        cursor.next_batch(a.cut, inputs.of);
    }
}

// The results of a part's batches by the operation's formula, in the same order.
template <class K, class Operation, bool kUpwards>
class Results {
public:
    BNEXT_DEVICE Results(const Arguments& a, const Walk<K::kRuns>& walk, Index channel, bool active,
                         const typename K::C* coefficients)
        : a_(a), outputs_(a.out), at_(a.cut, walk, outputs_.of, channel, active) {
        static_assert(F::kReads == K::kInputs);
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            BNEXT_UNROLL
            for (int r = 0; r < F::kRows; ++r) {
                formula_[c].row[r] = coefficients[c * kCoefficients + r];
            }
        }
    }

    BNEXT_DEVICE void write(const Batch<K> (&in)[K::kInputs]) {
        if (!kUpwards) at_.previous_batch(a_.cut, outputs_.of);
        at_.template units<K::kBatch>(
            a_.cut, outputs_.of, [&](int u, bool exists, const Index(&at)[F::kWrites]) {
                C values[F::kWrites][K::V];
                BNEXT_UNROLL
                for (int v = 0; v < K::V; ++v) {
                    C read[F::kReads], made[F::kWrites];
                    BNEXT_UNROLL
                    for (int i = 0; i < F::kReads; ++i) read[i] = wide<K>(in[i][u], v);
                    formula_[K::kChannels == 1 ? 0 : v](read, made);
                    BNEXT_UNROLL
                    for (int w = 0; w < F::kWrites; ++w) values[w][v] = made[w];
                }
                BNEXT_UNROLL
                for (int w = 0; w < F::kWrites; ++w) {
                    typename K::U out;
                    device::narrow<K::V>(out.value, values[w]);
                    if (exists) device::store_once(reinterpret_cast<typename K::U*>(at[w]), out);
                }
            });
        if (kUpwards) at_.next_batch(a_.cut, outputs_.of);
    }

private:
    using C = typename K::C;
    using F = typename Operation::F;

    const Arguments& a_;
    const Operands<F::kWrites> outputs_;
    Cursor<F::kWrites, K::kRuns> at_;
    F formula_[K::kChannels];
};

// The sums of a part's channels, in shared memory.
template <class K, class Operation>
BNEXT_DEVICE void sum_part(const Arguments& a, const Walk<K::kRuns>& begin, unsigned char* data,
                           Index channel, bool active, const SharedPlaces<K>& shared) {
    Batch<K> in[K::kInputs];
    typename Operation::Accumulator sums(a, channel, active);
    Batches<K, true> upwards(a, begin, data, channel, active);
    BNEXT_UNROLL_BY(1)
    for (int b = 0; b < a.cut.batches; ++b) {
        const unsigned exists = upwards.take(in, b);
        sums.add(in, exists, b == 0);
    }
    Sums own[K::kChannels];
    sums.take(own, active ? begin.units_of(a.cut) : 0);
    merge_block(a.cut, own, shared.scratch, shared.of_block);
}

// The sums of a slab's channel number c over all parts, where these have met.
BNEXT_DEVICE Sums total_of(const Arguments& a, Sums* of_block, int c) {
    if (a.exchange != Exchange::cluster) return of_block[c];
    Sums total = *device::of_cluster_rank(of_block + c, 0);
    for (int rank = 1; rank < a.cut.parts; ++rank) {
        add(total, *device::of_cluster_rank(of_block + c, rank));
    }
    return total;
}

// The end of a launch that only sums: the last block of a slab merges.
template <class Operation, class K>
BNEXT_DEVICE void finish_alone(const Arguments& a, Index slab, int part,
                               const SharedPlaces<K>& shared) {
    Sums* const of_block = shared.of_block;
    if (a.cut.parts > 1) {
        write_partials(a, slab, part, of_block);
        if (!is_last_of(a, slab, shared.coefficients)) return;
        merge_partials(a, slab, shared.scratch, of_block);
    }
    for_each_channel(a.cut, slab, [&](int c, Index of_problem) {
        Operation::finish(a, of_problem, of_block[c], true, nullptr);
    });
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS fused(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    const Place place = place_of(cut, device::block());
    const int column = device::thread() % cut.columns;
    unsigned char* const data = device::shared_memory();
    const SharedPlaces<K> shared(cut, data + bytes_of_slots<K>(device::threads(), a.slots));
    const Walk<K::kRuns> begin(cut, place.part, device::thread());
    for (Index slab = place.group; slab < cut.slabs; slab += cut.groups) {
        const Index channel = cut.channel(slab, column);
        const bool active = channel < cut.channels;
        for_each_channel(cut, slab, [&](int, Index c) { Operation::prefetch(a, c); });
        Sums* const of_block = shared.of_block;
        sum_part<K, Operation>(a, begin, data, channel, active, shared);
        if (a.exchange == Exchange::cluster) device::cluster_barrier();
        if (a.exchange == Exchange::grid) {
            exchange_over_grid(a, slab, place.part, of_block, shared.scratch, [&] {
                if (slab + cut.groups < cut.slabs) {
                    prefetch_part<K>(a, begin, cut.channel(slab + cut.groups, column));
                }
            });
        }
        for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
            const Sums total = total_of(a, of_block, c);
            const Index of_problem = cut.channel(slab, 0) + c;
            if (of_problem < cut.channels) {
                Operation::finish(a, of_problem, total, place.part == 0,
                                  shared.coefficients + c * kCoefficients);
            }
        }
        device::block_barrier();
        if (a.exchange == Exchange::cluster) device::cluster_arrive();  // it has read the others
        const Walk<K::kRuns> end = begin.end_of(cut);
        Batch<K> in[K::kInputs];
        Batches<K, false> downwards(a, end, data, channel, active);
        Results<K, Operation, false> results(
            a, end, channel, active, shared.coefficients + column * K::kChannels * kCoefficients);
        BNEXT_UNROLL_BY(1)
        for (int b = cut.batches; b-- > 0;) {
            downwards.take(in, b);
            results.write(in);
        }
        // Until then others of the cluster may read this block's sums.
        if (a.exchange == Exchange::cluster) device::cluster_wait();
    }
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS reduce(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    const Place place = place_of(cut, device::block());
    const Index slab = place.group;
    const Index channel = cut.channel(slab, device::thread() % cut.columns);
    const bool active = channel < cut.channels;
    unsigned char* const data = device::shared_memory();
    const SharedPlaces<K> shared(cut, data + bytes_of_slots<K>(device::threads(), a.slots));
    const Walk<K::kRuns> begin(cut, place.part, device::thread());
    sum_part<K, Operation>(a, begin, data, channel, active, shared);
    finish_alone<Operation>(a, slab, place.part, shared);
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS apply(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    // Backwards: the caches have the end of what came before.
    const Place place = place_of(cut, cut.slabs * cut.parts - 1 - device::block());
    const Index slab = place.group;
    const int column = device::thread() % cut.columns;
    const Index channel = cut.channel(slab, column);
    const bool active = channel < cut.channels;
    unsigned char* const data = device::shared_memory();
    auto* const coefficients =
        reinterpret_cast<typename K::C*>(data + bytes_of_slots<K>(device::threads(), a.slots));
    // The first batches come while the coefficients are made.
    const Walk<K::kRuns> begin(cut, place.part, device::thread());
    Batches<K, true> upwards(a, begin, data, channel, active);
    for_each_channel(cut, slab, [&](int c, Index of_problem) {
        Operation::coefficients_of(a, of_problem, place.part == 0,
                                   coefficients + c * kCoefficients);
    });
    device::block_barrier();
    Batch<K> in[K::kInputs];
    Results<K, Operation, true> results(a, begin, channel, active,
                                        coefficients + column * K::kChannels * kCoefficients);
    BNEXT_UNROLL_BY(1)
    for (int b = 0; b < cut.batches; ++b) {
        upwards.take(in, b);
        results.write(in);
    }
}

}  // namespace bnext::cuda
