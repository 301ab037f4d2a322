// The functions of one instruction set for positions with weights (cpu/weights.hpp), of all dtypes.
// Included by isa/*_weighted.cpp, which define BNEXT_ISA; set.inl.hpp has the rules. The loops of
// activations stand in the instruction set's main table.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>
#include <utility>

#include "core/dtype.hpp"
#include "core/formulas.hpp"
#include "core/inline.hpp"
#include "core/moments.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/columns.hpp"
#include "cpu/flag_bits.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/view.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu::BNEXT_ISA {

extern const KernelTable table;

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

#include "cpu/kernels/flag_places.inl.hpp"

#include "cpu/kernels/write_planar.inl.hpp"

#include "cpu/kernels/write_interleaved.inl.hpp"

#include "cpu/kernels/activated_walks.inl.hpp"

#include "cpu/kernels/activated_runs.inl.hpp"

#include "cpu/kernels/sums.inl.hpp"

#include "cpu/kernels/collect_stats.inl.hpp"

#include "cpu/kernels/activated_sums.inl.hpp"

#include "cpu/kernels/activated_reduce.inl.hpp"

#include "cpu/kernels/weighted_sums.inl.hpp"

#include "cpu/kernels/write_weighted.inl.hpp"

#include "cpu/kernels/weighted_activated.inl.hpp"

#include "cpu/kernels/weighted_activated_sums.inl.hpp"

template <class T, Layout L, Pass P, Epilogue E>
constexpr WeightedKernels<T> weighted_kernels_of() {
    using F = Formula<P, E, Pack<Compute<T>>>;
    constexpr bool planar = L == Layout::planar;
    WeightedKernels<T> kernels{};
    if constexpr (P == Pass::forward) {
        kernels.reduce = planar ? planar_weighted_stats<T> : interleaved_weighted_stats<T>;
    } else if constexpr (E == Epilogue::activated) {
        kernels.reduce =
            planar ? planar_counted_activated_reduce<T> : interleaved_counted_activated_reduce<T>;
    } else {
        kernels.reduce = planar ? planar_weighted_reduce<T> : interleaved_weighted_reduce<T>;
    }
    if constexpr (E == Epilogue::activated) {
        kernels.write = planar ? write_counted_activated_planar<F, T>
                               : write_counted_activated_interleaved<F, T>;
    } else {
        kernels.write = write_weighted<F, T, L>;
    }
    return kernels;
}

template <class T>
constexpr WeightedKernelSet<T> weighted_kernels_of() {
    WeightedKernelSet<T> set{};
    for_each_formula([&]<Pass P, Epilogue E>() {
        set.of[0][static_cast<int>(P)][static_cast<int>(E)] =
            weighted_kernels_of<T, Layout::planar, P, E>();
        set.of[1][static_cast<int>(P)][static_cast<int>(E)] =
            weighted_kernels_of<T, Layout::interleaved, P, E>();
    });
    return set;
}

}  // namespace

extern const WeightedTable weighted_table;
const WeightedTable weighted_table = {weighted_kernels_of<float>(), weighted_kernels_of<double>(),
                                      weighted_kernels_of<float16>(),
                                      weighted_kernels_of<bfloat16>()};

}  // namespace bnext::cpu::BNEXT_ISA
