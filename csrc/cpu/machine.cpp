#include "cpu/machine.hpp"

#include <unistd.h>

#include "cpu/parallel.hpp"

namespace bnext::cpu {
namespace {

// What to assume where the system does not say (containers, macOS, many Arm boards).
constexpr Index kUsualL2 = Index{1} << 20;
constexpr Index kUsualL3 = Index{16} << 20;

Index cache_bytes([[maybe_unused]] int level) {
    long bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
    bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    if (bytes > 0) return bytes;
    return level == 2 ? kUsualL2 : kUsualL3;
}

}  // namespace

Machine this_machine() {
    static const Index l2 = cache_bytes(2);
    static const Index l3 = cache_bytes(3);
    return {num_threads(), l2, l3};
}

}  // namespace bnext::cpu
