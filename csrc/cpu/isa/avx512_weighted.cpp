// avx512: built with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c. Defines nothing
// outside bnext::cpu::avx512.
#define BNEXT_ISA avx512
#include "cpu/kernels/weighted_table.inl.hpp"
