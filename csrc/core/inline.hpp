// Functions that the per-instruction-set kernels share with the rest.
//
// An ordinary inline function that is used in an object built for AVX-512 may be emitted there as a
// weak symbol, and the linker may then pick that copy for everybody: an illegal instruction on
// older machines. So whatever a kernel uses from a shared header is forced inline.
#pragma once

#define BNEXT_FORCE_INLINE [[gnu::always_inline]] inline
// What is called seldom and from several places, large as it is: it takes most of the time to
// compile.
#define BNEXT_NO_INLINE [[gnu::noinline]]
// Between a lambda's parameters and its body. Where lambdas are inlined late, GCC keeps the packs
// that they capture in memory.
#define BNEXT_INLINE_LAMBDA __attribute__((always_inline))
