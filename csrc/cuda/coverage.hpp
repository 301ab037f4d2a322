// For tests: which elements a launch touches, by walking its partition on the host as its kernel
// does on the device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cuda/plan.hpp"

namespace bnext::cuda {

// Walk::units, whose number a kernel knows when it is compiled.
template <class F>
void walk_units(const Walk& walk, int batch, Index outer_stride, Index along_stride, F&& f) {
    switch (batch) {
        case 2: return walk.units<2>(outer_stride, along_stride, f);
        case 4: return walk.units<4>(outer_stride, along_stride, f);
        case 8: return walk.units<8>(outer_stride, along_stride, f);
        case 12: return walk.units<12>(outer_stride, along_stride, f);
        default: throw std::logic_error("a batch of another size than kernels have");
    }
}

// How often each element is read by one phase, in the order outer, channel, inner; 255 and more
// counts as 255. Throws std::out_of_range for a place outside the array.
inline std::vector<std::uint8_t> coverage(const LaunchPlan& plan, const Launch& launch) {
    const Problem& problem = plan.problem;
    const bool planar = problem.layout == Layout::planar;
    const Cut& cut = launch.cut;
    // An array without gaps, in which an offset says which element it is.
    const Index outer_stride = problem.channels * problem.inner;
    const Index channel_stride = planar ? problem.inner : 1;
    const Index along_stride = planar ? cut.unit : problem.channels;
    std::vector<std::uint8_t> times(static_cast<std::size_t>(problem.elements()));
    const auto touch = [&](Index place) {
        std::uint8_t& n = times.at(static_cast<std::size_t>(place));
        if (n < 255) ++n;
    };
    for (Index block = 0; block < launch.grid; ++block) {
        const Place place = place_of(cut, block);
        for (int thread = 0; thread < cut.threads; ++thread) {
            Walk walk(cut, place.part, thread);
            for (Index slab = place.group; slab < cut.slabs; slab += cut.groups) {
                const Index channel = cut.channel(slab, thread % cut.columns);
                const auto unit = [&](int, bool inside, Index offset) {
                    if (!inside || channel >= cut.channels) return;
                    for (int v = 0; v < cut.unit; ++v) touch(channel * channel_stride + offset + v);
                };
                for (Index b = 0; b < cut.batches; ++b) {
                    walk_units(walk, cut.batch, outer_stride, along_stride, unit);
                    walk.next_batch();
                }
                // Back to the beginning, as the second phase goes.
                for (Index b = 0; b < cut.batches; ++b) walk.previous_batch();
            }
        }
    }
    return times;
}

}  // namespace bnext::cuda
