// For tests: which elements a launch touches, by walking its partition on the host as its kernel
// does on the device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cuda/plan.hpp"

namespace bnext::cuda {

// Cursor::units, whose number and layout a kernel knows when it is compiled.
template <int kUnits, class F>
void walk_units(const Cursor<1>& cursor, const Cut& cut, Cursor<1>::Operands of, F&& f) {
    cut.unit_channels == 1 ? cursor.units<kUnits, false>(cut, of, f)
                           : cursor.units<kUnits, true>(cut, of, f);
}
template <class F>
void walk_batch(const Cursor<1>& cursor, const Cut& cut, Cursor<1>::Operands of, F&& f) {
    switch (cut.batch) {
        case 2: return walk_units<2>(cursor, cut, of, f);
        case 4: return walk_units<4>(cursor, cut, of, f);
        case 8: return walk_units<8>(cursor, cut, of, f);
        case 12: return walk_units<12>(cursor, cut, of, f);
        default: throw std::logic_error("a batch of another size than kernels have");
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
    const Operand operand = operand_of(problem.layout, cut, strides, 1);
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
            Walk walk(cut, place.part, thread);
            if (downwards) walk.go_to_end(cut);
            for (Index slab = place.group; slab < cut.slabs; slab += cut.groups) {
                const Index channel = cut.channel(slab, thread % cut.columns);
                Cursor<1> cursor(cut, walk, of, channel, channel < cut.channels);
                for (int b = 0; b < cut.batches; ++b) {
                    if (downwards) cursor.previous_batch(cut, of);
                    walk_batch(cursor, cut, of, unit);
                    if (!downwards) cursor.next_batch(cut, of);
                }
            }
        }
    }
    return times;
}

}  // namespace bnext::cuda
