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
    const cpu::PoolArray<double> values(saved.all().size(), 0.0);
    const StatisticsOut about_zero(values.data(), saved.channels());
    std::ranges::copy(saved.row(Row::var), about_zero.var());
    cpu::apply_norm<T>(problem, dy, dx, about_zero, saved.eps, {weight, nullptr});
}

}  // namespace bnext::bindings
