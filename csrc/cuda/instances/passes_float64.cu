#include "cuda/instances.inl.hpp"
#include "cuda/row_instances.inl.hpp"
#include "cuda/twice_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::fused_forward<double>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::fused_backward<double>(Layout, int);
template bnext::cuda::Kernel bnext::cuda::row_kernel<double>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<double>();
template bnext::cuda::Kernel bnext::cuda::row_merge_kernel<double>();
template bnext::cuda::Kernel bnext::cuda::twice_kernel<double>(TwiceStep, int);
template bnext::cuda::Kernel bnext::cuda::finish_twice_kernel<double>();
