#include "bindings/saved.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <structmember.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "bindings/device_saved.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"
#include "cpu/flag_bits.hpp"
#include "intake/arguments.hpp"
#include "intake/dlpack.hpp"

namespace bnext::bindings {

Saved::Saved(DType of, std::span<const Index> x, Index axis, double epsilon, Index groups_)
    : dtype(of),
      channel_axis(axis),
      eps(epsilon),
      groups(groups_),
      channels_(groups_ == 0 ? x[static_cast<std::size_t>(axis)] : x[0] * groups_),
      rank_(x.size()),
      memory_(((kStatisticsRows + 2) * extent() + rank_) * sizeof(double)) {
    static_assert(sizeof(Index) == sizeof(double));
    std::ranges::copy(x, const_cast<Index*>(shape().data()));
}

bool Saved::take(std::span<const double> rows) {
    const std::size_t most = all().size() + 2 * extent();
    has_parameters = rows.size() == most;
    if (!has_parameters && rows.size() != all().size() && rows.size() + extent() != all().size()) {
        return false;
    }
    std::ranges::fill(row(Row::mean_low), 0.0);
    std::ranges::copy(rows, first());
    return true;
}

void read_parameters(const Call& call, std::span<double> weight, std::span<double> bias) {
    const auto read = [&](Role role, std::span<double> values, double otherwise) {
        if (call.has(role)) return read_doubles(call[role], values);
        std::ranges::fill(values, otherwise);
    };
    read(Role::weight, weight, 1.0);
    read(Role::bias, bias, 0.0);
}

void Saved::has_given_statistics() {
    batch_statistics = false;
    std::ranges::fill(row(Row::m2), std::numeric_limits<double>::quiet_NaN());
    std::ranges::fill(row(Row::mean_low), 0.0);
}

void Saved::take_rows(const ArrayRef& rows) {
    ArrayRef row = rows;
    row.rank = 1;
    row.steps = rows.steps + 1;
    for (Index number = 0; number < kStatisticsRows; ++number) {
        row.data = rows.as<char>() + number * rows.steps[0];
        read_doubles(row, this->row(static_cast<Row>(number)));
    }
}

namespace {

struct Head {
    PyObject_HEAD PyObject* weak_references;
};
struct SavedObject {
    Head head;
    Saved value;
};

PyTypeObject* saved_type = nullptr;  // lives until the process ends

Saved& value_of(py::handle self) { return reinterpret_cast<SavedObject*>(self.ptr())->value; }

py::object made(PyTypeObject* type, Saved saved) {
    auto self = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
    if (!self) throw py::error_already_set();
    new (&value_of(self)) Saved(std::move(saved));
    return self;
}

// --- pickles: nothing in them of the memory of this process --------------------------------------

py::object state_of(const SavedEpilogue& epilogue) {
    const Flags& flags = epilogue.flags;
    return py::make_tuple(name_of(epilogue.fused.activation), epilogue.fused.negative_slope,
                          epilogue.fused.residual, epilogue.fused.in_place,
                          epilogue.residual_fingerprint, flags.strides,
                          py::bytes(reinterpret_cast<const char*>(flags.words.data()),
                                    flags.words.size() * sizeof(std::uint16_t)),
                          epilogue.parameters);
}

// Null for a state that is none.
std::shared_ptr<SavedEpilogue> epilogue_of_state(const py::tuple& state, const Saved& saved) {
    // Of 7: older than activations after norms of cells.
    if (state.size() != 7 && state.size() != 8) return nullptr;
    auto epilogue = std::make_shared<SavedEpilogue>();
    if (state.size() == 8) epilogue->parameters = py::cast<std::vector<double>>(state[7]);
    const std::size_t parameters = epilogue->parameters.size();
    const auto channels =
        static_cast<std::size_t>(saved.shape()[static_cast<std::size_t>(saved.channel_axis)]);
    if (saved.groups == 0 ? !saved.has_parameters : parameters != 2 * channels) return nullptr;
    const int number = activation_number(py::cast<std::string>(state[0]));
    if (number == kActivations) return nullptr;
    epilogue->fused = {static_cast<Activation>(number), py::cast<double>(state[1]),
                       py::cast<bool>(state[2]), py::cast<bool>(state[3]), saved.groups != 0};
    epilogue->residual_fingerprint = py::cast<std::uint64_t>(state[4]);
    // Flags in an order that reaches each of them, as dense arrays have it.
    Flags& flags = epilogue->flags;
    flags.strides = py::cast<std::vector<Index>>(state[5]);
    const auto bytes = py::cast<std::string>(state[6]);
    std::size_t size = 1;
    for (const Index extent : saved.shape()) size *= static_cast<std::size_t>(extent);
    const bool has_flags = epilogue->fused.keeps_flags();
    const std::size_t words = has_flags ? cpu::flag_words(size) : 0;
    if (bytes.size() != words * sizeof(std::uint16_t)) return nullptr;
    if (has_flags) {
        std::vector<Index> dense(saved.shape().size());
        if (flags.strides.size() != dense.size()) return nullptr;
        dense_strides_like(saved.shape(), flags.strides, dense);
        flags.strides = dense;
    }
    flags.words = cpu::PoolArray<std::uint16_t>(words);
    std::ranges::copy(bytes, reinterpret_cast<char*>(flags.words.data()));
    return epilogue;
}

py::object state_of(py::handle self) {
    const Saved& s = value_of(self);
    const std::size_t count = s.all().size() + (s.has_parameters ? 2 : 0) * s.weight().size();
    const py::array_t<double> rows(static_cast<py::ssize_t>(count), s.all().data());
    const std::vector<Index> shape(s.shape().begin(), s.shape().end());
    return py::make_tuple(name_of(s.dtype), s.batch_statistics, s.channel_axis, s.eps,
                          intake::number_of(s.count), s.fingerprint, shape, rows,
                          s.epilogue ? state_of(*s.epilogue) : py::object(py::none()),
                          s.weights ? state_of(*s.weights) : py::object(py::none()), s.groups);
}

Saved of_state(const py::tuple& state) {
    // Of 8: older than activations; of 9: than weights, and than norms of cells.
    const bool is_older = state.size() == 8, is_whole = state.size() == 11;
    if (!is_older && state.size() != 9 && !is_whole) {
        value_error("state: expected the state of a pickled Saved");
    }
    const auto name = py::cast<std::string>(state[0]);
    const auto shape = py::cast<std::vector<Index>>(state[6]);
    const auto axis = py::cast<Index>(state[2]);
    const auto rows = py::cast<py::array_t<double, py::array::c_style>>(state[7]);
    const auto groups = is_whole ? py::cast<Index>(state[10]) : Index{0};
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
        if (name != name_of(dtype)) continue;
        if (axis < 0 || axis >= static_cast<Index>(shape.size()) || groups < 0) break;
        Saved saved(dtype, shape, axis, intake::take_eps(state[3]), groups);
        saved.batch_statistics = py::cast<bool>(state[1]);
        saved.count = py::cast<double>(state[4]);
        saved.fingerprint = py::cast<std::uint64_t>(state[5]);
        if (!saved.take({rows.data(), static_cast<std::size_t>(rows.size())})) break;
        if (is_whole && !state[9].is_none()) {
            std::size_t positions = 1;
            for (std::size_t a = 0; a < shape.size(); ++a) {
                if (static_cast<Index>(a) != axis) positions *= static_cast<std::size_t>(shape[a]);
            }
            saved.weights = weights_of_state(state[9], positions);
            if (saved.weights == nullptr) break;
        }
        if (is_older || state[8].is_none()) return saved;
        saved.epilogue = epilogue_of_state(py::cast<py::tuple>(state[8]), saved);
        if (saved.epilogue == nullptr) break;
        return saved;
    }
    value_error("state: expected the state of a pickled Saved");
}

py::object set_state(py::handle self, py::handle state) {
    Saved& saved = value_of(self);
    // Views of the rows of a Saved may be about.
    if (!saved.shape().empty()) type_error("__setstate__: expected a Saved that __new__ has made");
    saved = of_state(py::cast<py::tuple>(state));
    return py::none();
}

// --- attributes ----------------------------------------------------------------------------------

// (C,); of a norm of cells (N, G).
std::vector<py::ssize_t> shape_of_row(const Saved& saved) {
    const auto slabs = static_cast<py::ssize_t>(saved.channels());
    if (saved.groups == 0) return {slabs};
    return {static_cast<py::ssize_t>(saved.shape()[0]), static_cast<py::ssize_t>(saved.groups)};
}

template <Row kRow>
py::object view_of_row(py::handle self) {
    const auto values = std::as_const(value_of(self)).row(kRow);
    py::array_t<double> array(shape_of_row(value_of(self)), values.data(), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::object copy_of_rows(py::handle self) {
    const Saved& saved = value_of(self);
    std::vector<py::ssize_t> shape = shape_of_row(saved);
    shape.insert(shape.begin(), py::ssize_t{kStatisticsRows});
    return py::array_t<double>(shape, saved.all().data());
}

py::object shape_of(py::handle self) { return intake::tuple_of_integers(value_of(self).shape()); }

using Getter = py::object (*)(py::handle self);

PyGetSetDef attribute(const char* name, Getter getter, const char* doc) {
    const auto get = [](PyObject* self, void* closure) {
        return translated([&] { return reinterpret_cast<Getter>(closure)(self); });
    };
    return {name, get, nullptr, doc, reinterpret_cast<void*>(getter)};
}

template <auto value>
py::object member(py::handle self) {
    return py::cast(value_of(self).*value);
}

PyGetSetDef attributes[] = {
    attribute(
        "count", [](py::handle self) { return intake::number_of(value_of(self).count); },
        "Values per channel (int): the elements of x over C, or those that a mask\n"
        "counts; with weights their sum (float where it is no whole number)."),
    attribute("mean", view_of_row<Row::mean>,
              "Mean of each channel: array of float64, shape (C,)."),
    attribute("mean_low", view_of_row<Row::mean_low>,
              "Low part of the mean, the rounding error of its float64: the exact mean is\n"
              "mean + mean_low. Array of float64, shape (C,); 0 but for float64 data."),
    attribute("m2", view_of_row<Row::m2>,
              "Sum of squared deviations from the mean, of each channel: array of\n"
              "float64, shape (C,); NaN where the statistics were given."),
    attribute("var", view_of_row<Row::var>,
              "Biased variance of each channel, m2 / count: array of float64, shape\n(C,)."),
    attribute("rstd", view_of_row<Row::rstd>,
              "1 / sqrt(var + eps) of each channel, 0 where that has no value: array\n"
              "of float64, shape (C,)."),
    attribute("rows", copy_of_rows,
              "mean, m2, var, rstd and mean_low as one array of float64, shape\n(5, C): a copy."),
    attribute(
        "address",
        [](py::handle self) -> py::object {
            return py::int_(reinterpret_cast<std::uintptr_t>(value_of(self).address));
        },
        "Where the first element of x was (int); 0 in another process."),
    attribute("eps", member<&Saved::eps>, "What was added to the variance (float)."),
    attribute("shape", shape_of, "Shape of x (tuple of int)."),
    attribute(
        "num_groups",
        [](py::handle self) -> py::object {
            const Saved& saved = value_of(self);
            return saved.groups == 0 ? py::object(py::none()) : py::int_(saved.groups);
        },
        "Of group and instance normalization, the groups G of channels (int), each\n"
        "with statistics of its own in each example, (N, G) in place of (C,); else None."),
    attribute(
        "dtype",
        [](py::handle self) { return intake::dlpack::descr_for(value_of(self).dtype, "dtype"); },
        "Dtype of x (numpy.dtype)."),
    attribute("channel_axis", member<&Saved::channel_axis>,
              "Which axis of x has the channels (int >= 0)."),
    attribute(
        "activation",
        [](py::handle self) -> py::object {
            const auto& epilogue = value_of(self).epilogue;
            if (!epilogue || epilogue->fused.activation == Activation::none) return py::none();
            return py::str(name_of(epilogue->fused.activation));
        },
        "Name of the activation that followed (str), or None."),
    attribute(
        "residual",
        [](py::handle self) -> py::object {
            const auto& epilogue = value_of(self).epilogue;
            return py::bool_(epilogue && epilogue->fused.residual);
        },
        "Whether a residual was added (bool)."),
    attribute(
        "reads_residual",
        [](py::handle self) -> py::object {
            const auto& epilogue = value_of(self).epilogue;
            return py::bool_(epilogue && epilogue->fused.reads_residual());
        },
        "Whether the backward pass needs the residual again (bool)."),
    attribute(
        "in_place",
        [](py::handle self) -> py::object { return py::bool_(value_of(self).in_place()); },
        "Whether y was written over x (bool): the backward pass takes y in place\n"
        "of x."),
    attribute("batch_statistics", member<&Saved::batch_statistics>,
              "Whether the statistics are the batch's (bool): False where they were\n"
              "given, as running statistics are."),
    {}};

// It cannot change, and is a copy of itself.
PyObject* itself(PyObject* self, PyObject*) { return Py_NewRef(self); }

PyMethodDef methods[] = {
    {"__getstate__",
     [](PyObject* self, PyObject*) { return translated([&] { return state_of(self); }); },
     METH_NOARGS, nullptr},
    {"__setstate__",
     [](PyObject* self, PyObject* state) {
         return translated([&] { return set_state(self, state); });
     },
     METH_O, nullptr},
    {"__copy__", itself, METH_NOARGS, nullptr},
    {"__deepcopy__", itself, METH_O, nullptr},
    {}};

PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Head, weak_references), READONLY, nullptr}, {}};

