// A thread's way through a part (cuda/partition.hpp), beside the same places found by dividing: for
// runs and parts that no array here is large enough for, and for small ones. Both directions.
#include <cstdint>

#include "cuda/partition.hpp"
#include "require.hpp"

namespace {

using namespace bnext;
using namespace bnext::cuda;

constexpr int kUnits = 4;

Cut cut_of(Index outer, Index run, int columns, int parts, int threads) {
    Cut cut{};
    cut.positions = outer * run;
    cut.run = run;
    cut.channels = 1000;
    cut.slabs = cut.groups = 1;
    cut.columns = columns;
    cut.unit = cut.unit_channels = 4;
    cut.parts = parts;
    cut.threads = threads;
    cut.batch = kUnits;
    cut.straight = outer == 1;
    cut.complete();
    return cut;
}

Operand operand_of(const Cut& cut, Index outer, Index along) {
    Operand operand;
    operand.channel = 16;
    operand.outer = outer;
    operand.along = along;
    operand.complete(cut);
    return operand;
}

// One thread of one part: every unit of the batches at both ends, and of some between.
template <Runs kRuns>
void compare(const Cut& cut, int part, int thread, bool active) {
    const Operand one = operand_of(cut, cut.run * 48 + 16, 48);
    const Operand other = operand_of(cut, cut.run * 16, 16);
    const Operand* const of[2] = {&one, &other};
    const Index channel = 3;
    const Walk<kRuns> begin(cut, part, thread);
    const Index first = cut.part_begin(part) + thread / cut.columns;
    const Index end = cut.part_end(part);

    const auto look = [&](const Cursor<2, kRuns>& cursor, int b) {
        cursor.template units<kUnits>(cut, of, [&](int u, bool exists, const Index(&at)[2]) {
            const Index position = first + Index{b} * cut.batch_rows + Index{u} * cut.rows;
            REQUIRE(exists == (active && position < end));
            for (int i = 0; exists && i < 2; ++i) {
                REQUIRE(at[i] == channel * of[i]->channel + position / cut.run * of[i]->outer +
                                     position % cut.run * of[i]->along);
            }
        });
    };
    const int every = cut.batches > 1000 ? cut.batches / 100 : 1;
    const auto looks_at = [&](int b) { return b < 5 || cut.batches - b < 5 || b % every == 0; };
    Cursor<2, kRuns> up(cut, begin, of, channel, active);
    for (int b = 0; b < cut.batches; ++b) {
        if (looks_at(b)) look(up, b);
        up.next_batch(cut, of);
    }
    for (int b = 0; b < 4; ++b) up.next_batch(cut, of);  // what is asked for beyond the end
    Cursor<2, kRuns> down(cut, begin.end_of(cut), of, channel, active);
    for (int b = cut.batches; b-- > 0;) {
        down.previous_batch(cut, of);
        if (looks_at(b)) look(down, b);
    }
    const Index units = first < end ? (end - first + cut.rows - 1) / cut.rows : 0;
    REQUIRE(begin.units_of(cut) == units);
}

void compare_all(const Cut& cut) {
    const int parts[] = {0, cut.parts / 2, cut.parts - 1};
    const int threads[] = {0, cut.columns - 1, cut.threads / 2 + 1, cut.threads - 1};
    for (const int part : parts) {
        for (const int thread : threads) {
            for (const bool active : {true, false}) {
                compare<Runs::many>(cut, part, thread, active);
                compare<Runs::either>(cut, part, thread, active);
                if (cut.straight) compare<Runs::one>(cut, part, thread, active);
            }
        }
    }
}

}  // namespace

int main() {
    for (const Index outer : {1, 2, 3, 64}) {
        for (const Index run : {1, 2, 7, 49, 100, 3136}) {
            for (const int columns : {1, 2, 8, 32}) {
                for (const int threads : {64, 96, 256}) {
                    for (const int parts : {1, 2, 5}) {
                        if (outer * run >= parts) {
                            compare_all(cut_of(outer, run, columns, parts, threads));
                        }
                    }
                }
            }
        }
    }
    // Parts as long as they may be, and runs longer than what an int counts.
    for (const Index outer : {1, 2, 5}) {
        for (const Index run :
             {kLongestPart - 7, kFar - 1, kFar, kFar + 5, (Index{1} << 33) + 11}) {
            const auto parts = static_cast<int>((outer * run + kLongestPart - 1) / kLongestPart);
            for (const int extra : {0, 1}) compare_all(cut_of(outer, run, 1, parts + extra, 256));
        }
    }
    std::puts("every thread finds its units, in both directions");
}
