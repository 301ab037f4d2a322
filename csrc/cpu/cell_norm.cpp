#include "cpu/cell_norm.hpp"

#include <vector>

#include "core/float_mode.hpp"
#include "cpu/cell_phases.hpp"

namespace bnext::cpu {
namespace {

// The decisions of a call: of its second phase over cells, and of its first one.
template <class T>
struct CellSettings {
    Setting<T> cells;
    Setting<T> sums;
};

template <class T>
CellSettings<T> prepare_cells(const CellProblem& problem, const Fused& fused, Pass pass) {
    const Epilogue epilogue = fused.any() ? Epilogue::activated : Epilogue::none;
    const Work work{operands_of(fused, pass, true), 2};
    Machine machine = this_machine();
    const KernelTable& table = active_table();
    table.mark_used();
    Plan plan = make_plan(problem, work, machine);
    if (plan.schedule != Schedule::serial) {
        const int limit = machine.threads;
        machine.threads = free_threads(limit, problem.elements() * size_of(problem.example.dtype));
        if (machine.threads < limit) plan = make_plan(problem, work, machine);
    }
    if (plan.schedule == Schedule::serial) machine.threads = 1;
    Plan of_sums = plan;
    if (pass == Pass::forward && problem.joined) of_sums.tiling = Tiling(problem.planes_of_slabs());
    const auto setting = [&](const Plan& by) {
        return Setting<T>{by, machine.threads, table,
                          table.kernels<T>(by.tiling.walk(), pass, epilogue),
                          by.streams_output ? Stores::streaming : Stores::cached};
    };
    return {setting(plan), setting(of_sums)};
}

// Of a pass's first phase: units of so many cells are what it sums.
ChannelRange units_of(const ChannelRange& cells, Index cells_of_unit) {
    return {cells.begin / cells_of_unit, cells.end / cells_of_unit};
}

// A task is both phases of a block of one example's cells.
template <class T, class CellsPass>
double run_by_blocks(const CellProblem& problem, const CellSettings<T>& settings,
                     const CellsPass& pass) {
    const Plan& plan = settings.cells.plan;
    const Tiling &sums = settings.sums.plan.tiling, &tiling = plan.tiling;
    const int threads = settings.cells.threads;
    const auto extent = static_cast<std::size_t>(plan.block);
    std::vector<CellRoom<T>> rooms;
    std::vector<PoolArray<double>> numbers;  // the sums of a chunk, and of those before it
    for (int rank = 0; rank < threads; ++rank) {
        rooms.emplace_back(plan.block, tiling.columns(), pass.of_rooms());
        numbers.emplace_back(4 * extent);
    }
    const auto block_of = [&](Index task) {
        const Index begin = task % plan.blocks * plan.block;
        return ChannelRange{begin, std::min(begin + plan.block, problem.cells())};
    };
    TaskShares tasks(problem.examples * plan.blocks, threads);
    double of_first = 0;
    parallel(threads, problem.elements() * size_of(problem.example.dtype), [&](const Team& team) {
        CellRoom<T>& room = rooms[static_cast<std::size_t>(team.rank)];
        double* const a = numbers[static_cast<std::size_t>(team.rank)].data();
        double *const b = a + extent, *const more_a = b + extent, *const more_b = more_a + extent;
        Index task = 0;
        for (bool taken = tasks.take(team.rank, task); taken;) {
            const ChannelRange block = block_of(task);
            room.example = task / plan.blocks;
            room.base = block.begin;
            const ChannelRange cells{0, block.size()};
            const ChannelRange units = units_of(cells, pass.cells_of_unit());
            pass.begin(cells, room);
            double n = pass.reduce({&sums, sums.chunk(0), units}, room, a, b);
            for (Index k = 1; k < sums.chunks(); ++k) {
                const double more =
                    pass.reduce({&sums, sums.chunk(k), units}, room, more_a, more_b);
                pass.merge(n, more, units.size(), a, b, more_a, more_b);
                n += more;
            }
            n = pass.finish(cells, n, a, b, room);
            if (task == 0) of_first = n;
            Index next = 0;
            taken = tasks.take(team.rank, next);
            Index ahead = 0;
            if (taken && plan.prefetches && next / plan.blocks == room.example) {
                const ChannelRange following = block_of(next);
                if (following.size() == block.size()) ahead = following.begin - block.begin;
            }
            pass.with_second(room, [&](const auto& second) {
                second.make(cells, n, room.coefficients, 0);
                second.write({&tiling, tiling.all(), cells}, n, room.coefficients, 0,
                             {settings.cells.stores, ahead, cells.size() == problem.cells()});
            });
            task = next;
        }
    });
    return of_first;
}

// Tasks of a phase whose threads share one example: a range of units, and a chunk of a tiling.
struct SharedTasks {
    SharedTasks(const Tiling& tiling_, Index units_, int threads)
        : tiling(tiling_), units(units_), planar(tiling.walk() == Layout::planar) {
        const Index wanted = divide_up(Index{2} * threads, std::max<Index>(tiling.chunks(), 1));
        block = planar ? 1 : round_up(divide_up(units, wanted), kLanes);
        blocks = divide_up(units, block);
    }
    [[nodiscard]] Index count() const { return blocks * tiling.chunks(); }
    // As they follow each other in memory.
    [[nodiscard]] Region region(Index task, Index& chunk) const {
        chunk = planar ? task % tiling.chunks() : task / blocks;
        const Index k = planar ? task / tiling.chunks() : task % blocks;
        return {&tiling, tiling.chunk(chunk), {k * block, std::min((k + 1) * block, units)}};
    }

