// What the operations of forward.cpp and backward.cpp have in common.
#pragma once

#include "core/problem.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/machine.hpp"
#include "cpu/schedule.hpp"
#include "cpu/team_size.hpp"

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
Setting<T> prepare(const Problem& problem, const Work& work) {
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
            table.kernels<T>(plan.tiling.walk()),
            table.finish_statistics,
            table.any_beyond,
            plan.streams_output ? Stores::streaming : Stores::cached};
}

}  // namespace bnext::cpu
