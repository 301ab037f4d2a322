#include "bindings/register.hpp"
#include "intake/numpy.hpp"
#include "intake/pooled.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Batch-normalization kernels on the CPU.";
    bnext::intake::prepare_numpy();
    bnext::intake::prepare_pool();
    bnext::bindings::register_errors();
    bnext::bindings::register_dlpack(m);
    bnext::bindings::register_saved(m);
    bnext::bindings::register_calls(m);
    bnext::bindings::register_cell_calls(m);
    bnext::bindings::register_double_backward(m);
    bnext::bindings::register_phases(m);
    bnext::bindings::register_questions(m);
    bnext::bindings::register_rows(m);
    bnext::bindings::register_checks(m);
    bnext::bindings::register_device_saved(m);
    bnext::bindings::register_device_row_saved(m);
    bnext::bindings::register_engines(m);
    bnext::bindings::register_runtime(m);
    bnext::bindings::register_sync(m);
    bnext::bindings::register_unchanged(m);
    bnext::bindings::register_foreign(m);
}
