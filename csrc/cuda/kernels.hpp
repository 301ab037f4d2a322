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

template <class K, bool kAgain>
BNEXT_DEVICE unsigned load_inputs(Batch<K> (&in)[K::kInputs], const Arguments& a, Index channel,
                                  const Walk& walk, bool active) {
    const unsigned exists = load_batch<K, kAgain>(in[0], a.x, channel * a.x.channel, walk, active);
    if constexpr (K::kInputs == 2) {
        load_batch<K, kAgain>(in[1], a.dy, channel * a.dy.channel, walk, active);
    }
    return exists;
}

// A part's batches for the first phase. Those that are kept come by way of shared memory, several
// asked for before the first is used; the others through registers.
template <class K>
class Fetcher {
public:
    BNEXT_DEVICE Fetcher(const Arguments& a, const Walk& walk, unsigned char* kept, Index channel,
                         bool active)
        : a_(a), kept_(kept), channel_(channel), active_(active), ahead_(walk) {
        if constexpr (kAsync) {
            BNEXT_UNROLL_BY(1)
            for (int i = 0; i < kAhead; ++i) fetch_next();
        }
    }

    BNEXT_DEVICE unsigned take(Batch<K> (&in)[K::kInputs], const Walk& walk, Index b) {
        const bool keeps = b < a_.kept;
        if constexpr (kAsync) {
            if (keeps) {
                device::wait_for_copies<kAhead - 1>();
                BNEXT_UNROLL
                for (int i = 0; i < K::kInputs; ++i) recall_batch<K>(in[i], kept_, i, b);
                fetch_next();
                return units_of_batch<K>(walk, active_);
            }
        }
        const unsigned exists = load_inputs<K, true>(in, a_, channel_, walk, active_);
        if (!kAsync && keeps) {
            BNEXT_UNROLL
            for (int i = 0; i < K::kInputs; ++i) keep_batch<K>(in[i], kept_, i, b);
        }
        return exists;
    }

private:
    static constexpr bool kAsync = device::kCopiesAsync<typename K::U>;
    static constexpr int kAhead = 4;

    BNEXT_DEVICE void fetch_next() {
        if (next_ < a_.kept) {
            fetch_batch<K>(a_.x, channel_ * a_.x.channel, ahead_, active_, kept_, 0, next_);
            if constexpr (K::kInputs == 2) {
                fetch_batch<K>(a_.dy, channel_ * a_.dy.channel, ahead_, active_, kept_, 1, next_);
            }
            ahead_.next_batch();
            ++next_;
        }
        device::commit_copies();  // an empty group too: waiting counts them
    }

    const Arguments& a_;
    unsigned char* kept_;
    Index channel_;
    bool active_;
    Walk ahead_;
    int next_ = 0;
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
    unsigned char* const kept = device::shared_memory();
    const SharedPlaces shared = shared_places(cut, kept + kept_bytes<K>(device::threads(), a.kept));
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
            Fetcher<K> fetcher(a, walk, kept, channel, active);
            for (Index b = 0; b < batches; ++b) {
                const unsigned exists = fetcher.take(in, walk, b);
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
        const double* const coefficients =
            shared.coefficients + column * K::kChannels * kCoefficients;
        for (Index b = batches; b-- > 0;) {
            walk.previous_batch();
            if (b < a.kept) {
                BNEXT_UNROLL
                for (int i = 0; i < K::kInputs; ++i) {
                    recall_batch<K>(in[i], kept, i, b);
                }
            } else {
                load_inputs<K, false>(in, a, channel, walk, active);
            }
            write_output<K, Operation>(in, a, coefficients, channel, walk, active);
        }
    }
    // Its shared memory may still be read by others of the cluster.
    if (a.exchange == Exchange::cluster) device::cluster_barrier();
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS reduce(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    const Place place = place_of(cut, device::block());
    const Index slab = place.group;
    const Index channel = cut.channel(slab, device::thread() % cut.columns);
    const bool active = channel < cut.channels;
    const SharedPlaces shared = shared_places(cut, device::shared_memory());
    Walk walk(cut, place.part, device::thread());
    Batch<K> in[K::kInputs];
    typename Operation::Accumulator sums(a, channel, active);
    const Index batches = cut.batches;
    for (Index b = 0; b < batches; ++b) {
        const unsigned exists = load_inputs<K, true>(in, a, channel, walk, active);
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
    const Place place = place_of(cut, device::block());
    const Index slab = place.group;
    const int column = device::thread() % cut.columns;
    const Index channel = cut.channel(slab, column);
    const bool active = channel < cut.channels;
    const SharedPlaces shared = shared_places(cut, device::shared_memory());
    for (int c = device::thread(); c < cut.slab_channels(); c += device::threads()) {
        const Index of_problem = cut.channel(slab, 0) + c;
        if (of_problem < cut.channels) {
            Operation::coefficients_of(a, of_problem, place.part == 0,
                                       shared.coefficients + c * kCoefficients);
        }
    }
    device::block_barrier();
    Walk walk(cut, place.part, device::thread());
    const Index batches = cut.batches;
    for (Index b = 0; b < batches; ++b) walk.next_batch();
    for (Index b = batches; b-- > 0;) {  // backwards: the caches have the end of what came before
        walk.previous_batch();
        Batch<K> in[K::kInputs];
        load_inputs<K, false>(in, a, channel, walk, active);
        write_output<K, Operation>(in, a,
                                   shared.coefficients + column * K::kChannels * kCoefficients,
                                   channel, walk, active);
    }
}

}  // namespace bnext::cuda
