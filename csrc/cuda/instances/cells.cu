#include "cuda/cell_kernel.hpp"
#include "cuda/cell_kernels.hpp"

namespace bnext::cuda {

template <class P>
Kernel cell_kernel(CellStep step) {
    switch (step) {
        case CellStep::merge_slabs: return &merge_slabs<P>;
        case CellStep::spread_slabs: return &spread_slabs<P>;
        case CellStep::share_sums: return &share_sums<P>;
        case CellStep::sum_parameters: return &sum_parameters<P>;
    }
    return nullptr;
}

template Kernel cell_kernel<float>(CellStep);
template Kernel cell_kernel<double>(CellStep);

}  // namespace bnext::cuda
