#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::phase_kernel<bnext::float16>(Phase, Layout, int);
