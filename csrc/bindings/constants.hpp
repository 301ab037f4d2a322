// Backward where the statistics are constants: given ones, not the batch's.
#pragma once

#include <algorithm>

#include "bindings/saved.hpp"
#include "cpu/operations.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {

// dx = dy * weight * rstd where the statistics are constants: apply_norm of dy.
template <class T>
void scale_gradient(const Problem& problem, const cpu::View<const T>& dy, const cpu::View<T>& dx,
                    const Saved& saved, const Param<T>* weight) {
    const cpu::PoolArray<double> zero(saved.mean().size(), 0.0);
    cpu::PoolArray<double> var(zero.size()), rstd(zero.size());
    std::ranges::copy(saved.var(), var.begin());
    cpu::apply_norm<T>(problem, dy, dx, zero.data(), var.data(), saved.eps, rstd.data(),
                       {weight, nullptr});
}

}  // namespace bnext::bindings
