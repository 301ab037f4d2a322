// Cache sizes and threads of this machine, for choosing a schedule.
#pragma once

#include "core/plan.hpp"

namespace bnext::cpu {

Machine this_machine();

}  // namespace bnext::cpu
