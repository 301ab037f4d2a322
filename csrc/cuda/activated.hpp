// Passes with an activation and a residual, by the activated formulas of core/formulas.hpp: one
// kernel for each direction and kind of unit. Which activation, whether there is a residual, and
// which phases a launch does is decided while it runs, so that these few kernels are all there are.
//
//   both phases    as `fused` (kernels.hpp)
//   sums alone     as `reduce`; forward, where sums are of x, that kernel itself
//   writing alone  as `apply`
//
// Batches are gone through unit by unit, by loops that are not unrolled: units come from shared
// memory, where each batch is copied in time, and the residual when it is used. So a thread has few
// values at a time, and the smooth activations, which are called out of line, leave room for them.
//
// Bytes: as of the plain kernels; the residual once in each phase that reads it (forward: the
// second; backward: both, in place of flags), dresidual once.
#pragma once

#include "cuda/kernels.hpp"
#include "cuda/rolled.hpp"

namespace bnext::cuda {

// With what is known when this is compiled: no pass on a GPU is in place.
BNEXT_DEVICE Fused fused_of(const Arguments& a) {
    return {a.fused.activation, a.fused.negative_slope, a.fused.residual};
}

// A unit of the residual; 0 where there is none.
template <class K>
BNEXT_DEVICE typename K::U residual_at(const Arguments& a, Index at, bool exists) {
    typename K::U unit{};
    if (a.fused.residual && exists) {
        unit = device::load(reinterpret_cast<const typename K::U*>(at));
    }
    return unit;
}

// Scale and shift of z, as the forward pass had them, for the backward pass: to the bit.
BNEXT_HOST_DEVICE double* scale_of_z(const Arguments& a, Index channel) { return a.of_z + channel; }
BNEXT_HOST_DEVICE double* shift_of_z(const Arguments& a, Index channel) {
    return a.of_z + a.cut.channels + channel;
}

template <class K>
struct ForwardActivated {
    using C = typename K::C;
    using U = typename K::U;
    using Plain = Forward<K>;
    using F = Formula<Pass::forward, Epilogue::activated, C>;
    static constexpr int kSummed = F::kSummed, kAddresses = 2;

    // Arrays that the second phase reads or writes besides the inputs of a kind.
    BNEXT_DEVICE explicit ForwardActivated(const Arguments& a) : of{&a.out[0], &a.residual} {}
    const Operand* of[kAddresses];

    BNEXT_DEVICE static void finish(const Arguments& a, Index channel, const Sums& total,
                                    bool writes, C* coefficients) {
        Plain::finish(a, channel, total, writes, coefficients);
        keep(a, channel, writes, coefficients);
    }
    BNEXT_DEVICE static void coefficients_of(const Arguments& a, Index channel, bool writes,
                                             C* coefficients) {
        Plain::coefficients_of(a, channel, writes, coefficients);
        keep(a, channel, writes, coefficients);
    }

    // The sums of a part's values.
    BNEXT_DEVICE static void sum_up(const Arguments& a, const Walk<K::kRuns>& begin,
                                    unsigned char* data, Index channel, bool active,
                                    RolledSums<K, kSummed>& sums) {
        Rolled<K, true> upwards(a, begin, data, channel, active, false);
        BNEXT_UNROLL_BY(1)
        for (int b = 0; b < a.cut.batches; ++b) {
            const U* const x = upwards.take(b);
            const int left = upwards.left();
            if (b == 0) sums.choose_pilots_of(x, left, a.cut);
            sums.add([&](auto&& f) {
                BNEXT_UNROLL_BY(1)
                for (int u = 0; u < K::kBatch; ++u) {
                    const U unit = x[place_in_slot<K>(0, u)];
                    const bool exists = left > u * a.cut.rows;
                    BNEXT_UNROLL
                    for (int v = 0; v < K::V; ++v) f(v, wide<K>(unit, v), C{0}, exists);
                }
            });
            upwards.next(b);
        }
    }

