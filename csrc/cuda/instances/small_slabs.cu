#include "cuda/small_slabs.hpp"

#include "cuda/cell_kernel.hpp"

namespace bnext::cuda {

template <class T>
Kernel small_kernel(Pass pass) {
    return pass == Pass::forward ? &small_forward<T> : &small_backward<T>;
}

template Kernel small_kernel<float>(Pass);
template Kernel small_kernel<double>(Pass);
template Kernel small_kernel<float16>(Pass);
template Kernel small_kernel<bfloat16>(Pass);

}  // namespace bnext::cuda
