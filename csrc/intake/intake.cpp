#include "intake/intake.hpp"

namespace bnext::intake {
namespace {

// The name of a dtype of a tensor.
std::string tensor_text(const void* object) {
    const py::handle tensor(const_cast<PyObject*>(static_cast<const PyObject*>(object)));
    dlpack::Tensor described{};
    const Library* library = library_of(tensor);
    if (library == nullptr || !library->reader ||
        library->reader->table().describe(tensor.ptr(), &described) != 0) {
        PyErr_Clear();
        return "?";
    }
    return dlpack::text_of(described.dtype);
}

// The fields of a View of bnext.arrays.library.
enum Field : std::size_t { kArray, kAddress, kShape, kStrides, kDType, kReadOnly, kStream };

constexpr const char* kAnyGpu = "a CUDA device";  // whose number is not known

std::string text_of(const py::object& object) { return py::str(object); }

}  // namespace

void Intake::refer_to_array(Role role, const py::object& array) {
    refer(array, extents_, call.add(role));
    kept_[index(role)] = array;
}

bool Intake::take_plain(py::handle object, TensorView& view) {
    const auto& reader = gpu_ != nullptr ? gpu_->reader : library_->reader;
    if (!reader || !reader->take(object, view)) return false;
    if (gpu_ != nullptr && view.tensor.device.id != gpu_->index) return false;
    if (plain_) return true;
    const auto& autograd = library_->autograd;
    if (!dual_level_) dual_level_ = autograd->has_dual_level();
    return !*dual_level_ && !autograd->records(object);
}

// A tensor that is dense, or a vector of which one value follows the other.
bool Intake::refer_to_plain(Role role, py::handle object, bool is_data) {
    TensorView view;
    if (!take_plain(object, view)) return false;
    const auto dtype = dlpack::supported(view.tensor.dtype);
    if (!dtype || !view.aligned_to(size_of(*dtype))) return false;
    const std::size_t rank = view.rank();
    const Order order = order_of(view);
    if (call.is_of_rows()) {
        if (rank == 0 || order != Order::c) return false;
    } else if (is_data ? rank < 2 : (rank != 1 || view.strides()[0] != 1)) {
        return false;
    }
    if (order == Order::none) return false;
    Index* const shape = extents_.take(3 * rank);
    Index* const steps = shape + rank;
    Index* const strides = steps + rank;
    Index size = 1;
    for (std::size_t a = 0; a < rank; ++a) {
        shape[a] = view.shape()[a];
        strides[a] = view.strides()[a];
        steps[a] = strides[a] * size_of(*dtype);
        size *= shape[a];
    }
    if (is_data && size == 0) return false;
    call.add(role) = {view.data(),
                      shape,
                      steps,
                      strides,
                      static_cast<std::uint8_t>(rank),
                      element_of(*dtype),
                      gpu_ != nullptr ? Place::cuda : Place::cpu,
                      true,
                      true,
                      true,
                      order == Order::c,
                      object.ptr(),
                      &tensor_text};
    return true;
}

void Intake::lead(Role role, py::handle object) {
    if (gpu_ != nullptr) return refer_there(role, object, true);
    if (is_plain_array(object)) return refer(object, extents_, call.add(role));
    library_ = library_of(object);
    if (library_ == nullptr) return refer_to_array(role, as_array(object, name_of(role)));
    if (refer_to_plain(role, object, true)) return;
    adopt(role, object);
}

// --- arrays on a GPU -----------------------------------------------------------------------------

std::string Intake::misplaced_there(py::handle object) const {
    const Library* other = library_of(object);
    const std::string there = gpu_->where;
    const std::string where =
        other == nullptr ? "the CPU" : text_of(other->object.attr("where")(object));
    // An array that does not say on which device it is tells by its address.
    if (other == library_ && (where == there || where == kAnyGpu)) return {};
    if (where != there) {
        return concat("expected an array on ", there, ", like x, got one on ", where);
    }
    return concat("expected an array of ", text_of(library_->object.attr("name")),
                  ", like x, got one of ", text_of(other->object.attr("name")));
}

void Intake::refer_there(Role role, py::handle object, bool is_data) {
    if (refer_to_plain(role, object, is_data)) {
        kept_[index(role)] = py::reinterpret_borrow<py::object>(object);
        return;
    }
    const char* name = name_of(role);
    if (plain_) type_error(name, ": expected a plain tensor");
    if (const std::string problem = misplaced_there(object); !problem.empty()) {
        type_error(name, ": ", problem);
    }
    const py::tuple view = library_->object.attr("view")(object, name);
    const auto address = py::cast<std::uintptr_t>(view[kAddress]);
    if (address != 0 && std::string(py::str(library_->object.attr("where")(object))) == kAnyGpu) {
        const auto device = py::cast<std::int32_t>(gpu_->device_of(address));
        if (device != gpu_->index) {
            type_error(name, ": expected an array on ", std::string(gpu_->where),
                       ", like x, got one on ",
                       device < 0 ? kAnyGpu : dlpack::device_name(dlpack::kCUDA, device));
        }
    }
    refer_to_view(view, name, call.add(role));
    kept_[index(role)] = view;
    if (role != call.data()) check_stream(role, view);
}

// An array that says on which stream its values are made is on the stream of x.
void Intake::check_stream(Role role, const py::tuple& view) {
    const py::object stream = view[kStream];
    const py::object& x = kept_[index(call.data())];
    if (stream.is_none() || !x || PyTuple_Check(x.ptr()) == 0) return;
    const py::object wanted = library_->object.attr("stream")(x, gpu_->index);
    if (stream.equal(wanted)) return;
    value_error(name_of(role), ": expected an array on the stream of x (",
                std::string(py::str(wanted)), "), got one on stream ",
                std::string(py::str(stream)));
}

void Intake::refer_to_view(const py::tuple& view, const char* name, ArrayRef& array) {
    const py::tuple shape = view[kShape], strides = view[kStrides];
    const std::string dtype = py::cast<std::string>(view[kDType]);
    BNEXT_CHECK(shape.size() <= kMaxAxes, name, ": expected at most 64 dimensions, got ",
                shape.size());
    array = {};
    array.element = Element::other;
    for (const DType each : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
        if (dtype == bnext::name_of(each)) array.element = element_of(each);
    }
    array.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(view[kAddress]));
    array.rank = static_cast<std::uint8_t>(shape.size());
    Index* const extents = extents_.take(2 * shape.size());
    Index* const steps = extents + shape.size();
    for (std::size_t a = 0; a < shape.size(); ++a) {
        extents[a] = py::cast<Index>(shape[a]);
        steps[a] = py::cast<Index>(strides[a]) * array.item();
    }
    array.extents = extents;
    array.steps = steps;
    array.place = Place::cuda;
    array.is_array = true;
    array.writeable = !py::cast<bool>(view[kReadOnly]);
    array.object = py::object(view[kDType]).ptr();
    array.text = [](const void* text) -> std::string {
        return py::str(py::handle(const_cast<PyObject*>(static_cast<const PyObject*>(text))));
    };
    complete(array, extents_);
}

