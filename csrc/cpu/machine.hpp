// Threads, cache sizes and kind of processor of this machine, for choosing a schedule.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cpu {

struct Machine {
    int threads = 1;
    Index l2_bytes = 0;  // of one core
    Index l3_bytes = 0;  // shared by several
    bool zen = false;    // an AMD Zen, whose memory system wants other choices (schedule.cpp)
};

Machine this_machine();

}  // namespace bnext::cpu
