#include "cuda/twice_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::twice_kernel<double>(TwiceStep, int);
template bnext::cuda::Kernel bnext::cuda::finish_twice_kernel<double>();