ArrayRef Intake::refer_to_new(const py::object& object) {
    ArrayRef array{};
    TensorView view;
    if (!gpu_->reader || !gpu_->reader->take_new(object, view)) {
        refer_to_view(library_->object.attr("view")(object, "out"), "out", array);
        return array;
    }
    const std::size_t rank = view.rank();
    Index* const strides = extents_.take(rank);
    std::ranges::copy(view.strides(), strides);
    array.data = view.data();
    array.rank = static_cast<std::uint8_t>(rank);
    array.strides = strides;
    array.place = Place::cuda;
    return array;
}

// --- arrays beside the first ---------------------------------------------------------------------

std::string Intake::misplaced(py::handle object) const {
    if (gpu_ != nullptr) return misplaced_there(object);
    const Library* other = library_of(object);
    if (library_ == nullptr || other == nullptr) return {};
    if (other != library_) {
        return concat("expected an array of ", text_of(library_->object.attr("name")),
                      ", like x, or of NumPy, got one of ", text_of(other->object.attr("name")));
    }
    const py::object where = library_->object.attr("where")(object);
    if (text_of(where.attr("kind")) == "cpu") return {};
    return concat("expected an array on the CPU, like x, got one on ", text_of(where));
}

// NumPy's array over the memory of an array of the call's library.
void Intake::adopt(Role role, py::handle object) {
    if (plain_) type_error(name_of(role), ": expected a plain tensor");
    refer_to_array(role, library_->object.attr("adopt")(object, name_of(role)));
}

