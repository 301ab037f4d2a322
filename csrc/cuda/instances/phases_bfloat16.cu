#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::phase_kernel<bnext::bfloat16>(Phase, Layout, int);
template bnext::cuda::Kernel bnext::cuda::activated_kernel<bnext::bfloat16>(Pass, Layout, int);
