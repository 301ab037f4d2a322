#include "bindings/arrays.hpp"
#include "bindings/pooled.hpp"
#include "bindings/register.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Batch-normalization kernels on the CPU.";
    bnext::bindings::prepare_arrays();
    bnext::bindings::prepare_pool();
    bnext::bindings::register_dlpack(m);
    bnext::bindings::register_saved(m);
    bnext::bindings::register_operations(m);
    bnext::bindings::register_phases(m);
    bnext::bindings::register_runtime(m);
    bnext::bindings::register_sync(m);
    bnext::bindings::register_tensors(m);
}
