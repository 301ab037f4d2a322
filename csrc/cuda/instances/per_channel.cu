#include "cuda/per_channel.hpp"

#include "cuda/channel_kernel.hpp"

namespace bnext::cuda {

template <class P>
Kernel channel_kernel(PerChannel what) {
    using K = Kind<P, Layout::planar, 1, 1>;
    return what == PerChannel::show_statistics ? &show_statistics<K> : &keep_z<K>;
}

template Kernel channel_kernel<float>(PerChannel);
template Kernel channel_kernel<double>(PerChannel);

}  // namespace bnext::cuda
