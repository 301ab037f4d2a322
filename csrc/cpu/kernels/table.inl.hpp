// The table of one instruction set, of all dtypes. Included by isa/*.cpp.

#include "cpu/kernels/set.inl.hpp"

namespace bnext::cpu::BNEXT_ISA {

extern const KernelTable table;
const KernelTable table = {kernels_of<float>(),
                           kernels_of<double>(),
                           kernels_of<float16>(),
                           kernels_of<bfloat16>(),
                           BNEXT_TEXT(BNEXT_ISA),
                           kNativeBytes,
                           mark_used,
                           finish_statistics,
                           any_beyond,
                           kActivationLoops<float>.of,
                           kActivationLoops<double>.of};

}  // namespace bnext::cpu::BNEXT_ISA
