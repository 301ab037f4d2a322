// Kernels with a thread for each channel, for callers without arithmetic in double of their own,
// such as programs of JAX. They read rows of statistics and write a few numbers for each channel:
// little traffic beside the data of a call.
#pragma once

#include "cuda/forward.hpp"

namespace bnext::cuda {

// The channel of a thread; past the last one there are none.
BNEXT_DEVICE Index channel_of_thread() {
    return device::block() * device::threads() + device::thread();
}

// Rows of the parameters' type, at out[0]: the mean, m2, and the low part of the mean.
template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS show_statistics(BNEXT_CONSTANT Arguments a) {
    using P = typename K::P;
    const Index channel = channel_of_thread(), channels = a.cut.channels;
    if (channel >= channels) return;
    const HighLow mean = saved_mean(a, channel);
    P* const shown = static_cast<P*>(a.out[0].data) + channel;
    const P high = static_cast<P>(mean.high);
    shown[0] = high;
    shown[channels] = static_cast<P>(*statistic(a, Row::m2, channel));
    shown[2 * channels] = static_cast<P>(mean.high - static_cast<double>(high) + mean.low);
}

// Scale and shift of z from statistics, weight and bias, as a forward pass with an activation keeps
// them (activated.hpp).
template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS keep_z(BNEXT_CONSTANT Arguments a) {
    using F = typename Forward<K>::F;
    const Index channel = channel_of_thread();
    if (channel >= a.cut.channels) return;
    typename K::C coefficients[F::kRows];
    Forward<K>::set(a, channel, saved_mean(a, channel), *statistic(a, Row::rstd, channel),
                    coefficients);
    a.of_z[channel] = static_cast<double>(coefficients[F::kScale]);
    a.of_z[a.cut.channels + channel] = static_cast<double>(coefficients[F::kShift]);
}

}  // namespace bnext::cuda
