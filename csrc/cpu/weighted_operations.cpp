// By itself, so that it can be made small (CMakeLists.txt).
#include "cpu/weighted_operations.hpp"

#include "cpu/weighted_activated_phases.hpp"
#include "cpu/weighted_phases.hpp"

namespace bnext::cpu {

#define BNEXT_INSTANTIATE(T)                                                              \
    template decltype(weighted_collect_stats<T>) weighted_collect_stats<T>;               \
    template decltype(weighted_apply_norm<T>) weighted_apply_norm<T>;                     \
    template decltype(weighted_forward<T>) weighted_forward<T>;                           \
    template decltype(weighted_backward<T>) weighted_backward<T>;                         \
    template decltype(weighted_activated_forward<T>) weighted_activated_forward<T>;       \
    template decltype(weighted_activated_apply_norm<T>) weighted_activated_apply_norm<T>; \
    template decltype(weighted_activated_backward<T>) weighted_activated_backward<T>;
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
BNEXT_INSTANTIATE(float16)
BNEXT_INSTANTIATE(bfloat16)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
