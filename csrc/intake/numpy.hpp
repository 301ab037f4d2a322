// NumPy's arrays, and what NumPy makes arrays of. All of this needs the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <span>

#include "core/array_ref.hpp"
#include "core/float_mode.hpp"

namespace bnext::intake {

namespace py = pybind11;

// Looks up what is used of NumPy; called once, at import. Threads that came here together later
// would wait for each other without the GIL, and one that asks for it back while the interpreter
// ends does not survive that (bindings/gil.hpp).
void prepare_numpy();

bool is_data_dtype(const py::dtype& dtype);
const py::object& descr_of(DType dtype);  // NumPy's; of bfloat16, once an array of it was taken

bool is_plain_array(py::handle object);  // of ndarray, and of no subclass
bool is_array(py::handle object);        // also of a subclass
// The extents of an array of ndarray whose dtype is that object; of anything else none.
std::optional<std::span<const py::ssize_t>> shape_if_plain(py::handle object, py::handle dtype);

// TypeError for an array on another device.
void check_is_on_the_cpu(py::handle object, const char* name);

// numpy.asarray without a change of precision, or an error that names the argument.
py::object as_array(py::handle object, const char* name);

// `array`, of ndarray or a subclass, which must outlive the result.
void refer(py::handle array, Extents& extents, ArrayRef& result);
// Something that is no array, for check() to refuse.
void refer_to_none(py::handle object, ArrayRef& result);
// Whatever came as a layer's count of batches.
void refer_to_counter(py::handle object, Extents& extents, ArrayRef& result);

// A new array, not initialised; its memory is the pool's where that is worth it. Without strides
// (in bytes), in C order.
py::object new_array(DType dtype, std::span<const Index> shape, const Index* byte_strides);
void* data_of(const py::object& array);

// Whether two arrays share an element, wherever they are: nothing is read. What is slow to find out
// counts as shared.
bool share_memory(const ArrayRef& a, const ArrayRef& b);

// Copies values between arrays of one dtype and shape.
void copy_values(const ArrayRef& to, const ArrayRef& from);

// The values, each times its factor if there are any, rounded once.
template <class T>
void round_each(std::span<const double> values, const double* factor, T* out) {
    const FloatMode mode;
    for (std::size_t c = 0; c < values.size(); ++c) {
        out[c] = static_cast<T>(factor != nullptr ? values[c] * factor[c] : values[c]);
    }
}

}  // namespace bnext::intake
