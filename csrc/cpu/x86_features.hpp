// Which of the instruction sets an x86-64 processor has, with an operating system that saves their
// registers.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace bnext::cpu {

// __builtin_cpu_supports also asks whether the operating system saves the wide registers. Clang
// knows "f16c" from version 17 on, so cpuid answers that one for every compiler; the conversions
// work on the registers of AVX2.
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
