// The kernels of one instruction set, as templates: kernels_of<T>() has a dtype's. A file
// that includes this defines BNEXT_ISA and is compiled with that set's flags. Everything lands in
// bnext::cpu::BNEXT_ISA: no function of the standard library is used, and functions of other
// headers are forced inline (core/inline.hpp).

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
#include "cpu/dispatch.hpp"
#include "cpu/flag_bits.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/view.hpp"

#define BNEXT_TEXT_(x) #x
#define BNEXT_TEXT(x) BNEXT_TEXT_(x)

namespace bnext::cpu::BNEXT_ISA {
namespace {

// A compile-time number. (The conversion of std::integral_constant would be a weak symbol.)
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

#include "cpu/kernels/write_quickly.inl.hpp"

#include "cpu/kernels/write_activated.inl.hpp"

#include "cpu/kernels/coefficients.inl.hpp"

#include "cpu/kernels/sums.inl.hpp"

#include "cpu/kernels/short_planes.inl.hpp"

#include "cpu/kernels/collect_stats.inl.hpp"

#include "cpu/kernels/backward_reduce.inl.hpp"

#include "cpu/kernels/activated_sums.inl.hpp"

#include "cpu/kernels/activated_reduce.inl.hpp"

// The first phase of a pass.
template <class T, Layout L, Pass P, Epilogue E>
constexpr auto reduction_of() {
    constexpr bool planar = L == Layout::planar;
    if constexpr (P == Pass::forward) {
        return planar ? planar_collect_stats<T> : interleaved_collect_stats<T>;
    } else if constexpr (E == Epilogue::activated) {
        return planar ? planar_activated_reduce<T> : interleaved_activated_reduce<T>;
    } else {
        return planar ? planar_backward_reduce<T> : interleaved_backward_reduce<T>;
    }
}

// The second.
template <class T, Layout L, Pass P, Epilogue E>
constexpr auto writing_of() {
    using F = Formula<P, E, Pack<Compute<T>>>;
    constexpr bool planar = L == Layout::planar;
    if constexpr (E == Epilogue::activated) {
        return planar ? write_activated_planar<F, T> : write_activated_interleaved<F, T>;
    } else {
        return planar ? write_planar<F, T> : write_interleaved<F, T>;
    }
}

template <class T>
constexpr KernelSet<T> kernels_of() {
    KernelSet<T> set{};
    const auto add = [&]<Layout L, Pass P, Epilogue E>() {
        set.of[static_cast<int>(L)][static_cast<int>(P)][static_cast<int>(E)] = {
            reduction_of<T, L, P, E>(), writing_of<T, L, P, E>(),
            P == Pass::forward ? norm_coefficients<T> : backward_coefficients<T>};
    };
    for_each_formula([&]<Pass P, Epilogue E>() {
        add.template operator()<Layout::planar, P, E>();
        add.template operator()<Layout::interleaved, P, E>();
    });
    return set;
}

void mark_used() { note_used(BNEXT_TEXT(BNEXT_ISA)); }

}  // namespace

}  // namespace bnext::cpu::BNEXT_ISA
