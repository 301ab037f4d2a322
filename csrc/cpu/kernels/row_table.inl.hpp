// The functions of rows of one instruction set, of all dtypes. Included by isa/*_rows.cpp, which
// define BNEXT_ISA; set.inl.hpp has the rules.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>
#include <utility>

#include "core/dtype.hpp"
#include "core/inline.hpp"
#include "core/moments.hpp"
#include "core/row_tiling.hpp"
#include "cpu/row_kernels.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu::BNEXT_ISA {
namespace {

// As in set.inl.hpp.
template <int I>
struct Number {
    BNEXT_FORCE_INLINE constexpr operator int() const { return I; }
};

#include "cpu/simd.inl.hpp"

#include "cpu/simd16.inl.hpp"

#include "cpu/units.inl.hpp"

#include "cpu/kernels/runs.inl.hpp"

#include "cpu/kernels/lane_sums.inl.hpp"

#include "cpu/kernels/rows.inl.hpp"

#include "cpu/kernels/activated_rows.inl.hpp"

#include "cpu/kernels/write_rows.inl.hpp"

void fence_of_rows() { fence(); }

}  // namespace

extern const RowTable row_table;
const RowTable row_table = {row_kernels_of<float>(), row_kernels_of<double>(),
                            row_kernels_of<float16>(), row_kernels_of<bfloat16>(), fence_of_rows};

}  // namespace bnext::cpu::BNEXT_ISA
