#include "cuda/row_instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::row_kernel<bnext::float16>(Pass, bool, int);
template bnext::cuda::Kernel bnext::cuda::row_columns_kernel<bnext::float16>();
