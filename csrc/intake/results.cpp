#include "intake/results.hpp"

namespace bnext::intake {

Fresh Results::make(DType dtype, std::span<const Index> shape, AxisStrides strides) const {
    if (empty_like_ != nullptr) {
        py::object tensor = call(*empty_like_, x_);
        TensorView view;
        if (library_->reader->take_new_data(tensor, view) && view.dtype == dtype &&
            std::ranges::equal(view.shape(), shape) &&
            std::ranges::equal(view.strides(), strides)) {
            return {std::move(tensor), nullptr, view.data()};
        }
    }
    if (by_table(shape.size())) {
        OwnedResult own = new_result(dtype, shape, strides);
        void* data = own->managed.tensor.data;
        return {{}, std::move(own), data};
    }
    std::array<Index, kMaxAxes> steps;
    std::ranges::transform(strides, steps.begin(),
                           [&](Index stride) { return stride * size_of(dtype); });
    py::object array = new_array(dtype, shape, steps.data());
    void* data = data_of(array);
    return {std::move(array), nullptr, data};
}

py::object Results::give(Fresh fresh) const {
    if (fresh.own) {
        void* object = nullptr;
        if (library_->reader->table().import_owned(&fresh.own.release()->managed, &object) != 0) {
            throw py::error_already_set();
        }
        return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
    }
    if (library_ == nullptr || empty_like_ != nullptr) return std::move(fresh.array);
    return library_->object.attr("wrap")(fresh.array);
}

}  // namespace bnext::intake
