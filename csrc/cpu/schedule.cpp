#include "cpu/schedule.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "core/division.hpp"

namespace bnext::cpu {
namespace {

// Where the walk is by rows, a block is at least a pack of channels with all their columns.
static_assert(kMostColumns * kLanes <= kMaxBlock);

// Below this product of elements, operands and phases one thread does all. A fork and a join cost 5
// us (two cores, Zen 4), and more where cores are farther apart: two threads took 1.1 of one
// thread's time for 65,536 elements forward and 1.2 for 131,072 in inference, and 0.9 for 65,536
// backward (two cores of a Xeon, Sapphire Rapids).
constexpr Index kSerialWork = 320 * 1024;
// The bound for calls that only write: they take a second thread sooner. In a loop of one call that
// does not pay, since the data lie with one core. In a network the operators before and after
// divide memory among all threads, and one thread would fetch half of it from another core: whole
// passes of ResNet-18, MobileNetV2 and DenseNet-121 on 8 images of 64 x 64 took 1 to 2 % less (two
// cores of a Xeon, 2026-11-28).
constexpr Index kSerialWriting = 112 * 1024;
// The bound for interleaved elements of many channels, where cores are far apart. The values per
// channel go from core to core, which costs as much as a few rows: (96, 1024) took 60 us in place
// of 41 on two cores of a Xeon, and 11 in place of 18 on two of a Zen 5. There (2000, 64) to (60,
// 2048) took 0.5 to 0.7 of one thread's time forward and backward, and half as many rows 0.6 to
// 0.8.
constexpr Index kSerialElements = 128 * 1024, kManyChannels = 512;
// The least that a task should move, so that taking it from a shared counter costs nothing.
constexpr Index kTaskBytes = 64 * 1024;
constexpr Index kPageBytes = 4096;
constexpr Index kLineBytes = 64;

struct Candidate {
    const Problem& problem;
    const Tiling& tiling;
    Work work;
    const Machine& machine;

