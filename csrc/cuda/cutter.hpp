// How a problem is cut for a launch: the width of a unit, the positions that are one run, the
// slabs, and the threads of a block.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "core/division.hpp"
#include "cuda/kernel_shape.hpp"

namespace bnext::cuda {

inline constexpr Index kMostBlocks = 0x7fffffff;  // of a grid

inline bool takes_unit(Index values, const Description& description, const CellWalk& cells,
                       std::span<const std::uint64_t> addresses) {
    const Problem& p = description.problem;
    const auto bytes = static_cast<std::uint64_t>(values * size_of(p.dtype));
    const bool planar = p.layout == Layout::planar;
    const Index side_by_side = cells.of_example != 0 ? cells.of_example : p.channels;
    if ((planar ? p.inner : side_by_side) % values != 0) return false;
    for (std::size_t k = 0; k < addresses.size(); ++k) {
        if (addresses[k] % bytes != 0) return false;
        const Strides& s = description.strides[k];
        if (p.outer > 1 && s.outer % values != 0) return false;
        if (planar && p.channels > 1 && s.channel % values != 0) return false;
        if (!planar && p.inner > 1 && s.inner % values != 0) return false;
        if (cells.steps[k] % values != 0) return false;
    }
    return true;
}

// The widest unit in which all arrays can be read and written.
inline int widest_unit(const Description& description, const CellWalk& cells,
                       std::span<const std::uint64_t> addresses, bool activated) {
    const Problem& p = description.problem;
    for (const int values : kUnits) {
        const bool there =
            activated ? has_activated_unit(p.dtype, values) : has_unit(p.dtype, values);
        if (there && takes_unit(values, description, cells, addresses) &&
            (runs_of(p.layout, values) != Runs::one || p.outer == 1)) {
            return values;
        }
    }
    return 1;
}

// Positions of an array that is not planar lie at equal distances where no outer index leaves a
// gap: then all of them are one run.
inline Description in_one_run(const Description& description, std::size_t operands) {
    Description one = description;
    Problem& p = one.problem;
    if (p.layout == Layout::planar || p.outer == 1) return one;
    for (std::size_t k = 0; k < operands; ++k) {
        Strides& s = one.strides[k];
        if (p.inner == 1) s.inner = s.outer;
        if (s.outer != p.inner * s.inner) return description;
    }
    p.inner *= p.outer;
    p.outer = 1;
    return one;
}

// The cut into slabs, still with one part.
class Cutter {
public:
    // `activated`: for a kernel with an activation.
    Cutter(const Problem& problem, const CellWalk& cells, int unit, int inputs, bool activated)
        : shape_(kernel_shape(problem.dtype,
                              activated ? activated_layout(problem.layout, unit) : problem.layout,
                              unit, inputs)),
          planar_(problem.layout == Layout::planar),
          activated_(activated) {
        cut_.unit = shape_.unit;
        cut_.unit_channels = shape_.unit_channels;
        cut_.channels = problem.channels;
        cut_.run = planar_ ? problem.inner / shape_.unit : problem.inner;
        cut_.positions = problem.outer * cut_.run;
        cut_.straight = problem.outer == 1;
        const Index units = divide_up(problem.channels, shape_.unit_channels);
        const auto all = static_cast<Index>(std::bit_ceil(static_cast<std::uint64_t>(units)));
        const Index most = std::min<Index>(tuning::kColumnBytes / shape_.unit_bytes, kWarp);
        cut_.columns = planar_ ? 1 : static_cast<int>(std::min(all, most));
        // No group of channels is of two examples.
        while (cells.of_example % (Index{cut_.columns} * cut_.unit_channels) != 0) {
            cut_.columns /= 2;
        }
        cut_.of_example = cells.of_example;
        cut_.parameters = cells.parameters;
        cut_.slabs = divide_up(units, cut_.columns);
        cut_.groups = cut_.slabs;
        cut_.parts = 1;
        cut_.threads = kMostThreads;
        cut_.batch = shape_.batch;
        cut_.complete();
    }

    [[nodiscard]] const Cut& whole() const { return cut_; }
    [[nodiscard]] bool planar() const { return planar_; }
    [[nodiscard]] Index slab_bytes() const {
        return cut_.positions * cut_.columns * shape_.unit_bytes;
    }
    // Bytes of a batch of all threads, of one input.
    [[nodiscard]] Index batch_bytes(const Cut& cut) const {
        return Index{cut.threads} * shape_.batch * shape_.unit_bytes;
    }
    // Shared memory that is not for data.
    [[nodiscard]] Index bytes_for_coefficients(const Cut& cut) const {
        return shared_bytes_of_coefficients(cut, shape_.arithmetic_bytes,
                                            activated_ ? kActivatedCoefficients : kCoefficients);
    }
    [[nodiscard]] Index bytes_for_sums(const Cut& cut) const {
        return shared_bytes_of_sums(cut) + bytes_for_coefficients(cut);
    }
    // Slots of the ring for batches that are not kept: none where units cannot be copied
    // asynchronously, unless the kernel takes them from there all the same.
    [[nodiscard]] int ring() const {
        return activated_ || shape_.unit_bytes >= 4 ? shape_.ahead : 0;
    }
    [[nodiscard]] bool activated() const { return activated_; }
    // Blocks of so many threads at most.
    void limit_threads(int most) {
        cut_.threads = most;
        cut_.complete();
    }
    // In `parts`, by blocks small enough that every thread has several batches to ask for, and of
    // no more than `most` threads.
    [[nodiscard]] Cut in_parts(Index parts, int most = kMostThreads) const {
        Cut cut = cut_;
        parts = std::max(parts, divide_up(cut_.positions, kLongestPart));
        cut.parts =
            static_cast<int>(std::clamp<Index>(parts, 1, std::min(cut_.positions, kMostBlocks)));
        cut.threads = threads_for(divide_up(cut.part_end(0) * cut.columns, shape_.batch),
                                  std::min(most, cut_.threads));
        cut.complete();
        return cut;
    }

private:
    // Of a block that has so many threads' batches: a multiple of a warp, near to the wanted number
    // of batches for each, that leaves few threads idle. More threads where it makes no difference.
    [[nodiscard]] static int threads_for(Index batches, Index most_threads) {
        const auto threads_of = [&](Index of_thread) {
            const Index threads = divide_up(divide_up(batches, of_thread), kWarp) * kWarp;
            return std::clamp<Index>(threads, tuning::kFewestThreads, most_threads);
        };
        Index best = divide_up(batches, most_threads);
        const Index most = std::max(best, tuning::kBatchesOfThread) + 2;
        for (Index n = best + 1; n <= most; ++n) {
            const Index work = n * threads_of(n), least = best * threads_of(best);
            if (n <= tuning::kBatchesOfThread ? work <= least : 10 * work < 9 * least) best = n;
        }
        return static_cast<int>(threads_of(best));
    }

    KernelShape shape_;
    bool planar_, activated_;
    Cut cut_{};
};

}  // namespace bnext::cuda
