// Moments of one channel, and the formula that merges them. Always in double.
//
// merge:  with delta = mean_b - mean_a and n = n_a + n_b,
//           mean = mean_a + delta * n_b / n
//           m2   = m2_a + m2_b + delta^2 * n_a * n_b / n
//         (Chan, Golub, LeVeque 1979, eq. 2.1). Never E[x^2] - mean^2, which cancels.
// Order:  the caller merges slots by their index, so the result does not depend on who filled them.
#pragma once

#include "core/inline.hpp"

namespace bnext {

struct Moments {
    double count = 0;
    double mean = 0;
    double m2 = 0;
};

// What `more` values weigh behind `done` > 0, for all channels alike.
struct MergeShares {
    double of_more;    // n_b / n
    double of_square;  // n_a n_b / n

    BNEXT_FORCE_INLINE MergeShares(double done, double more)
        : of_more(more / (done + more)), of_square(done * of_more) {}
};

BNEXT_FORCE_INLINE void merge(double& mean, double& m2, double more_mean, double more_m2,
                              const MergeShares& shares) {
    const double delta = more_mean - mean;
    mean = mean + delta * shares.of_more;
    m2 = m2 + (more_m2 + delta * delta * shares.of_square);
}

BNEXT_FORCE_INLINE void merge(Moments& a, const Moments& b) {
    if (a.count == 0) {
        a = b;
        return;
    }
    merge(a.mean, a.m2, b.mean, b.m2, MergeShares(a.count, b.count));
    a.count += b.count;
}

}  // namespace bnext
