// DLPack as Python calls it.
#include <pybind11/stl.h>

#include "bindings/register.hpp"
#include "intake/dlpack.hpp"
#include "intake/library.hpp"

namespace bnext::bindings {

void register_dlpack(pybind11::module_& m) {
    namespace py = pybind11;
    namespace dlpack = intake::dlpack;
    m.def("from_dlpack", &dlpack::from_dlpack, py::arg("capsule"), py::arg("name") = "x",
          "A NumPy array on the memory that the capsule describes, which it uses up.");
    m.def("describe_dlpack", &dlpack::describe_dlpack, py::arg("capsule"), py::arg("name") = "x",
          "address, shape, strides in elements, dtype, device type, device, read-only, and what\n"
          "keeps the memory; of any device. Uses the capsule up.");
    m.def("device_name", &dlpack::device_name, py::arg("device_type"), py::arg("device_id"),
          "What errors call a device of DLPack's.");
    m.def("find_libraries_by", &intake::find_libraries_by, py::arg("function"),
          "Sets the function that finds the library of an array of a type not seen before.");
    py::class_<dlpack::Exported>(m, "Exported",
                                 "A NumPy array as a DLPack producer, also of bfloat16.")
        .def(py::init<py::handle>(), py::arg("array"))
        .def("__dlpack__", &dlpack::Exported::capsule, py::kw_only(),
             py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
             py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
        .def("__dlpack_device__", [](const dlpack::Exported&) { return py::make_tuple(1, 0); });
}

}  // namespace bnext::bindings
