#include "cuda/row_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::row_kernel<float>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<float>();
template bnext::cuda::Kernel bnext::cuda::row_merge_kernel<float>();
