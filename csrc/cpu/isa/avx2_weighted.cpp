// avx2: built with -mavx2 -mfma -mf16c. Defines nothing outside bnext::cpu::avx2.
#define BNEXT_ISA avx2
#include "cpu/kernels/weighted_table.inl.hpp"
