// Evaluation of a layer of PyTorch's, from the dicts that it keeps its tensors in. Between the
// convolutions of a network every line of Python is cold: to look these up there takes as long as
// a small call of the kernels.
#include "bindings/entries.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

struct NamesOfLayers {
    PyObject* training = PyUnicode_InternFromString("training");
    PyObject* special = PyUnicode_InternFromString("_special");
    PyObject* parameters = PyUnicode_InternFromString("_parameters");
    PyObject* buffers = PyUnicode_InternFromString("_buffers");
    PyObject* weight = PyUnicode_InternFromString("weight");
    PyObject* bias = PyUnicode_InternFromString("bias");
    PyObject* running_mean = PyUnicode_InternFromString("running_mean");
    PyObject* running_var = PyUnicode_InternFromString("running_var");
    PyObject* momentum = PyUnicode_InternFromString("momentum");
    PyObject* eps = PyUnicode_InternFromString("eps");
};
const NamesOfLayers& names_of_layers() {
    static const NamesOfLayers all;
    return all;
}

// What the module's `evaluate` takes from a layer; null where it is another's to say.
struct Layer {
    PyObject *running_mean = nullptr, *running_var = nullptr, *weight = nullptr, *bias = nullptr,
             *eps = nullptr;

    explicit Layer(PyObject* entries) {
        const NamesOfLayers& name = names_of_layers();
        if (entry(entries, name.training) != Py_False || entry(entries, name.special) != nullptr) {
            return;
        }
        PyObject* const parameters = entry(entries, name.parameters);
        PyObject* const buffers = entry(entries, name.buffers);
        if (parameters == nullptr || buffers == nullptr || PyDict_Check(parameters) == 0 ||
            PyDict_Check(buffers) == 0) {
            return;
        }
        PyObject* const momentum = entry(entries, name.momentum);
        const bool is_number =
            momentum != nullptr && (PyFloat_CheckExact(momentum) || Py_IsNone(momentum) != 0);
        PyObject* const number = entry(entries, name.eps);
        if (!is_number || number == nullptr || !PyFloat_CheckExact(number) ||
            !(PyFloat_AS_DOUBLE(number) > 0)) {
            return;
        }
        weight = entry(parameters, name.weight);
        bias = entry(parameters, name.bias);
        running_mean = entry(buffers, name.running_mean);
        running_var = entry(buffers, name.running_var);
        eps = number;
    }
    [[nodiscard]] bool is_known() const {
        const auto is_there = [](PyObject* tensor) {
            return tensor != nullptr && Py_IsNone(tensor) == 0;
        };
        return eps != nullptr && weight != nullptr && bias != nullptr && is_there(running_mean) &&
               is_there(running_var);
    }
};

// The function of the module, for the life of the process.
PyObject* the_evaluate = nullptr;
PyObject* the_axis = nullptr;

constexpr Signature kEvaluateLayer{
    "evaluate_layer", "layer, x, epilogue, over",
    "`evaluate` of x with the statistics, parameters and eps of a layer of PyTorch's in "
    "evaluation;\n"
    "None where the layer does something else, or kernels do not take these tensors. Nothing has\n"
    "happened then. What observes operations is not asked."};

py::object evaluate_layer(py::handle, const Arguments<4>& arguments) {
    const auto [layer, x, epilogue, over] = arguments;
    const py::object entries = attributes_of(layer.ptr());
    if (!entries) return py::none();
    const Layer of(entries.ptr());
    if (!of.is_known()) return py::none();
    PyObject* const given[] = {x.ptr(),        of.running_mean, of.running_var, of.weight,
                               of.bias,        of.eps,          the_axis,       Py_True,
                               epilogue.ptr(), over.ptr()};
    auto y = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(the_evaluate, given, std::size(given), nullptr));
    if (y) return y;
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0 &&
        PyErr_ExceptionMatches(PyExc_ValueError) == 0) {
        throw py::error_already_set();
    }
    PyErr_Clear();
    return py::none();
}

}  // namespace

void register_layer_call(py::module_& m) {
    the_evaluate = py::object(m.attr("evaluate")).release().ptr();
    the_axis = py::int_(1).release().ptr();
    Fast<4, kEvaluateLayer, evaluate_layer>::add_to(m);
}

}  // namespace bnext::bindings
