#include "cuda/instances.inl.hpp"

template bnext::cuda::Kernel bnext::cuda::fused_backward<float>(Layout, int);