    [[nodiscard]] bool by_rows() const { return tiling.walk() == Layout::interleaved; }
    [[nodiscard]] Index slab_bytes(Index channels) const {
        return problem.count() * channels * size_of(problem.dtype) * work.operands;
    }
};

bool is_small(const Candidate& c) {
    const Index elements = c.problem.elements();
    const bool is_wide = !c.machine.zen && c.problem.channels > kManyChannels;
    if (c.problem.layout == Layout::interleaved && is_wide) return elements < kSerialElements;
    return is_small_work(elements, c.work);
}

Index plane_bytes(const Candidate& c) {
    return std::max<Index>(c.problem.inner * size_of(c.problem.dtype), 1);
}

// How many arrays of a planar block a cache has room for. Outputs that are streamed need none: with
// room for them too, blocks were smaller, and backward passes with dx took 4 % longer, with dx and
// dresidual 2 to 10 % (float32, 256 planes of 56x56 at batch 32, two cores of a Zen 5).
int arrays_of_block(const Candidate& c) {
    const Work& work = c.work;
    const bool streams = streams_past_caches(c.machine, work.operands * c.problem.bytes());
    return streams && work.outputs > 0 ? std::max(work.operands - work.outputs, 2) : work.operands;
}

// Channels of a planar block: enough for a task, and enough small planes side by side for a page of
// consecutive memory, as long as their slab stays in the second-level cache. If possible, blocks
// begin where lines do: stores to a part of a line have to go through the cache.
//
// A channel that fills much of the second-level cache in one phase is read again from the
// last-level cache. Several channels together are then better, as long as that cache holds them:
// phases are longer, and so are runs of memory (float32 on two cores of a Zen 4: 56x56 planes at
// batch 32 up to 20 % in forward, 8 % in backward; 28x28 planes at batch 64, 25 to 35 % in both).
Index planar_block(const Candidate& c) {
    constexpr Index kTogether = 3 << 20;  // bytes
    const Index slab = std::max<Index>(c.slab_bytes(1), 1);
    const Index plane = plane_bytes(c);
    const Index fair = divide_up(c.problem.channels, Index{4} * c.machine.threads);
    if (c.machine.zen && slab > c.machine.l2_bytes / 8 * 3) {
        const Index room = std::min(kTogether, c.machine.l3_bytes / (4 * c.machine.threads));
        const Index held = slab / c.work.operands * arrays_of_block(c);
        return std::clamp<Index>(std::min(room / held, fair), 1, kMaxBlock);
    }
    const Index wanted = std::max(kTaskBytes / slab, divide_up(kPageBytes, plane));
    const Index most = std::min({c.machine.l2_bytes / 2 / slab, fair, kMaxBlock});
    const Index block = std::clamp<Index>(std::min(wanted, most), 1, kMaxBlock);
    const Index lines = round_up(block, kLineBytes / std::gcd(plane, kLineBytes));
    return lines <= most ? lines : block;
}

// Cells of a planar block. Of planes below a page, as many as half of the second-level cache has
// room for: between the phases of a block there is a third of a microsecond of other work, and each
// phase comes to speed anew. Of planes of 7x7 and 14x14, calls with blocks of 64 KiB took 1.1 to
// 1.35 of the time in backward, 1.05 to 1.2 in forward (32 examples, 512 to 2048 channels, two
// cores of a Zen 5).
Index cell_block(const Candidate& c) {
    const Index block = planar_block(c);
    if (plane_bytes(c) >= kPageBytes) return block;
    const Index fair = divide_up(c.problem.channels, Index{4} * c.machine.threads);
    const Index room = c.machine.l2_bytes / 2 / std::max<Index>(c.slab_bytes(1), 1);
    return std::max(block, std::min(room, fair));
}

Index block_of(const Candidate& c) {
    if (!c.by_rows()) return planar_block(c);
    return std::max<Index>(kMaxBlock / c.tiling.columns() / kLanes, 1) * kLanes;
}

// Tasks of whole planar channels pay if they keep the threads evenly busy. Tasks of interleaved
// channels never do: a block of columns touches every row, often in the same few sets of a cache
// and always in other pages. It took three times as long on (1024, 1024), which fits the
// second-level cache. For larger arrays, panels of 16 to 256 columns with barriers between them,
// which visit rows again while the last-level cache holds them, won nothing either. Columns of
// small planes do pay where rows are few: without barriers forward and backward took 10 to 25 %
// less on (16, 1024, 2, 2) to (128, 512, 2, 2) (two cores, Zen 4).
bool has_enough_channels(const Candidate& c) {
    if (c.problem.layout == Layout::interleaved) return false;
    if (c.by_rows() && c.slab_bytes(block_of(c)) > c.machine.l2_bytes / 2) return false;
    const Index blocks = divide_up(c.problem.channels, block_of(c));
    const Index rounds = divide_up(blocks, c.machine.threads);
    return blocks * 8 >= rounds * c.machine.threads * 7;
}

// Where the call's arrays together exceed the last-level cache, the output evicts the inputs, and
// an ordinary store first reads the line that it overwrites: a third of the traffic. On two cores
// of a Zen 4, streaming stores gained 10 to 90 % in all three operations and both layouts. Two
// cores of a Xeon (Cascade Lake) are bound by their misses in flight and not by the memory;
// streaming stores, which stay in flight longer, lost up to 14 % there. A gain on many cores of it
// is a prediction.
// A block's planes are one piece of memory that ends in the middle of a line: too much of a short
// piece has to go through the cache. Planes below a unit (units.inl.hpp) are written one by one.
bool streams_output(const Candidate& c, Index block) {
    constexpr Index kUnitBytes = 128, kLongPiece = 2048;
    const bool planar = !c.by_rows();
    const Index plane = plane_bytes(c);
    if (planar && (plane < kUnitBytes || block * plane < kLongPiece)) return false;
    return streams_past_caches(c.machine, c.work.operands * c.problem.bytes());
}

// Prefetching the next block while this one is written overlaps reads with writes. On a Zen 4 it
// gained 10 to 50 % at any size, since the last-level cache takes the overflow of the second-level
// cache. On a Xeon it gained 5 to 8 % where the inputs of both blocks and the output fit the
// second-level cache, and lost 15 % where they did not.
bool prefetches_next(const Candidate& c, Index block) {
    if (c.problem.bytes() <= c.machine.l2_bytes) return false;
    const Index array = c.slab_bytes(block) / c.work.operands;
    return c.machine.zen || (2 * c.work.operands - 1) * array <= c.machine.l2_bytes;
}

// The best first.
Schedule choose(const Candidate& c) {
    if (is_small(c)) return Schedule::serial;
    if (has_enough_channels(c)) return Schedule::channels;
    return Schedule::split;
}

// Under `split`, tasks are pairs of block and chunk. Interleaved rows are best written whole, so
// they are cut into blocks only where there are too few chunks.
Index split_block(const Candidate& c) {
    if (!c.by_rows()) return 1;
    const Index wanted = divide_up(Index{2} * c.machine.threads, c.tiling.chunks());
    const Index narrow = 256 / (size_of(c.problem.dtype) * c.tiling.columns());
    return std::max(narrow, round_up(divide_up(c.problem.channels, wanted), kLanes));
}

// (Of an optional, Clang asks for the functions of libatomic.)
constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

Plan make_plan(const Problem& problem, const Work& work, const Machine& machine, Index together) {
    const Tiling tiling(problem);
    const int wanted = forced.load(std::memory_order_relaxed);
    Schedule schedule = wanted == kNotForced ? choose({problem, tiling, work, machine})
                                             : static_cast<Schedule>(wanted);
    if (together > kMaxBlock) schedule = Schedule::split;
    // A serial schedule has blocks for one thread: smaller ones took a tenth longer.
    Machine used = machine;
    if (schedule == Schedule::serial) used.threads = 1;
    const Candidate candidate{problem, tiling, work, used};
    Index block = schedule == Schedule::split ? split_block(candidate) : block_of(candidate);
    if (schedule != Schedule::split) block = std::max<Index>(block / together, 1) * together;
    block = std::clamp<Index>(block, 1, std::max<Index>(problem.channels, 1));
    const bool streams = streams_output(candidate, block);
    const bool prefetches = schedule == Schedule::channels && prefetches_next(candidate, block);
    const Index columns = problem.channels * tiling.columns();
    const bool wraps = schedule != Schedule::split && block == problem.channels &&
                       candidate.by_rows() && columns + kWrap <= kMaxBlock;
    return {tiling,  schedule,   block,    divide_up(problem.channels, block),
            streams, prefetches, together, wraps ? columns : 0};
}

Plan make_plan(const CellProblem& problem, const Work& work, const Machine& machine) {
    const Problem whole = problem.whole();
    const Tiling tiling(problem.example);
    const int wanted = forced.load(std::memory_order_relaxed);
    Schedule schedule = static_cast<Schedule>(wanted);
    if (wanted == kNotForced) {
        schedule = is_small({whole, tiling, work, machine}) ? Schedule::serial : Schedule::channels;
    }
    const int threads = schedule == Schedule::serial ? 1 : machine.threads;
    Machine used = machine;
    used.threads = threads;
    const Candidate all{whole, tiling, work, used};
    // Rows are gone through whole, an example's after another's: its second phase reads them from
    // the last-level cache. Cells of one value, and of small planes, lie in a row of their own.
    const bool whole_rows = all.by_rows() && tiling.columns() == 1 && problem.example.count() > 1;
    const Index together = problem.cells_of_slab;
    // A task's numbers are on the heap, so that small cells need not be cut for the stack.
    constexpr Index kColumns = 1024;
    Index block = whole_rows      ? problem.cells()
                  : all.by_rows() ? std::max<Index>(kColumns / tiling.columns(), 1)
                                  : cell_block(all);
    block = std::max<Index>(block / together, 1) * together;
    block = std::clamp<Index>(block, 1, std::max<Index>(problem.cells(), 1));
    const Index blocks = divide_up(problem.cells(), block);
    if (wanted == kNotForced && schedule == Schedule::channels) {
        const Index tasks = problem.examples * blocks;
        if (tasks * 8 < round_up(tasks, Index{threads}) * 7) schedule = Schedule::split;
    }
    const bool streams = streams_output(all, block);
    const bool prefetches =
        schedule == Schedule::channels && !all.by_rows() && prefetches_next(all, block);
    return {tiling, schedule, block, blocks, streams, prefetches, together};
}

bool is_small_work(Index elements, const Work& of) {
    const Index work = elements * of.operands * of.phases;
    const bool writes_only = of.phases == 1 && of.operands > 1;
    return work < (writes_only ? kSerialWriting : kSerialWork);
}

bool streams_past_caches(const Machine& machine, Index bytes) {
    constexpr int kCoresThatFillTheMemory = 8;
    if (!machine.zen && machine.threads < kCoresThatFillTheMemory) return false;
    return machine.l3_bytes > 0 && bytes > machine.l3_bytes;
}

Plan plan_of(const Problem& problem, int operands) {
    return make_plan(problem, {operands, 2}, this_machine());
}

void force_schedule(const Schedule* schedule) {
    forced = schedule != nullptr ? static_cast<int>(*schedule) : kNotForced;
}

}  // namespace bnext::cpu
