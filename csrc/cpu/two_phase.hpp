// The two phases with the barrier between them, over the regions that a Plan cuts.
//
//   reduce every chunk | merge chunks in index order, finish | apply to every chunk
//
// An Operation keeps two double sums per channel, a and b, and provides
//     reduce(region, a, b)                           one chunk's sums; returns their n
//     merge(done, more, channels, a, b, more_a, more_b)   merges the sums of `more` values behind
//                                                    the sums of `done` values
//     Coefficients<Capacity>                         the numbers per channel for the second phase
//     finish(channels, n, a, b, coefficients, offset)     the sums are final, of n values: results
//                                                    and coefficients; returns n
//     apply(region, n, coefficients, offset, ahead)  the second phase
// n is a number of the sums and not of the Problem: a double, the same for all of a call's
// channels. Coefficients have one value for each column of a channel (Tiling); `offset` is the
// place of the first channel among them, and `ahead` as in Access. An operation of the first phase
// alone is wrapped in FirstPhaseOnly, and provides keep(channels, n, a, b) in place of the last
// three. All of these return the n of the final sums.
#pragma once

#include <algorithm>

#include "core/division.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/parallel.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/schedule.hpp"

namespace bnext::cpu {

template <class Sums>
struct FirstPhaseOnly : Sums {
    template <Index Capacity>
    struct Coefficients {
        explicit Coefficients(Index) {}
    };

