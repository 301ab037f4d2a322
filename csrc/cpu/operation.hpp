// What the operations of forward.cpp and backward.cpp have in common.
#pragma once

#include "core/formulas.hpp"
#include "core/problem.hpp"
#include "cpu/columns.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/extremes.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/machine.hpp"
#include "cpu/schedule.hpp"
#include "cpu/team_size.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

// Everything that is decided before the first thread starts.
template <class T>
struct Setting {
    Plan plan;
    int threads;
    const Kernels<T>& kernels;
    decltype(KernelTable::finish_statistics) finish_statistics;
    decltype(KernelTable::any_beyond) any_beyond;
    Stores stores;

    // Only coefficients of all channels go on behind the last as they began.
    [[nodiscard]] bool wraps() const { return plan.schedule == Schedule::split; }
};

template <class T>
Setting<T> prepare(const Problem& problem, const Work& work, Pass pass, Epilogue epilogue) {
    Machine machine = this_machine();
    const KernelTable& table = active_table();
    table.mark_used();
    Plan plan = make_plan(problem, work, machine);
    if (plan.schedule != Schedule::serial) {
        // Small calls do not ask: it would take as long as they do.
        const int limit = machine.threads;
        machine.threads = free_threads(limit, problem.bytes());
        if (machine.threads < limit) plan = make_plan(problem, work, machine);
    }
    return {plan,
            machine.threads,
            table.kernels<T>(plan.tiling.walk(), pass, epilogue),
            table.finish_statistics,
            table.any_beyond,
            plan.streams_output ? Stores::streaming : Stores::cached};
}

// What a formula's phases move: the first one alone, the second one alone, both.
template <class F>
inline constexpr Work kSummingWork{F::kSummed, 1};
template <class F>
inline constexpr Work kWritingWork{F::kReads + F::kWrites, 1};
template <class F>
inline constexpr Work kWholeWork{F::kReads + F::kWrites, 2};

// Makes the coefficients of a range of channels, of which `terms` are, and spreads them over their
// columns. Whether any of the channels is extreme.
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

// Writes a region by the kernels; the coefficients of its first channel are at `offset`. One by one
// where a call has met extremes: channels for which is_extreme(c), by write_one(c).
template <class T, class Rows, class IsExtreme, class WriteOne>
void write_region(const Setting<T>& setting, const View<const T>* in, const View<T>* out,
                  const Region& region, const Extremes& extremes, const Rows& rows, Index offset,
                  const Access& access, const IsExtreme& is_extreme, const WriteOne& write_one) {
    const auto write = [&](const Region& part, Index place, const Access& by) {
        CoefficientsIn<Compute<T>> all{};
        for (std::size_t r = 0; r < Rows::kRows; ++r) all.row[r] = rows.row(r, place);
        setting.kernels.write(in, out, part, all, by);
    };
    if (!kHasExtremes<T> || !extremes.any()) return write(region, offset, access);
    const auto run = [&](const Region& part) {
        const Index skipped = part.channels.begin - region.channels.begin;
        const bool apart = part.channels.size() < region.channels.size();
        write(part, offset + skipped * setting.plan.tiling.columns(),
              apart ? Access{access.stores, 0, false} : access);
    };
    for_each_run(region, is_extreme, run, write_one);
}

}  // namespace bnext::cpu