void Intake::adopt_beside(Role role, py::handle object) {
    if (const std::string problem = misplaced(object); !problem.empty()) {
        type_error(name_of(role), ": ", problem);
    }
    adopt(role, object);
}

void Intake::read_numpy(Role role, py::handle object) {
    if (object.is_none() && role != Role::dy) return;  // dy cannot be left out
    if (is_plain_array(object)) return refer(object, extents_, call.add(role));
    refer_to_array(role, as_array(object, name_of(role)));
}

void Intake::read(Role role, py::handle object) {
    const bool is_data = role == Role::dy || role == Role::residual || role == Role::rows ||
                         role == Role::ddx || role == Role::ddresidual;
    if (gpu_ != nullptr) {
        const bool is_needed = role == Role::dy || role == Role::rows;
        if (!object.is_none() || is_needed) refer_there(role, object, is_data);
        return;
    }
    if (is_plain_array(object) || library_ == nullptr || object.is_none()) {
        return read_numpy(role, object);
    }
    if (refer_to_plain(role, object, is_data)) return;
    if (library_of(object) == nullptr) return read_numpy(role, object);
    adopt_beside(role, object);
}

// An array of the library, which counts the writes to it. Of a plain tensor only inference is
// asked.
void Intake::check_written(py::handle object, const char* name, bool is_plain) {
    const bool asks_nothing = plain_ && gpu_ == nullptr;
    if (!asks_nothing && !(is_plain && !library_->reader->is_inference(object))) {
        if (plain_) type_error(name, ": expected a tensor that is not of inference");
        library_->object.attr("check_writable")(object, name);
    }
    written_[written_count_++] = object;
}

void Intake::write(Role role, py::handle object) {
    if (object.is_none()) return;
    const char* name = name_of(role);
    if (role == Role::out) out_ = object;
    if (gpu_ != nullptr) {
        refer_there(role, object, role == Role::out);
        return check_written(object, name, !view(role));
    }
    const bool read = library_ != nullptr && refer_to_plain(role, object, role == Role::out);
    if (read || (library_ != nullptr && library_of(object) != nullptr)) {
        if (!read) adopt_beside(role, object);
        check_written(object, name, read);
    } else if (!is_array(object)) {
        check_is_on_the_cpu(object, name);
        refer_to_none(object, call.add(role));
    } else {
        if (!is_plain_array(object)) refuse_mask(object, name);
        refer(object, extents_, call.add(role));
    }
}

void Intake::count(py::handle object, Role role) {
    if (object.is_none()) return;
    ArrayRef& counter = call.add(role);
    std::int64_t* value = nullptr;
    if (plain_ && library_ != nullptr) {
        const auto& reader = gpu_ != nullptr ? gpu_->reader : library_->reader;
        if (reader) value = reader->take_counter(object, gpu_ != nullptr ? gpu_->index : 0);
    }
    if (value == nullptr) return refer_to_counter(object, extents_, counter);
    counter = {};
    counter.data = value;
    counter.element = Element::int64;
    counter.place = gpu_ != nullptr ? Place::cuda : Place::cpu;
    counter.is_array = counter.writeable = true;
    check_written(object, name_of(role), true);
}

const Library* Intake::library_of_weight(py::handle weight) const {
    if (weight.is_none() || gpu_ != nullptr) return library_;
    return library_ != nullptr && library_of(weight) == nullptr ? nullptr : library_;
}

void Intake::count_writes() const {
    if (written_count_ == 0) return;
    py::tuple arrays(written_count_);
    for (std::size_t k = 0; k < written_count_; ++k) arrays[k] = written_[k];
    intake::call(library_->count_writes, arrays);
}

}  // namespace bnext::intake
