#include "cpu/machine.hpp"

#include <unistd.h>

#include <fstream>
#include <string>

#include "cpu/team_size.hpp"

namespace bnext::cpu {
namespace {

// Sizes where the system does not tell (containers, macOS, many Arm boards).
constexpr Index kUsualL2 = Index{1} << 20;
constexpr Index kUsualL3 = Index{16} << 20;

// Linux describes each cache of the first processor in a folder. (sysconf adds up the L3 caches of
// all sockets and complexes of an AMD processor, under some hypervisors all caches of the host.)
Index cache_bytes_of_linux(int level) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index";
    for (int index = 0; index < 8; ++index) {
        const std::string place = folder + std::to_string(index);
        int found = 0;
        std::string type;
        if (!(std::ifstream(place + "/level") >> found)) return 0;
        std::ifstream(place + "/type") >> type;
        if (found != level || type == "Instruction") continue;
        Index size = 0;
        char unit = ' ';
        std::ifstream(place + "/size") >> size >> unit;
        return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
    }
    return 0;
}

Index cache_bytes(int level) {
    if (const Index bytes = cache_bytes_of_linux(level); bytes > 0) return bytes;
    [[maybe_unused]] long bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
    bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    if (bytes > 0) return bytes;
    return level == 2 ? kUsualL2 : kUsualL3;
}

bool is_zen() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

}  // namespace

Machine this_machine() {
    static const Index l2 = cache_bytes(2);
    static const Index l3 = cache_bytes(3);
    static const bool zen = is_zen();
    return {num_threads(), l2, l3, zen};
}

}  // namespace bnext::cpu
