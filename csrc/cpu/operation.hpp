// How an operation is put together from the phases of phases.hpp.
#pragma once

#include <algorithm>
#include <atomic>

#include "core/formulas.hpp"
#include "core/problem.hpp"
#include "cpu/coefficients.hpp"
#include "cpu/columns.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/extremes.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/machine.hpp"
#include "cpu/schedule.hpp"
#include "cpu/team_size.hpp"
#include "cpu/two_phase.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

// Everything that is decided before the first thread starts.
template <class T>
struct Setting {
    Plan plan;
    int threads;
    const KernelTable& table;
    Kernels<T> kernels;
    Stores stores;

    // Only coefficients of all channels go on behind the last as they began.
    [[nodiscard]] bool wraps() const {
        return plan.schedule == Schedule::split || plan.wrapped != 0;
    }
    // Both phases, or the first alone. Returns the n of the sums.
    template <class Operation>
    double run(const Operation& operation, const Problem& problem) const {
        return run_two_phase(operation, problem, plan, threads);
    }
};

// `together`: channels whose sums are finished together (core/cells.hpp).
template <class T>
Setting<T> prepare(const Problem& problem, const Work& work, Pass pass,
                   Epilogue epilogue = Epilogue::none, Index together = 1) {
    Machine machine = this_machine();
    const KernelTable& table = active_table();
    table.mark_used();
    Plan plan = make_plan(problem, work, machine, together);
    if (plan.schedule != Schedule::serial) {
        // Small calls do not ask: it would take as long as they do.
        const int limit = machine.threads;
        machine.threads = free_threads(limit, problem.bytes());
        if (machine.threads < limit) plan = make_plan(problem, work, machine, together);
    }
    return {plan, machine.threads, table, table.kernels<T>(plan.tiling.walk(), pass, epilogue),
            plan.streams_output ? Stores::streaming : Stores::cached};
}

// The same with the kernels of positions that have weights; of `problem_of_positions`.
template <class T>
Setting<T> prepare_weighted(const Problem& problem, const Work& work, Pass pass,
                            Epilogue epilogue = Epilogue::none) {
    Setting<T> setting = prepare<T>(problem, work, pass, epilogue);
    const auto& weighted = weighted_table_of(setting.table)
                               .template kernels<T>(setting.plan.tiling.walk(), pass, epilogue);
    setting.kernels.reduce = weighted.reduce;
    setting.kernels.write = weighted.write;
    return setting;
}

// The work of a formula's phases: of the first alone, of the second alone, of both.
template <class F>
inline constexpr Work kSummingWork{F::kSummed, 1};
template <class F>
inline constexpr Work kWritingWork{F::kReads + F::kWrites, 1};
template <class F>
inline constexpr Work kWholeWork{F::kReads + F::kWrites, 2, F::kWrites};

// Makes the coefficients of a range of channels and spreads them over their columns. Whether any of
// the channels is extreme.
template <class T, class Rows>
bool make_coefficients(const Setting<T>& setting, const ChannelRange& channels,
                       const Terms<T>& terms, Rows& rows, Index offset) {
    const Index columns = setting.plan.tiling.columns();
    const Index made = offset + made_at(channels.size(), columns);
    Compute<T>* into[Rows::kRows];
    for (std::size_t r = 0; r < Rows::kRows; ++r) into[r] = rows.row(r, made);
    const bool extremes = setting.kernels.make_coefficients(channels.size(), terms, into);
    rows.complete(offset, channels.size(), columns);
    return extremes;
}

// The rows of z for all columns, which both phases of an activated backward pass take: Normalize's,
// of the statistics and of the forward call's weight and bias. Whether any channel is extreme.
template <class T>
struct RowsOfZ {
    using Row = typename Normalize<Compute<T>>::Row;
    static constexpr std::size_t kRows = Normalize<Compute<T>>::kRows;

    // Room for so many channels, whose rows `make` makes.
    RowsOfZ(Index channels, Index columns_, const Activated& activated)
        : columns(columns_), rows(channels * columns_) {
        for (std::size_t r = 0; r < kRows; ++r) all.row[r] = rows.row(r, 0);
        all.activated = &activated;
    }
    RowsOfZ(const Problem& problem, const Setting<T>& setting, const Terms<T>& terms,
            const Activated& activated)
        : RowsOfZ(problem.channels, setting.plan.tiling.columns(), activated) {
        make(setting, {0, problem.channels}, terms);
    }
    // `terms`: from the first of these channels on. Threads may make rows of others meanwhile.
    void make(const Setting<T>& setting, const ChannelRange& channels, const Terms<T>& terms) {
        const auto& forward = setting.table.template kernels<T>(setting.plan.tiling.walk(),
                                                                Pass::forward, Epilogue::activated);
        const Index offset = channels.begin * columns;
        const Index made = offset + made_at(channels.size(), columns);
        Compute<T>* into[kRows];
        for (std::size_t r = 0; r < kRows; ++r) into[r] = rows.row(r, made);
        if (forward.make_coefficients(channels.size(), terms, into)) {
            std::atomic_ref(any_extreme).store(true, std::memory_order_relaxed);
        }
        rows.complete(offset, channels.size(), columns);
    }
    // From the region's first channel on.
    [[nodiscard]] CoefficientsIn<Compute<T>> from(Index channel) const {
        CoefficientsIn<Compute<T>> part = all;
        for (std::size_t r = 0; r < kRows; ++r) part.row[r] += channel * columns;
        return part;
    }

