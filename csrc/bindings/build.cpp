#include "bindings/build.hpp"

namespace bnext::bindings {

const char* version() { return BNEXT_VERSION; }

const char* openmp_remedy() { return BNEXT_OPENMP_REMEDY; }

#ifdef BNEXT_XLA
bool has_foreign_handlers() { return true; }

std::vector<foreign::Target> foreign_handlers() {
    std::vector<foreign::Target> all;
    for (const auto& targets :
         {foreign::batch_targets(), foreign::row_targets(), foreign::cell_targets()}) {
        all.insert(all.end(), targets.begin(), targets.end());
    }
    return all;
}
#else
bool has_foreign_handlers() { return false; }

std::vector<foreign::Target> foreign_handlers() { return {}; }
#endif

}  // namespace bnext::bindings
