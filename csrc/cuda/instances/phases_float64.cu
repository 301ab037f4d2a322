#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::phase_kernel<double>(Phase, Layout, int);
template bnext::cuda::Kernel bnext::cuda::activated_kernel<double>(Pass, Layout, int);