    Index columns;
    CoefficientRows<Compute<T>, kRows, 0> rows;
    CoefficientsIn<Compute<T>> all{};
    bool any_extreme = false;
};

// What is done for each channel between the phases goes over a dozen rows of numbers, several
// times: by chunks that the first-level cache nearly holds.
template <class F>
void for_each_chunk(const ChannelRange& channels, F&& f) {
    constexpr Index kChunk = 256;
    for (Index c = channels.begin; c < channels.end; c += kChunk) {
        f(ChannelRange{c, std::min(c + kChunk, channels.end)});
    }
}

// The second phase of a pass: from statistics, and from sums of n values, which are final for the
// channels that it is called on. `Of` has
//     prepare(setting, channels, n)    writes rows that follow from them
//     terms(c, n)                      the data of coefficients, from channel c on
//     is_extreme(c, n), write_one(in, out, region, c, n)    for channels of extremes.hpp
template <class F, class T, class Of>
struct Second {
    const Setting<T>& setting;
    const View<const T>* in;  // F::kReads
    const View<T>* out;       // F::kWrites
    Of of;
    const Activated* activated = nullptr;          // of an activated formula
    const RowsOfZ<T>* of_z = nullptr;              // of an activated backward pass
    const Weights<Compute<T>>* weights = nullptr;  // of positions that kernels write by weights
    Extremes extremes{};

    // Rows that the phase makes: of an activated backward pass without z's rows.
    static constexpr std::size_t kMadeRows =
        std::size_t{F::kFlags == Flags::read ? 4 : int{F::kRows}};
    template <Index Capacity>
    using Coefficients = CoefficientRows<Compute<T>, kMadeRows, Capacity>;

    template <class Rows>
    void make(const ChannelRange& all, double n, Rows& rows, Index offset) const {
        for_each_chunk(all, [&](const ChannelRange& channels) {
            make_chunk(channels, n, rows,
                       offset + (channels.begin - all.begin) * setting.plan.tiling.columns());
        });
    }
    template <class Rows>
    void make_chunk(const ChannelRange& channels, double n, Rows& rows, Index offset) const {
        of.prepare(setting, channels, n);
        if (of_z != nullptr) extremes.note(of_z->any_extreme);
        extremes.note(
            make_coefficients(setting, channels, of.terms(channels.begin, n), rows, offset));
    }
    // The coefficients of the region's first channel are at `offset`.
    template <class Rows>
    void write(const Region& region, double n, const Rows& rows, Index offset,
               const Access& access) const {
        const auto by_kernels = [&](const Region& part, Index place, const Access& by) {
            CoefficientsIn<Compute<T>> all{};
            for (std::size_t r = 0; r < Rows::kRows; ++r) all.row[r] = rows.row(r, place);
            all.activated = activated;
            all.weights = weights;
            if constexpr (F::kFlags == Flags::read) {
                const auto z = of_z->from(part.channels.begin);
                all.row[F::kScaleOfZ] = z.row[RowsOfZ<T>::Row::kScale];
                all.row[F::kShiftOfZ] = z.row[RowsOfZ<T>::Row::kShift];
            }
            setting.kernels.write(in, out, part, all, by);
        };
        if (!kHasExtremes<T> || !extremes.any()) return by_kernels(region, offset, access);
        for_each_run(
            region, [&](Index c) { return of.is_extreme(c, n); },
            [&](const Region& part) {
                const Index skipped = part.channels.begin - region.channels.begin;
                const bool apart = part.channels.size() < region.channels.size();
                by_kernels(part, offset + skipped * setting.plan.tiling.columns(),
                           apart ? Access{access.stores, 0, false} : access);
            },
            [&](Index c) { of.write_one(in, out, region, c, n); });
    }
    // This phase alone; n is 0 where the statistics are given.
    void run(const Problem& problem, double n = 0) const {
        const Index columns = setting.plan.tiling.columns();
        Coefficients<0> rows(problem.channels * columns);
        run_elementwise(
            problem, setting.plan, setting.threads,
            [&](const ChannelRange& channels) {
                make(channels, n, rows, channels.begin * columns);
            },
            [&](const Region& region) {
                write(region, n, rows, region.channels.begin * columns, {setting.stores, 0, true});
            });
    }
};

// Both phases, as two_phase.hpp has them.
template <class First, class SecondPhase>
struct Both : First {
    SecondPhase second;

    template <Index Capacity>
    using Coefficients = typename SecondPhase::template Coefficients<Capacity>;

    template <class Rows>
    double finish(const ChannelRange& channels, double n, const double* a, const double* b,
                  Rows& rows, Index offset) const {
        if constexpr (!First::kKeepsApart) {
            n = this->keep(channels, n, a, b);
            second.make(channels, n, rows, offset);
            return n;
        }
        const Index columns = second.setting.plan.tiling.columns();
        for_each_chunk(channels, [&](const ChannelRange& chunk) {
            const Index skipped = chunk.begin - channels.begin;
            this->keep(chunk, n, a + skipped, b + skipped);
            second.make_chunk(chunk, n, rows, offset + skipped * columns);
        });
        return n;
    }
    template <class Rows>
    void apply(const Region& region, double n, const Rows& rows, Index offset, Index ahead) const {
        second.write(region, n, rows, offset,
                     {second.setting.stores, ahead, second.setting.wraps()});
    }
};

}  // namespace bnext::cpu