    template <class None>
    double finish(const ChannelRange& channels, double n, const double* a, const double* b, None&,
                  Index) const {
        return this->keep(channels, n, a, b);
    }
    template <class None>
    void apply(const Region&, double, const None&, Index, Index) const {}
};

// The k-th block of so many channels, of which the last may have fewer.
inline ChannelRange block_of_channels(const Problem& problem, Index block, Index k) {
    return {k * block, std::min((k + 1) * block, problem.channels)};
}

// A task is both phases of one block of channels.
template <class Operation>
double run_by_channels(const Operation& operation, const Problem& problem, const Plan& plan,
                       int threads) {
    TaskShares tasks(plan.blocks, threads);
    double of_first = 0;
    parallel(threads, problem.bytes(), [&](const Team& team) {
        double a[kMaxBlock], b[kMaxBlock], chunk_a[kMaxBlock], chunk_b[kMaxBlock];
        typename Operation::template Coefficients<kMaxBlock> coefficients(plan.wrapped);
        Index task = 0;
        for (bool taken = tasks.take(team.rank, task); taken;) {
            const ChannelRange channels = block_of_channels(problem, plan.block, task);
            double n = operation.reduce({&plan.tiling, plan.tiling.chunk(0), channels}, a, b);
            for (Index k = 1; k < plan.tiling.chunks(); ++k) {
                const Region region{&plan.tiling, plan.tiling.chunk(k), channels};
                const double more = operation.reduce(region, chunk_a, chunk_b);
                operation.merge(n, more, channels.size(), a, b, chunk_a, chunk_b);
                n += more;
            }
            n = operation.finish(channels, n, a, b, coefficients, 0);
            if (task == 0) of_first = n;
            // Takes the next task now, so that its block can be prefetched, unless it is the last
            // one and narrower: memory behind it may not be touched.
            Index next = 0;
            taken = tasks.take(team.rank, next);
            const bool whole = taken && (next + 1) * plan.block <= problem.channels;
            const Index ahead = plan.prefetches && whole ? (next - task) * plan.block : 0;
            operation.apply(Region{&plan.tiling, plan.tiling.all(), channels}, n, coefficients, 0,
                            ahead);
            task = next;
        }
    });
    return of_first;
}

// Members share the chunks of all channels, with partial sums in slots; a barrier; each merges a
// share of the channels, of whole slabs; a barrier; the second phase, each member backwards over
// its own chunks.
template <class Operation>
double run_split(const Operation& operation, const Problem& problem, const Plan& plan,
                 int threads) {
    const Index chunks = plan.tiling.chunks();
    const Index channels = problem.channels;
    // Not cleared: that would bring every line to this thread's core.
    const PoolArray<double> slots(static_cast<std::size_t>((2 * channels + 1) * chunks));
    const auto slot_a = [&](Index k) { return slots.data() + k * channels; };
    const auto slot_b = [&](Index k) { return slots.data() + (chunks + k) * channels; };
    double* const slot_n = slot_b(chunks);
    double of_all = 0;
    const Index columns = plan.tiling.columns();
    typename Operation::template Coefficients<0> coefficients(channels * columns);

    // Tasks follow each other as in memory: by channels where the walk is planar, else by rows.
    const Index tasks = plan.blocks * chunks;
    const auto region_of = [&](Index task, Index& chunk) {
        const bool planar = plan.tiling.walk() == Layout::planar;
        chunk = planar ? task % chunks : task / plan.blocks;
        const Index k = planar ? task / chunks : task % plan.blocks;
        return Region{&plan.tiling, plan.tiling.chunk(chunk),
                      block_of_channels(problem, plan.block, k)};
    };
    parallel(threads, problem.bytes(), [&](const Team& team) {
        const Index first = team.share_begin(tasks);
        const Index last = team.share_end(tasks);
        for (Index task = first; task < last; ++task) {
            Index chunk = 0;
            const Region region = region_of(task, chunk);
            const double n = operation.reduce(region, slot_a(chunk) + region.channels.begin,
                                              slot_b(chunk) + region.channels.begin);
            if (region.channels.begin == 0) slot_n[chunk] = n;
        }
        team.barrier();
        const Index slabs = channels / plan.together;
        const ChannelRange mine{team.share_begin(slabs) * plan.together,
                                team.share_end(slabs) * plan.together};
        double* a = slot_a(0) + mine.begin;
        double* b = slot_b(0) + mine.begin;
        double n = slot_n[0];
        for (Index k = 1; k < chunks; ++k) {
            operation.merge(n, slot_n[k], mine.size(), a, b, slot_a(k) + mine.begin,
                            slot_b(k) + mine.begin);
            n += slot_n[k];
        }
        n = operation.finish(mine, n, a, b, coefficients, mine.begin * columns);
        if (team.rank == 0) of_all = n;
        team.barrier();
        for (Index task = last; task-- > first;) {
            Index chunk = 0;
            const Region region = region_of(task, chunk);
            operation.apply(region, n, coefficients, region.channels.begin * columns, 0);
        }
    });
    return of_all;
}

template <class Operation>
double run_two_phase(const Operation& operation, const Problem& problem, const Plan& plan,
                     int threads) {
    if (plan.schedule == Schedule::split) return run_split(operation, problem, plan, threads);
    const int members = plan.schedule == Schedule::serial ? 1 : threads;
    return run_by_channels(operation, problem, plan, members);
}

// One elementwise phase: prepare(channels) for all channels, a barrier, then apply(region) over the
// problem, in the order of memory. A region has whole planes of all channels, or of a block of
// channels where there would be too few tasks.
template <class Prepare, class Apply>
void run_elementwise(const Problem& problem, const Plan& plan, int threads, const Prepare& prepare,
                     const Apply& apply) {
    // Planes are divided along outer, into two pieces for each thread: other operators divide
    // memory in the same way, and their results are still in that core's cache; tasks by channels
    // would cut across. With few rows, channels are divided, so that a task makes its own
    // coefficients.
    const bool finer = plan.schedule != Schedule::serial && plan.tiling.walk() == Layout::planar;
    const Tiling tiling = finer ? plan.tiling.finer(2 * threads) : plan.tiling;
    const Index chunks = tiling.plane_chunks();
    const Index wanted =
        plan.schedule == Schedule::serial ? 1 : divide_up(Index{2} * threads, chunks);
    // Blocks of a multiple of these channels: whole lines where channels lie side by side.
    const Index grain = tiling.walk() == Layout::planar ? 1 : 64;
    const Index block = round_up(divide_up(problem.channels, wanted), grain);
    const Index blocks = divide_up(problem.channels, block);
    const int members = plan.schedule == Schedule::serial ? 1 : threads;
    TaskShares tasks(chunks * blocks, members);
    // With one chunk, each task makes the coefficients of its own channels.
    const bool apart = chunks == 1;
    parallel(members, problem.bytes(), [&](const Team& team) {
        if (!apart) {
            prepare(
                ChannelRange{team.share_begin(problem.channels), team.share_end(problem.channels)});
            team.barrier();
        }
        Index task = 0;
        while (tasks.take(team.rank, task)) {
            const ChannelRange channels = block_of_channels(problem, block, task % blocks);
            if (apart) prepare(channels);
            apply(Region{&tiling, tiling.plane_chunk(task / blocks), channels});
        }
    });
}

}  // namespace bnext::cpu