    const Tiling& tiling;
    Index units;
    bool planar;
    Index block, blocks;
};

// The threads share each example, one after the other: chunks, with partial sums in slots; a
// barrier; each merges the sums of a share of the slabs; a barrier; the second phase.
template <class T, class CellsPass>
double run_by_examples(const CellProblem& problem, const CellSettings<T>& settings,
                       const CellsPass& pass) {
    const Tiling &sums = settings.sums.plan.tiling, &tiling = settings.cells.plan.tiling;
    const int threads = settings.cells.threads;
    const Index cells = problem.cells(), chunks = sums.chunks(), columns = tiling.columns();
    const Index units = cells / pass.cells_of_unit(), units_of_slab = units / problem.slabs();
    CellRoom<T> room(cells, columns, pass.of_rooms());
    const PoolArray<double> slots(static_cast<std::size_t>((2 * units + 1) * chunks));
    const auto slot_a = [&](Index k) { return slots.data() + k * units; };
    const auto slot_b = [&](Index k) { return slots.data() + (chunks + k) * units; };
    double* const slot_n = slot_b(chunks);
    const Extremes extremes;
    double of_all = 0;
    parallel(threads, problem.elements() * size_of(problem.example.dtype), [&](const Team& team) {
        const SharedTasks first(sums, units, team.size), second(tiling, cells, team.size);
        const ChannelRange mine{team.share_begin(problem.slabs()), team.share_end(problem.slabs())};
        const ChannelRange my_cells{mine.begin * problem.cells_of_slab,
                                    mine.end * problem.cells_of_slab};
        for (Index example = 0; example < problem.examples; ++example) {
            if (example > 0) team.barrier();  // the room is free
            if (team.rank == 0) room.example = example;
            team.barrier();
            pass.begin(my_cells, room);
            team.barrier();
            for (Index t = team.share_begin(first.count()); t < team.share_end(first.count());
                 ++t) {
                Index chunk = 0;
                const Region region = first.region(t, chunk);
                const Index u = region.channels.begin;
                const double n = pass.reduce(region, room, slot_a(chunk) + u, slot_b(chunk) + u);
                if (u == 0) slot_n[chunk] = n;
            }
            team.barrier();
            const Index u = mine.begin * units_of_slab, count = mine.size() * units_of_slab;
            double n = slot_n[0];
            for (Index k = 1; k < chunks; ++k) {
                pass.merge(n, slot_n[k], count, slot_a(0) + u, slot_b(0) + u, slot_a(k) + u,
                           slot_b(k) + u);
                n += slot_n[k];
            }
            n = pass.finish(my_cells, n, slot_a(0) + u, slot_b(0) + u, room);
            if (team.rank == 0) of_all = n;
            pass.with_second(room, [&](const auto& writes) {
                writes.make(my_cells, n, room.coefficients, my_cells.begin * columns);
                extremes.note(writes.extremes.any());
            });
            team.barrier();
            pass.with_second(room, [&](const auto& writes) {
                writes.extremes.note(extremes.any());
                const Index begin = team.share_begin(second.count());
                for (Index t = team.share_end(second.count()); t-- > begin;) {
                    Index chunk = 0;
                    const Region region = second.region(t, chunk);
                    writes.write(region, n, room.coefficients, region.channels.begin * columns,
                                 {settings.cells.stores, 0, true});
                }
            });
        }
    });
    return of_all;
}

template <class T, class CellsPass>
double run(const CellProblem& problem, const CellSettings<T>& settings, const CellsPass& pass) {
    if (settings.cells.plan.schedule == Schedule::split) {
        return run_by_examples(problem, settings, pass);
    }
    return run_by_blocks(problem, settings, pass);
}

}  // namespace

template <class T>
double cell_forward(const CellProblem& problem, const Examples<const T>& x, const Examples<T>& y,
                    const Affine<T>& affine, double eps, const StatisticsOut& slabs,
                    const CellsApplied<T>& applied) {
    const Fused& fused = applied.fused;
    if (problem.elements() == 0) {
        const double n = problem.count();
        const Index all = problem.all_slabs();
        for (double* row : {slabs.mean(), slabs.mean_low(), slabs.m2()}) std::fill_n(row, all, 0.0);
        const FloatMode mode;
        active_table().finish_statistics(all, slabs.m2(), n, eps, slabs.var(), slabs.rstd());
        return n;
    }
    const auto settings = prepare_cells<T>(problem, fused, Pass::forward);
    const Activated activated{fused};
    const ForwardOfCells<T> pass{{problem, settings.cells, fused.any() ? &activated : nullptr},
                                 settings.sums,
                                 x,
                                 fused.residual ? applied.residual : x,
                                 y,
                                 affine,
                                 eps,
                                 slabs};
    return run(problem, settings, pass);
}

template <class T>
void cell_backward(const CellProblem& problem, const Examples<const T>& dy,
                   const Examples<const T>& x, const Examples<T>& dx, const StatisticsIn& slabs,
                   const Param<T>* weight, double* dweight, double* dbias,
                   const CellsApplied<T>& applied) {
    const Fused& fused = applied.fused;
    const Index channels = problem.parameters;
    std::fill_n(dweight, channels, 0.0);
    std::fill_n(dbias, channels, 0.0);
    if (problem.elements() == 0) return;
    const auto settings = prepare_cells<T>(problem, fused, Pass::backward);
    const Activated activated{fused};
    const Index cells = problem.examples * problem.cells();
    const PoolArray<double> sum_dy(static_cast<std::size_t>(cells)), sum_dy_xmu(sum_dy.size());
    const ChannelWeights<T> weights(weight, channels, problem.cells_of_slab);
    const BackwardOfCells<T> pass{{problem, settings.cells, fused.any() ? &activated : nullptr},
                                  settings.sums,
                                  x,
                                  dy,
                                  fused.reads_residual() ? applied.residual : x,
                                  dx,
                                  fused.residual ? applied.dresidual : dx,
                                  slabs,
                                  weights,
                                  sum_dy.data(),
                                  sum_dy_xmu.data(),
                                  applied.of_forward};
    run(problem, settings, pass);
    const FloatMode mode;
    for (Index first = 0; first < cells; first += channels) {
        const double *const a = sum_dy.data() + first, *const b = sum_dy_xmu.data() + first;
        const double* rstd = slabs.rstd() + first / problem.cells_of_slab;
        for (Index c = 0; c < channels; ++rstd) {
            for (const Index end = c + problem.cells_of_slab; c < end; ++c) {
                dweight[c] += *rstd * b[c];
                dbias[c] += a[c];
            }
        }
    }
}

#define BNEXT_INSTANTIATE(T)                            \
    template decltype(cell_forward<T>) cell_forward<T>; \
    template decltype(cell_backward<T>) cell_backward<T>;
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
BNEXT_INSTANTIATE(float16)
BNEXT_INSTANTIATE(bfloat16)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
