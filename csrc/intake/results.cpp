#include "intake/results.hpp"

namespace bnext::intake {
namespace {

py::tuple tuple_of(std::span<const Index> values) {
    py::tuple result(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) result[i] = values[i];
    return result;
}

// Not initialised, in memory of the library's allocator.
Fresh made_by(const Library& library, DType dtype, std::span<const Index> shape,
              AxisStrides strides) {
    py::object tensor = library.empty_strided(tuple_of(shape), tuple_of(strides),
                                              py::arg("dtype") = library.torch.attr(name_of(dtype)),
                                              py::arg("device") = "cpu");
    TensorView view;
    if (!library.reader->take_new(tensor, view)) return {};  // no memory, say: there are no values
    return {std::move(tensor), nullptr, view.data(), true};
}

}  // namespace

Fresh Results::make(DType dtype, std::span<const Index> shape, AxisStrides strides) const {
    if (like_ && library_ != nullptr && library_->reader) {
        py::object tensor = call(library_->empty_like, like_);
        TensorView view;
        if (library_->reader->take_new(tensor, view) &&
            dlpack::supported(view.tensor.dtype) == dtype &&
            std::ranges::equal(view.shape(), shape) &&
            std::ranges::equal(view.strides(), strides)) {
            return {std::move(tensor), nullptr, view.data(), true};
        }
    }
    if (library_ != nullptr && library_->memory_is_profiled != nullptr &&
        library_->memory_is_profiled()) {
        if (Fresh fresh = made_by(*library_, dtype, shape, strides); fresh.is_library) return fresh;
    }
    if (library_ != nullptr && library_->reader && shape.size() <= kMaxRank) {
        OwnedResult own = new_result(dtype, shape, strides);
        void* data = own->managed.tensor.data;
        return {{}, std::move(own), data, false};
    }
    std::array<Index, kMaxAxes> steps;
    std::ranges::transform(strides, steps.begin(),
                           [&](Index stride) { return stride * size_of(dtype); });
    py::object array = new_array(dtype, shape, steps.data());
    void* data = data_of(array);
    return {std::move(array), nullptr, data, false};
}

py::object Results::give(Fresh fresh) const {
    if (fresh.own) {
        void* object = nullptr;
        if (library_->reader->table().import_owned(&fresh.own.release()->managed, &object) != 0) {
            throw py::error_already_set();
        }
        return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
    }
    if (library_ == nullptr || fresh.is_library) return std::move(fresh.array);
    return library_->object.attr("wrap")(fresh.array);
}

}  // namespace bnext::intake
