#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::activated_kernel<bnext::bfloat16>(Pass, Layout, int);