    // y of a unit.
    BNEXT_DEVICE static void write(const Arguments& a, const F (&formula)[K::kChannels],
                                   const U* slot, int u, bool exists,
                                   const Index (&at)[kAddresses]) {
        const U x = slot[place_in_slot<K>(0, u)], residual = residual_at<K>(a, at[1], exists);
        C y[K::V];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const C in[] = {wide<K>(x, v), wide<K>(residual, v)};
            C out[1];
            formula[K::kChannels == 1 ? 0 : v](in, out);
            y[v] = out[0];
        }
        store<K>(at[0], y, exists);
    }

private:
    BNEXT_DEVICE static void keep(const Arguments& a, Index channel, bool writes,
                                  const C* coefficients) {
        if (!writes || a.of_z == nullptr) return;
        *scale_of_z(a, channel) = static_cast<double>(coefficients[F::kScale]);
        *shift_of_z(a, channel) = static_cast<double>(coefficients[F::kShift]);
    }
};

template <class K>
struct BackwardActivated {
    using C = typename K::C;
    using U = typename K::U;
    using Plain = Backward<K>;
    using F = Formula<Pass::backward, Epilogue::activated, C>;
    static constexpr int kSummed = F::kSummed, kAddresses = 3;
    static_assert(int{F::kScale} == int{Plain::F::kScale});

    BNEXT_DEVICE explicit BackwardActivated(const Arguments& a)
        : of{&a.out[0], &a.residual, &a.dresidual} {}
    const Operand* of[kAddresses];

    BNEXT_DEVICE static void finish(const Arguments& a, Index channel, const Sums& total,
                                    bool writes, C* coefficients) {
        Plain::finish(a, channel, total, writes, coefficients);
        if (coefficients != nullptr) set(a, channel, coefficients);
    }
    // Of constant statistics, without the sums.
    BNEXT_DEVICE static void coefficients_of(const Arguments& a, Index channel, bool writes,
                                             C* coefficients) {
        if (a.source == Statistics::absent) {
            Plain::set(a, channel, 1.0, 0.0, 0.0, coefficients);
        } else {
            Plain::coefficients_of(a, channel, writes, coefficients);
        }
        set(a, channel, coefficients);
    }

    // The sums of g in place of dy.
    BNEXT_DEVICE static void sum_up(const Arguments& a, const Walk<K::kRuns>& begin,
                                    unsigned char* data, Index channel, bool active,
                                    RolledSums<K, kSummed>& sums) {
        using G = ThroughActivation<C>;
        G through[K::kChannels]{};
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            through[c].fused = fused_of(a);
            if (!active) continue;
            through[c].row[G::kCenter] = static_cast<C>(*statistic(a, Row::mean, channel + c));
            through[c].row[G::kScale] = static_cast<C>(*scale_of_z(a, channel + c));
            through[c].row[G::kShift] = static_cast<C>(*shift_of_z(a, channel + c));
        }
        const Operand* const residual[] = {&a.residual};
        Cursor<1, K::kRuns> at(a.cut, begin, residual, channel, active);
        Rolled<K, true> upwards(a, begin, data, channel, active, false);
        BNEXT_UNROLL_BY(1)
        for (int b = 0; b < a.cut.batches; ++b) {
            const U* const slot = upwards.take(b);
            sums.add([&](auto&& f) {
                at.template units_rolled<K::kBatch>(
                    a.cut, residual, [&](int u, bool exists, const Index(&place)[1]) {
                        const U x = slot[place_in_slot<K>(0, u)];
                        const U dy = slot[place_in_slot<K>(1, u)];
                        const U r = residual_at<K>(a, place[0], exists);
                        BNEXT_UNROLL
                        for (int v = 0; v < K::V; ++v) {
                            const C value = wide<K>(x, v);
                            const C g = through[K::kChannels == 1 ? 0 : v](value, wide<K>(dy, v),
                                                                           wide<K>(r, v));
                            f(v, value, exists ? g : C{0}, exists);
                        }
                    });
            });
            at.next_batch(a.cut, residual);
            upwards.next(b);
        }
    }

    // dx of a unit, and dresidual where it is wanted.
    BNEXT_DEVICE static void write(const Arguments& a, const F (&formula)[K::kChannels],
                                   const U* slot, int u, bool exists,
                                   const Index (&at)[kAddresses]) {
        const U x = slot[place_in_slot<K>(0, u)], dy = slot[place_in_slot<K>(1, u)];
        const U residual = residual_at<K>(a, at[1], exists);
        C dx[K::V], g[K::V];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const C in[] = {wide<K>(x, v), wide<K>(dy, v), wide<K>(residual, v)};
            C out[2];
            formula[K::kChannels == 1 ? 0 : v](in, out);
            dx[v] = out[0];
            g[v] = out[1];
        }
        store<K>(at[0], dx, exists);
        if (a.dresidual.data != nullptr) store<K>(at[2], g, exists);
    }

