// Moments of one channel, and the formulas that merge and finish them. Always in double.
//
// merge:  with delta = mean_b - mean_a and n = n_a + n_b,
//           mean = mean_a + delta * n_b / n
//           m2   = m2_a + m2_b + delta^2 * n_a * n_b / n
//         (Chan, Golub, LeVeque 1979, eq. 2.1). Never E[x^2] - mean^2, which cancels.
// Order:  the caller merges slots by their index, so the result does not depend on who filled them.
#pragma once

#include <cmath>

#include "core/inline.hpp"

namespace bnext {

struct Moments {
    double count = 0;
    double mean = 0;
    double m2 = 0;
};

BNEXT_FORCE_INLINE void merge(Moments& a, const Moments& b) {
    if (a.count == 0) {
        a = b;
        return;
    }
    const double count = a.count + b.count;
    const double share = b.count / count;
    const double delta = b.mean - a.mean;
    a.mean = a.mean + delta * share;
    a.m2 = a.m2 + (b.m2 + delta * delta * (a.count * share));
    a.count = count;
}

// 1/sqrt(var + eps); 0 where both are 0, as PyTorch has it.
inline double rstd_of(double var, double eps) {
    return (var == 0.0 && eps == 0.0) ? 0.0 : 1.0 / std::sqrt(var + eps);
}

}  // namespace bnext
