// For tests: which elements a launch touches, by walking its partition on the host as its kernel
// does on the device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cuda/kernel_shape.hpp"
#include "cuda/plan.hpp"

namespace bnext::cuda {

// Cursor::units, whose number a kernel knows when it is compiled.
template <class C, class F>
void walk_batch(const C& cursor, const Cut& cut, typename C::Operands of, F&& f) {
    switch (cut.batch) {
        case 2: return cursor.template units<2>(cut, of, f);
        case 4: return cursor.template units<4>(cut, of, f);
        case 8: return cursor.template units<8>(cut, of, f);
        case 12: return cursor.template units<12>(cut, of, f);
        default: throw std::logic_error("a batch of another size than kernels have");
    }
}

// What one thread reads of the part `place`: f(u, exists, addresses) for every unit.
template <Runs kRuns, class F>
void walk_part(const Cut& cut, const Place& place, int thread, bool downwards,
               const Operand* const (&of)[1], F&& f) {
    const Walk<kRuns> begin(cut, place.part, thread);
    const Walk<kRuns> walk = downwards ? begin.end_of(cut) : begin;
    for (Index slab = place.group; slab < cut.slabs; slab += cut.groups) {
        const Index channel = cut.channel(slab, thread % cut.columns);
        Cursor<1, kRuns> cursor(cut, walk, of, channel, channel < cut.channels);
        for (int b = 0; b < cut.batches; ++b) {
            if (downwards) cursor.previous_batch(cut, of);
            walk_batch(cursor, cut, of, f);
            if (!downwards) cursor.next_batch(cut, of);
        }
    }
}

// How often each element is read by one phase, in the order outer, channel, inner; 255 and more
// counts as 255. `downwards`: as the second phase goes. Throws std::out_of_range for a place
// outside the array.
inline std::vector<std::uint8_t> coverage(const LaunchPlan& plan, const Launch& launch,
                                          bool downwards) {
    const Problem& problem = plan.problem;
    const bool planar = problem.layout == Layout::planar;
    const Cut& cut = launch.cut;
    // An array without gaps, of values of one byte, whose address says which element it is.
    const Strides strides{.outer = problem.channels * problem.inner,
                          .channel = planar ? problem.inner : 1,
                          .inner = planar ? 1 : problem.channels};
    const Operand operand = operand_of(problem.layout, cut, strides, 0, 1);
    const Operand* const of[1] = {&operand};
    std::vector<std::uint8_t> times(static_cast<std::size_t>(problem.elements()));
    const auto touch = [&](Index place) {
        std::uint8_t& n = times.at(static_cast<std::size_t>(place));
        if (n < 255) ++n;
    };
    const auto unit = [&](int, bool exists, const Index(&at)[1]) {
        for (int v = 0; exists && v < cut.unit; ++v) touch(at[0] + v);
    };
    for (Index block = 0; block < launch.grid; ++block) {
        const Place place = place_of(cut, block);
        for (int thread = 0; thread < cut.threads; ++thread) {
            const auto walk = [&]<Runs kRuns>() {
                walk_part<kRuns>(cut, place, thread, downwards, of, unit);
            };
            switch (runs_of(problem.layout, cut.unit)) {
                case Runs::many: walk.template operator()<Runs::many>(); break;
                case Runs::one: walk.template operator()<Runs::one>(); break;
                case Runs::either: walk.template operator()<Runs::either>(); break;
            }
        }
    }
    return times;
}

}  // namespace bnext::cuda
