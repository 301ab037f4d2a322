#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::phase_kernel<float>(Phase, Layout, int);
template bnext::cuda::Kernel bnext::cuda::activated_kernel<float>(Pass, Layout, int);
