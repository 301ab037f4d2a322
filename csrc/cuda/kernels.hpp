// The kernels, written once for both directions: an Operation (forward.hpp, backward.hpp) says what
// is summed, and what is made of every value.
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

template <class K, class F>
BNEXT_DEVICE void for_each_input(const Arguments& a, F&& f) {
    f(0, a.x);
    if constexpr (K::kInputs == 2) f(1, a.dy);
}

// A part's batches one after the other, by way of shared memory, several asked for before the first
// is used: those that are kept, to slots of their own; the others through a ring of slots. Where
// units are too small to be copied that way, the others are loaded when they are used.
//
// Upwards from the first batch, or downwards from the last, when the ring has what was read last.
template <class K, bool kUpwards>
class Batches {
public:
    // `walk` is at the part's beginning, or behind its end.
    BNEXT_DEVICE Batches(const Arguments& a, const Walk& walk, unsigned char* shared, Index channel,
                         bool active)
        : a_(a),
          shared_(shared),
          channel_(channel),
          active_(active),
          ahead_(walk),
          next_(kUpwards ? 0 : a.cut.batches - 1) {
        if constexpr (kAsync) {
            BNEXT_UNROLL_BY(1)
            for (int i = 0; i < K::kAhead; ++i) fetch_next(!kUpwards);
        }
    }

    // Batch b, the next one; `walk` is there.
    BNEXT_DEVICE unsigned take(Batch<K> (&in)[K::kInputs], const Walk& walk, Index b) {
        const bool keeps = b < a_.kept;
        if (kAsync || (keeps && !kUpwards)) {
            if constexpr (kAsync) device::wait_for_copies<K::kAhead - 1>();
            const int slot = slot_of_batch(b);
            BNEXT_UNROLL
            for (int i = 0; i < K::kInputs; ++i) recall_batch<K>(in[i], shared_, i, slot);
            if constexpr (kAsync) fetch_next(false);
            return units_of_batch<K>(walk, active_);
        }
        unsigned exists = 0;
        for_each_input<K>(a_, [&](int i, const Operand& operand) {
            exists = load_batch<K>(in[i], operand, channel_ * operand.channel, walk, active_);
            if (keeps) keep_batch<K>(in[i], shared_, i, static_cast<int>(b));
        });
        return exists;
    }

private:
    static constexpr bool kAsync = device::kCopiesAsync<typename K::U>;

    BNEXT_DEVICE int slot_of_batch(Index b) const {
        return static_cast<int>(b < a_.kept ? b : a_.kept + (b - a_.kept) % K::kAhead);
    }
    // Downwards, what is kept and what the ring has already is not asked for.
    BNEXT_DEVICE void fetch_next(bool has_it) {
        if (!kUpwards) ahead_.previous_batch();
        if (kUpwards ? next_ < a_.cut.batches : (next_ >= a_.kept && !has_it)) {
            const int slot = slot_of_batch(next_);
            for_each_input<K>(a_, [&](int i, const Operand& operand) {
                fetch_batch<K>(operand, channel_ * operand.channel, ahead_, active_, shared_, i,
                               slot);
            });
        }
        if (kUpwards) ahead_.next_batch();
        next_ += kUpwards ? 1 : -1;
        device::commit_copies();  // an empty group too: waiting counts them
    }

    const Arguments& a_;
    unsigned char* shared_;
    Index channel_;
    bool active_;
    Walk ahead_;
    Index next_;
};