private:
    BNEXT_DEVICE static void set(const Arguments& a, Index channel, C* coefficients) {
        coefficients[F::kScaleOfZ] = static_cast<C>(*scale_of_z(a, channel));
        coefficients[F::kShiftOfZ] = static_cast<C>(*shift_of_z(a, channel));
    }
};

// A part's results, from its last batch to its first. `has_last`: the ring has the last batches.
template <class K, class Operation>
BNEXT_DEVICE void write_part(const Arguments& a, const Walk<K::kRuns>& end, unsigned char* data,
                             Index channel, bool active, bool has_last,
                             const typename K::C* coefficients) {
    using F = typename Operation::F;
    F formula[K::kChannels];
    BNEXT_UNROLL
    for (int c = 0; c < K::kChannels; ++c) {
        formula[c].fused = fused_of(a);
        BNEXT_UNROLL
        for (int r = 0; r < F::kRows; ++r) {
            formula[c].row[r] = coefficients[c * kActivatedCoefficients + r];
        }
    }
    const Operation operation(a);
    Rolled<K, false> downwards(a, end, data, channel, active, has_last);
    Cursor<Operation::kAddresses, K::kRuns> at(a.cut, end, operation.of, channel, active);
    BNEXT_UNROLL_BY(1)
    for (int b = a.cut.batches; b-- > 0;) {
        const typename K::U* const slot = downwards.take(b);
        at.previous_batch(a.cut, operation.of);
        at.template units_rolled<K::kBatch>(
            a.cut, operation.of,
            [&](int u, bool exists, const Index(&place)[Operation::kAddresses]) {
                Operation::write(a, formula, slot, u, exists, place);
            });
        downwards.next(b);
    }
}

template <class K, class Operation>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS activated(BNEXT_CONSTANT Arguments a) {
    const Cut& cut = a.cut;
    // Writing alone goes backwards: the caches have the end of what came before.
    const Place place =
        place_of(cut, a.sums_up ? device::block() : cut.slabs * cut.parts - 1 - device::block());
    const int column = device::thread() % cut.columns;
    unsigned char* const data = device::shared_memory();
    const SharedPlaces<K> shared(cut, data + bytes_of_slots<K>(device::threads(), a.slots));
    const Walk<K::kRuns> begin(cut, place.part, device::thread());
    for (Index slab = place.group; slab < cut.slabs; slab += cut.groups) {
        const Index channel = cut.channel(slab, column);
        const bool active = channel < cut.channels;
        Sums* const of_block = shared.of_block;
        if (a.sums_up) {
            RolledSums<K, Operation::kSummed> sums(a, channel, active);
            Operation::sum_up(a, begin, data, channel, active, sums);
            Sums own[K::kChannels];
            sums.take(own, active ? begin.units_of(cut) : 0);
            merge_block(cut, own, shared.scratch, of_block);
        }
        if constexpr (Operation::kSummed > 1) {
            if (!a.writes) return finish_alone<Operation>(a, slab, place.part, shared);
        }
        if (a.exchange == Exchange::cluster) device::cluster_barrier();
        if (a.exchange == Exchange::grid) {
            exchange_over_grid(a, slab, place.part, of_block, shared.scratch, [] {});
        }
        for_each_channel(cut, slab, [&](int c, Index of_problem) {
            typename K::C* const coefficients = shared.coefficients + c * kActivatedCoefficients;
            if (a.sums_up) {
                const Sums total = total_of(a, of_block, c);
                Operation::finish(a, of_problem, total, place.part == 0, coefficients);
            } else {
                Operation::coefficients_of(a, of_problem, place.part == 0, coefficients);
            }
        });
        device::block_barrier();
        if (a.exchange == Exchange::cluster) device::cluster_arrive();  // it has read the others
        write_part<K, Operation>(
            a, begin.end_of(cut), data, channel, active, a.sums_up,
            shared.coefficients + column * K::kChannels * kActivatedCoefficients);
        // Until then others of the cluster may read this block's sums.
        if (a.exchange == Exchange::cluster) device::cluster_wait();
    }
}

}  // namespace bnext::cuda
