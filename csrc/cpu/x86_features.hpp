// The instruction sets of an x86-64 processor whose registers the operating system saves.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace bnext::cpu {

// __builtin_cpu_supports also tells whether the operating system saves the wide registers. Clang
// knows "f16c" only from version 17 on, so cpuid answers for it with every compiler; its
// conversions use the registers of AVX2.
inline bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

inline bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace bnext::cpu
#endif
