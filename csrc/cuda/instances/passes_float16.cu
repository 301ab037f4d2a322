#include "cuda/instances.inl.hpp"
#include "cuda/row_instances.inl.hpp"
#include "cuda/twice_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::fused_forward<bnext::float16>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::fused_backward<bnext::float16>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::row_kernel<bnext::float16>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<bnext::float16>();
template bnext::cuda::Kernel bnext::cuda::twice_kernel<bnext::float16>(TwiceStep, int);