// --- the type ------------------------------------------------------------------------------------

PyObject* make_blank(PyTypeObject* type, PyObject*, PyObject*) {
    return translated([&] { return made(type, {}); });
}

int refuse_to_make(PyObject* self, PyObject*, PyObject*) {
    PyErr_Format(PyExc_TypeError, "%s: No constructor defined!", Py_TYPE(self)->tp_name);
    return -1;
}

void destroy(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    auto* const object = reinterpret_cast<SavedObject*>(self);
    if (object->head.weak_references != nullptr) PyObject_ClearWeakRefs(self);
    object->value.~Saved();
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject* repr_of(PyObject* self) {
    return translated([&]() -> py::object {
        const Saved& s = value_of(self);
        return py::str(concat("<bnext.Saved of a ", name_of(s.dtype), " input of shape ",
                              shape_text(s.shape()), ">"));
    });
}

template <class T>
void* slot(T* what) {
    return reinterpret_cast<void*>(what);
}

}  // namespace

py::object object_of(Saved saved) { return made(saved_type, std::move(saved)); }

bool is_saved(py::handle object) {
    return PyObject_TypeCheck(object.ptr(), saved_type) != 0 && !value_of(object).shape().empty();
}

const Saved& take_saved(py::handle object, Function function, const char* data) {
    if (is_saved(object)) return value_of(object);
    if (py::isinstance<DeviceSaved>(object)) {
        type_error("saved: made from an input on ",
                   std::string(py::cast<const DeviceSaved&>(object).where), ", got ", data,
                   " on the CPU");
    }
    type_error("saved: expected what ", forward_of(is_of_cells(function)), " returned, got ",
               intake::type_name(object));
}

void register_saved(py::module_& m) {
    py::tuple names(kStatisticsRows);
    for (std::size_t row = 0; row < names.size(); ++row) names[row] = kRowNames[row];
    m.attr("ROWS") = names;
    static char doc[] =
        "What a forward call leaves for its backward call: the statistics of each\n"
        "channel, and what is needed to notice another input. Read-only; its arrays\n"
        "are views.";
    PyType_Slot slots[] = {{Py_tp_doc, doc},
                           {Py_tp_new, slot(make_blank)},
                           {Py_tp_init, slot(refuse_to_make)},
                           {Py_tp_dealloc, slot(destroy)},
                           {Py_tp_repr, slot(repr_of)},
                           {Py_tp_members, members},
                           {Py_tp_getset, attributes},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    PyType_Spec spec{"bnext._core.Saved", sizeof(SavedObject), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
    saved_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
    if (saved_type == nullptr) throw py::error_already_set();
    m.attr("Saved") = py::handle(reinterpret_cast<PyObject*>(saved_type));
}

}  // namespace bnext::bindings
