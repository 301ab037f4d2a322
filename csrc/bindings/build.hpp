// What a build says of itself. build.cpp alone depends on it: all other objects of the module are
// the same in every build for an interpreter, and a cache of objects serves them all.
#pragma once

#include <vector>

#include "xla/handlers.hpp"

namespace bnext::bindings {

const char* version();        // of the package
const char* openmp_remedy();  // what to do about a build without OpenMP

bool has_foreign_handlers();
std::vector<foreign::Target> foreign_handlers();  // for XLA; none in a build without them

}  // namespace bnext::bindings
