#include "cuda/instances.inl.hpp"
#include "cuda/row_instances.inl.hpp"
#include "cuda/twice_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::fused_forward<float>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::fused_backward<float>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::row_kernel<float>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<float>();
template bnext::cuda::Kernel bnext::cuda::row_merge_kernel<float>();
template bnext::cuda::Kernel bnext::cuda::twice_kernel<float>(TwiceStep, int);
template bnext::cuda::Kernel bnext::cuda::finish_twice_kernel<float>();
