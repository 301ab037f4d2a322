// The functions of the double backward pass of one instruction set, of all dtypes. Included by
// isa/*_double_backward.cpp, which define BNEXT_ISA; set.inl.hpp has the rules.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>
#include <utility>

#include "core/activation_math.hpp"
#include "core/dtype.hpp"
#include "core/formulas.hpp"
#include "core/inline.hpp"
#include "core/second_derivatives.hpp"
#include "core/tiling.hpp"
#include "cpu/columns.hpp"
#include "cpu/double_backward_kernels.hpp"
#include "cpu/flag_bits.hpp"
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

#include "cpu/kernels/columns.inl.hpp"

#include "cpu/kernels/flags.inl.hpp"

#include "cpu/kernels/derive_twice.inl.hpp"

#include "cpu/kernels/double_backward_reduce.inl.hpp"

#include "cpu/kernels/write_double_backward.inl.hpp"

}  // namespace

extern const DoubleBackwardTable double_backward_table;
const DoubleBackwardTable double_backward_table = {
    double_backward_kernels_of<float>(), double_backward_kernels_of<double>(),
    double_backward_kernels_of<float16>(), double_backward_kernels_of<bfloat16>()};

}  // namespace bnext::cpu::BNEXT_ISA
