// baseline: built with the compiler's own flags: SSE2 on x86-64, NEON on 64-bit Arm. Defines
// nothing outside bnext::cpu::baseline.
#define BNEXT_ISA baseline
#include "cpu/kernels/weighted_table.inl.hpp"
