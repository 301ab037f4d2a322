#include "cuda/row_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::row_kernel<double>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<double>();
template bnext::cuda::Kernel bnext::cuda::row_merge_kernel<double>();