template <class K, class Operation>
BNEXT_DEVICE void write_output(const Batch<K> (&in)[K::kInputs], const Arguments& a,
                               const double* coefficients, Index channel, const Walk& walk,
                               bool active) {
    Batch<K> out;
    BNEXT_UNROLL
    for (int c = 0; c < K::kChannels; ++c) {
        const typename Operation::Formula formula(coefficients + c * kCoefficients);
        BNEXT_UNROLL
        for (int u = 0; u < K::kBatch; ++u) {
            BNEXT_UNROLL
            for (int v = c; v < K::V; v += K::kChannels) {
                out[u].value[v] = device::narrowed<typename K::T>(formula(in, u, v));
            }
        }
    }
    store_batch<K>(out, a.out, channel * a.out.channel, walk, active);
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS fused(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    const Place place = place_of(cut, device::block());
    const int column = device::thread() % cut.columns;
    unsigned char* const data = device::shared_memory();
    const SharedPlaces shared =
        shared_places(cut, data + bytes_of_slots<K>(device::threads(), a.slots));
    Walk walk(cut, place.part, device::thread());
    const Index batches = cut.batches;
    int turn = 0;
    for (Index slab = place.group; slab < cut.slabs; slab += cut.groups, turn ^= 1) {
        const Index channel = cut.channel(slab, column);
        const bool active = channel < cut.channels;
        Batch<K> in[K::kInputs];
        Sums own[K::kChannels];
        {
            typename Operation::Accumulator sums(a, channel, active);
            Batches<K, true> upwards(a, walk, data, channel, active);
            for (Index b = 0; b < batches; ++b) {
                const unsigned exists = upwards.take(in, walk, b);
                sums.add(in, exists, b == 0);
                walk.next_batch();
            }
            sums.take(own);
        }
        Sums* const of_block = shared.of_block + turn * cut.slab_channels();
        merge_block(cut, own, shared.scratch, of_block);
        if (a.exchange == Exchange::cluster) device::cluster_barrier();
        if (a.exchange == Exchange::grid) {
            exchange_over_grid(a, slab, place.part, of_block, shared.scratch);
        }
        for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
            Sums total = of_block[c];
            if (a.exchange == Exchange::cluster) {
                total = *device::of_cluster_rank(of_block + c, 0);
                for (int rank = 1; rank < cut.parts; ++rank) {
                    add(total, *device::of_cluster_rank(of_block + c, rank));
                }
            }
            const Index of_problem = cut.channel(slab, 0) + c;
            if (of_problem < cut.channels) {
                Operation::finish(a, of_problem, total, place.part == 0,
                                  shared.coefficients + c * kCoefficients);
            }
        }
        device::block_barrier();
        if (a.exchange == Exchange::cluster) device::cluster_arrive();  // it has read the others
        const double* const coefficients =
            shared.coefficients + column * K::kChannels * kCoefficients;
        Batches<K, false> downwards(a, walk, data, channel, active);
        for (Index b = batches; b-- > 0;) {
            walk.previous_batch();
            downwards.take(in, walk, b);
            write_output<K, Operation>(in, a, coefficients, channel, walk, active);
        }
        // Until then others of the cluster may read its shared memory.
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
    const SharedPlaces shared =
        shared_places(cut, data + bytes_of_slots<K>(device::threads(), a.slots));
    Walk walk(cut, place.part, device::thread());
    Batch<K> in[K::kInputs];
    typename Operation::Accumulator sums(a, channel, active);
    Batches<K, true> upwards(a, walk, data, channel, active);
    for (Index b = 0; b < cut.batches; ++b) {
        const unsigned exists = upwards.take(in, walk, b);
        sums.add(in, exists, b == 0);
        walk.next_batch();
    }
    Sums own[K::kChannels];
    sums.take(own);
    Sums* const of_block = shared.of_block;
    merge_block(cut, own, shared.scratch, of_block);
    if (cut.parts > 1) {
        write_partials(a, slab, place.part, of_block);
        if (!is_last_of(a, slab, shared.coefficients)) return;
        merge_partials(a, slab, shared.scratch, of_block);
    }
    for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
        const Index of_problem = cut.channel(slab, 0) + c;
        if (of_problem < cut.channels) {
            Operation::finish(a, of_problem, of_block[c], true, nullptr);
        }
    }
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
        reinterpret_cast<double*>(data + bytes_of_slots<K>(device::threads(), a.slots));
    for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
        const Index of_problem = cut.channel(slab, 0) + c;
        if (of_problem < cut.channels) {
            Operation::coefficients_of(a, of_problem, place.part == 0,
                                       coefficients + c * kCoefficients);
        }
    }
    device::block_barrier();
    Walk walk(cut, place.part, device::thread());
    Batch<K> in[K::kInputs];
    Batches<K, true> upwards(a, walk, data, channel, active);
    for (Index b = 0; b < cut.batches; ++b) {
        upwards.take(in, walk, b);
        write_output<K, Operation>(in, a, coefficients + column * K::kChannels * kCoefficients,
                                   channel, walk, active);
        walk.next_batch();
    }
}

}  // namespace bnext::cuda
