// Machine: threads, cache sizes and kind of processor, for the choice of a schedule.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cpu {

struct Machine {
    int threads = 1;
    Index l2_bytes = 0;  // of one core
    Index l3_bytes = 0;  // shared by several
    bool zen = false;    // an AMD Zen: its memory system needs other choices (schedule.cpp)
};

Machine this_machine();

}  // namespace bnext::cpu
