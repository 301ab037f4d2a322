#include "cuda/twice_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::twice_kernel<bnext::float16>(TwiceStep, int);
