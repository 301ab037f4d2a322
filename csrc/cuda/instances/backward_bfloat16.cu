#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::fused_backward<bnext::bfloat16>(Layout, int);
