// Layer and RMS normalization as Python calls them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/bodies.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"
#include "cpu/rows.hpp"
#include "intake/dlpack.hpp"

namespace bnext::bindings {
namespace {

using RowValues = cpu::PoolArray<double>;

// What a call with an activation or a residual leaves besides.
struct RowEpilogue {
    Fused fused;
    std::uint64_t residual_fingerprint = 0;
    // Copies of the forward call's, since an optimizer may change the parameters before z is made
    // again. Empty where there were none, or no activation.
    std::vector<double> weight, bias;
};

// What a forward call leaves for its backward call.
struct RowSaved {
    DType dtype = DType::float32;
    std::vector<Index> shape;  // of x
    Index first = 0;           // the first of the normalized axes
    bool centered = true;
    double eps = 0;
    std::uint64_t fingerprint = 0;
    RowValues values;                             // mean, mean_low and rstd, one value for each row
    std::shared_ptr<const RowEpilogue> epilogue;  // null without

    RowSaved() = default;
    RowSaved(DType of, std::span<const Index> x, Index axis, bool has_mean, double epsilon)
        : dtype(of), shape(x.begin(), x.end()), first(axis), centered(has_mean), eps(epsilon) {
        values = RowValues(static_cast<std::size_t>(kRowStatistics * rows()));
    }

    [[nodiscard]] std::span<const Index> leading() const {
        return std::span(shape).first(static_cast<std::size_t>(first));
    }
    [[nodiscard]] std::span<const Index> normalized() const {
        return std::span(shape).subspan(static_cast<std::size_t>(first));
    }
    [[nodiscard]] Index rows() const { return product(leading()); }
    [[nodiscard]] cpu::RowProblem problem() const {
        return {rows(), product(normalized()), centered};
    }
    [[nodiscard]] double* row(Index which) const { return values.data() + which * rows(); }
    [[nodiscard]] cpu::RowStatistics statistics() const { return {row(0), row(1), row(2)}; }
    [[nodiscard]] FromForward facts() const {
        FromForward facts{dtype, shape, first, true, fingerprint != 0 ? &fingerprint : nullptr};
        facts.has_flags = false;
        if (epilogue != nullptr) {
            facts.fused = epilogue->fused;
            if (epilogue->residual_fingerprint != 0) {
                facts.residual_fingerprint = &epilogue->residual_fingerprint;
            }
        }
        return facts;
    }
    [[nodiscard]] bool reads_residual() const { return facts().reads_residual(); }

    static Index product(std::span<const Index> extents) {
        Index all = 1;
        for (const Index extent : extents) all *= extent;
        return all;
    }
};

const RowSaved& take_row_saved(py::handle object, bool centered) {
    const char* name = centered ? "layer_norm_forward" : "rms_norm_forward";
    if (!py::isinstance<RowSaved>(object)) {
        type_error("saved: expected what ", name, " returned, got ", intake::type_name(object));
    }
    const auto& saved = py::cast<const RowSaved&>(object);
    if (saved.centered != centered) {
        value_error("saved: expected what ", name, " returned, got what ",
                    centered ? "rms_norm_forward" : "layer_norm_forward", " did");
    }
    return saved;
}

std::vector<Index> take_normalized_shape(py::handle object) {
    constexpr const char* kName = "normalized_shape";
    if (PyIndex_Check(object.ptr()) != 0) return {intake::take_integer(object, kName)};
    if (!py::isinstance<py::sequence>(object) || py::isinstance<py::str>(object)) {
        type_error(kName, ": expected an integer or a sequence of integers, got ",
                   intake::type_name(object));
    }
    std::vector<Index> shape;
    for (const py::handle extent : object) shape.push_back(intake::take_integer(extent, kName));
    return shape;
}

// --- arrays as matrices --------------------------------------------------------------------------

// The strides of an array in C order.
std::vector<Index> c_strides(std::span<const Index> shape) {
    std::vector<Index> strides(shape.size());
    Index step = 1;
    for (std::size_t a = shape.size(); a-- > 0; step *= shape[a]) strides[a] = step;
    return strides;
}

// How far rows are apart, if their values lie side by side and all rows are equally far apart; else
// negative.
Index pitch_of(const ArrayRef& array, Index first) {
    Index expected = 1, pitch = 0;
    for (Index a = array.rank; a-- > 0;) {
        if (a + 1 == first) expected = 0;  // any
        const Index extent = array.extents[a];
        if (extent == 1) continue;
        const Index step = array.strides[a];
        if (a >= first) {
            if (step != expected) return -1;
            expected *= extent;
        } else {
            if (pitch != 0 && step != expected) return -1;
            if (pitch == 0) pitch = step;
            if (pitch <= 0) return -1;
            expected = step * extent;
        }
    }
    if (pitch > 0) return pitch;
    Index width = 1;
    for (Index a = first; a < array.rank; ++a) width *= array.extents[a];
    return width;
}

// The arrays of one call as matrices: copies of those that are none.
class RowOperands {
public:
    RowOperands(Intake& call, Index first) : call_(call), first_(first) {}

    template <class T>
    cpu::Matrix<const T> matrix(Role role) {
        ArrayRef array = call_[role];
        if (array.size() == 0) return {array.as<const T>(), 1};
        const Index pitch = array.viewable ? pitch_of(array, first_) : -1;
        if (pitch > 0) return {array.as<const T>(), pitch};
        const ArrayRef copy = copy_of(array);
        return {copy.as<const T>(), pitch_of(copy, first_)};
    }
    // The values of a parameter in C order; null where it is not given.
    template <class P>
    const P* values(Role role) {
        if (!call_.call.has(role)) return nullptr;
        const ArrayRef& array = call_[role];
        const bool dense = array.viewable && (array.c_contiguous || array.size() <= 1);
        return dense ? array.as<const P>() : copy_of(array).as<const P>();
    }
    // The same, in float64; empty where it is not given.
    template <class P>
    std::vector<double> copy_of_values(Role role, Index width) {
        const P* const given = values<P>(role);
        return given == nullptr ? std::vector<double>() : std::vector<double>(given, given + width);
    }
    // Where the result goes: `out` if it is a matrix, else new memory.
    template <class T>
    cpu::Matrix<T> target(const Results& results) {
        const ArrayRef& x = call_[Role::x];
        if (call_.call.has(Role::out)) {
            const ArrayRef& out = call_[Role::out];
            const Index pitch = out.viewable ? pitch_of(out, first_) : -1;
            direct_ = pitch > 0;
            if (direct_) return {out.as<T>(), pitch};
        }
        const auto strides = c_strides(x.shape());
        fresh_ =
            (call_.call.has(Role::out) ? Results() : results).make(x.dtype(), x.shape(), strides);
        return matrix_of<T>(fresh_);
    }
    // Another result of the shape of x.
    template <class T>
    cpu::Matrix<T> make(const Results& results, Fresh& fresh) {
        const ArrayRef& x = call_[Role::x];
        fresh = results.make(x.dtype(), x.shape(), c_strides(x.shape()));
        return matrix_of<T>(fresh);
    }
    py::object result(const Results& results) {
        if (!call_.call.has(Role::out)) return results.give(std::move(fresh_));
        if (!direct_) {
            ArrayRef from = call_[Role::x];
            dense_like(from, fresh_.data);
            intake::copy_values(call_[Role::out], from);
        }
        return py::reinterpret_borrow<py::object>(call_.out());
    }

private:
    template <class T>
    cpu::Matrix<T> matrix_of(const Fresh& fresh) {
        const auto normalized = call_[Role::x].shape().subspan(static_cast<std::size_t>(first_));
        return {static_cast<T*>(fresh.data), std::max<Index>(RowSaved::product(normalized), 1)};
    }
    // Makes `array` refer to memory in C order.
    void dense_like(ArrayRef& array, void* data) {
        Index* const steps = call_.extents().take(array.rank);
        const auto strides = c_strides(array.shape());
        std::ranges::transform(strides, steps, [&](Index s) { return s * array.item(); });
        array.data = data;
        array.steps = steps;
        complete(array, call_.extents());
    }
    ArrayRef copy_of(const ArrayRef& array) {
        ArrayRef copy = array;
        auto& memory = copies_[copy_count_++];
        memory = cpu::PoolArray<char>(static_cast<std::size_t>(array.size() * array.item()));
        dense_like(copy, memory.data());
        intake::copy_values(copy, array);
        return copy;
    }

    Intake& call_;
    Index first_;
    std::array<cpu::PoolArray<char>, 5> copies_;
    std::size_t copy_count_ = 0;
    Fresh fresh_;
    bool direct_ = false;
};

// --- the calls -----------------------------------------------------------------------------------

bool truth_of(py::handle flag) { return flag && PyObject_IsTrue(flag.ptr()) != 0; }

// None; or what follows normalization: residual, activation, negative_slope.
void take_epilogue(Intake& call, py::handle object) {
    if (!object || object.is_none()) return;
    const auto parts = py::reinterpret_borrow<py::tuple>(object);
    call.read(Role::residual, parts[0]);
    call.call.fused.activation = intake::take_activation(parts[1]);
    call.call.fused.negative_slope = intake::take_real(parts[2], "negative_slope");
}

// What the backward pass needs of it; null without an activation and a residual.
std::shared_ptr<const RowEpilogue> epilogue_of_rows(const Intake& call, RowOperands& arrays,
                                                    const RowSaved& saved) {
    const Fused fused = call.call.applied();
    if (!fused.any()) return nullptr;
    auto kept = std::make_shared<RowEpilogue>();
    kept->fused = fused;
    if (fused.residual) kept->residual_fingerprint = fingerprint_of(call[Role::residual]);
    if (fused.changes_backward()) {
        with_dtype(saved.dtype, [&](auto type) {
            using P = Param<decltype(type)>;
            const Index width = saved.problem().width;
            kept->weight = arrays.copy_of_values<P>(Role::weight, width);
            kept->bias = arrays.copy_of_values<P>(Role::bias, width);
        });
    }
    return kept;
}

// x, the parameters and the epilogue of a forward pass, or of a phase of it, of rows.
void take_rows(Intake& call, std::span<const Index> shape, py::handle x, py::handle weight,
               py::handle bias, py::handle eps, py::handle out, py::handle epilogue) {
    call.call.normalized_shape = shape;
    call.lead(Role::x, x);
    call.read(Role::weight, weight);
    call.read(Role::bias, bias);
    take_epilogue(call, epilogue);
    if (eps.is_none()) {
        const bool wide = call[Role::x].is(DType::float64);
        call.call.eps = wide ? 0x1p-52 : 0x1p-23;
    } else {
        call.eps(eps);
    }
    call.write(Role::out, out);
}

RowSaved saved_of(const Intake& call, py::handle centered) {
    const ArrayRef& data = call[Role::x];
    const auto first = static_cast<Index>(data.rank - call.call.normalized_shape.size());
    RowSaved saved(data.dtype(), data.shape(), first, truth_of(centered), call.call.eps);
    saved.fingerprint = fingerprint_of(data);
    return saved;
}

// y and `saved`, whose statistics the second phase alone has already.
py::object normalized_rows(Intake& call, RowSaved saved, cpu::RowPhases phases) {
    const Results results(call.library());
    py::object y = with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        RowOperands arrays(call, saved.first);
        saved.epilogue = epilogue_of_rows(call, arrays, saved);
        const auto from = arrays.matrix<T>(Role::x);
        const auto* const scale = arrays.values<Param<T>>(Role::weight);
        const auto* const shift = arrays.values<Param<T>>(Role::bias);
        cpu::RowsApplied<T> applied{call.call.applied()};
        if (applied.fused.residual) applied.residual = arrays.matrix<T>(Role::residual);
        const auto to = arrays.target<T>(results);
        const cpu::RowProblem problem = saved.problem();
        without_gil(problem.elements(), [&] {
            cpu::normalize_rows<T>(problem, from, to, scale, shift, saved.eps, saved.statistics(),
                                   applied, phases);
        });
        return arrays.result(results);
    });
    call.count_writes();
    return tuple_of(y, py::cast(std::move(saved)));
}

constexpr Signature kRowsForward{
    "rows_forward",
    "x, normalized_shape, weight, bias, eps, out, centered, plain=False, epilogue=None",
    "y and RowSaved: rows normalized by themselves. With `plain`, TypeError for a tensor that is\n"
    "not plain; what autograd would record is not asked. eps None: the machine epsilon of what\n"
    "elementwise arithmetic is in."};

py::object rows_forward(py::handle, const Arguments<9>& given) {
    const auto& [x, normalized_shape, weight, bias, eps, out, centered, plain, epilogue] = given;
    Intake call(Function::rows_forward, truth_of(plain));
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    take_rows(call, shape, x, weight, bias, eps, out, epilogue);
    check(call.call);
    return normalized_rows(call, saved_of(call, centered), cpu::RowPhases::both);
}

// --- rows whose values are divided among the members of a group ----------------------------------

py::array_t<double> zeros(Index rows) {
    py::array_t<double> all(static_cast<py::ssize_t>(rows));
    std::fill_n(all.mutable_data(), rows, 0.0);
    return all;
}

constexpr Signature kRowsCollect{
    "rows_collect", "x, normalized_shape, weight, bias, eps, out, centered, epilogue=None",
    "The values of a row that are here, mean, mean_low and m2 of each row, and the name of the\n"
    "dtype, after a look at all that `rows_forward` takes."};

py::object rows_collect(py::handle, const Arguments<8>& given) {
    const auto& [x, normalized_shape, weight, bias, eps, out, centered, epilogue] = given;
    Intake call(Function::rows_collect);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    take_rows(call, shape, x, weight, bias, eps, out, epilogue);
    check(call.call);
    const RowSaved saved = saved_of(call, centered);
    const cpu::RowProblem problem = saved.problem();
    const auto mean = zeros(problem.rows), low = zeros(problem.rows), m2 = zeros(problem.rows);
    const auto of = [](const py::array_t<double>& each) {
        return const_cast<double*>(each.data());
    };
    const cpu::RowStatistics into{of(mean), of(low), nullptr};
    with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        RowOperands arrays(call, saved.first);
        const auto from = arrays.matrix<T>(Role::x);
        without_gil(problem.elements(), [&] { cpu::collect_rows<T>(problem, from, into, of(m2)); });
    });
    return py::make_tuple(problem.width, mean, low, m2, name_of(saved.dtype));
}

constexpr Signature kRowsApply{
    "rows_apply",
    "x, normalized_shape, count, mean, mean_low, m2, weight, bias, eps, out, centered, "
    "epilogue=None",
    "y and RowSaved, from the Moments of whole rows, of `count` values each."};

py::object rows_apply(py::handle, const Arguments<12>& given) {
    const auto& [x, normalized_shape, count, mean, mean_low, m2, weight, bias, eps, out, centered,
                 epilogue] = given;
    Intake call(Function::rows_apply);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    take_rows(call, shape, x, weight, bias, eps, out, epilogue);
    call.read_numpy(Role::mean, mean);
    call.read_numpy(Role::mean_low, mean_low);
    call.read_numpy(Role::m2, m2);
    check(call.call);
    RowSaved saved = saved_of(call, centered);
    const auto rows = static_cast<std::size_t>(saved.rows());
    read_doubles(call[Role::mean], {saved.row(0), rows});
    read_doubles(call[Role::mean_low], {saved.row(1), rows});
    const RowValues squares(rows);
    read_doubles(call[Role::m2], {squares.data(), rows});
    cpu::finish_rows(saved.rows(), squares.data(), intake::take_real(count, "count"), call.call.eps,
                     saved.row(2));
    return normalized_rows(call, std::move(saved), cpu::RowPhases::second);
}

constexpr Signature kRowsBackward{
    "rows_backward",
    "dy, x, saved, weight, out, centered, plain=False, wants_parameters=True, residual=None, "
    "divided=None",
    "dx, dweight and dbias; without the last where rows are not centered; and the gradient of\n"
    "the residual where there was one. Without `wants_parameters` the gradients of parameters\n"
    "are not computed, and None. divided: sum_dy and sum_dy_xmu as arrays that the sums of g and\n"
    "of g * xhat of each row are put into, and nothing else is done; or these and how many values\n"
    "a row has, whose sums they are."};

template <class T>
cpu::PoolArray<Param<T>> rounded_to(const std::vector<double>& values) {
    cpu::PoolArray<Param<T>> all(values.size());
    std::ranges::transform(values, all.data(), [](double v) { return static_cast<Param<T>>(v); });
    return all;
}

// The phase of a backward pass over divided rows, and their sums.
cpu::DividedRows take_divided(py::handle object, Index rows) {
    if (!object || object.is_none()) return {};
    const auto parts = py::reinterpret_borrow<py::tuple>(object);
    const auto sums = [&](std::size_t k) {
        auto array = py::cast<py::array_t<double, py::array::c_style>>(parts[k]);
        if (static_cast<Index>(array.size()) != rows) {
            value_error("divided: expected a sum for each of ", rows, " rows, got ",
                        static_cast<Index>(array.size()));
        }
        return array.mutable_data();
    };
    const bool first = parts.size() == 2;
    return {first ? cpu::RowPhases::first : cpu::RowPhases::second,
            {sums(0), sums(1)},
            first ? 0 : py::cast<Index>(parts[2])};
}

py::object rows_backward(py::handle, const Arguments<10>& given) {
    const auto& [dy, x, kept, weight, out, centered, plain, wants_parameters, residual, of_group] =
        given;
    Intake call(Function::rows_backward, truth_of(plain));
    const RowSaved& saved = take_row_saved(kept, truth_of(centered));
    const FromForward facts = saved.facts();
    call.call.from_forward = &facts;
    call.lead(Role::x, x);
    call.read(Role::dy, dy);
    call.read(Role::weight, weight);
    if (residual) call.read(Role::residual, residual);
    call.write(Role::out, out);
    check(call.call);
    const bool wants_sums = !wants_parameters || truth_of(wants_parameters);
    const bool centers = saved.centered;
    const cpu::RowProblem problem = saved.problem();
    const cpu::DividedRows divided = take_divided(of_group, problem.rows);
    const bool writes = divided.phases != cpu::RowPhases::first;
    const auto width = static_cast<std::size_t>(problem.width);
    const cpu::PoolArray<double> dweight(wants_sums ? width : 0);
    const cpu::PoolArray<double> dbias(wants_sums && centers ? width : 0);
    const Results results(call.library()), in_kind(call.library_of_weight(weight));
    py::object weight_gradient = py::none(), bias_gradient = py::none();
    // Without an activation, dy is the residual's gradient.
    const bool makes_dresidual = writes && facts.fused.residual && facts.fused.changes_backward();
    py::object dresidual = py::reinterpret_borrow<py::object>(dy);
    const py::object dx = with_dtype(saved.dtype, [&](auto type) {
        using T = decltype(type);
        RowOperands arrays(call, saved.first);
        const auto of_y = arrays.matrix<T>(Role::dy);
        const auto of_x = arrays.matrix<T>(Role::x);
        const auto* const scale = arrays.values<Param<T>>(Role::weight);
        cpu::RowsApplied<T> applied{facts.fused};
        cpu::PoolArray<Param<T>> weight_again, bias_again;
        if (facts.fused.changes_backward()) {
            weight_again = rounded_to<T>(saved.epilogue->weight);
            bias_again = rounded_to<T>(saved.epilogue->bias);
            if (weight_again.size() > 0) applied.weight = weight_again.data();
            if (bias_again.size() > 0) applied.bias = bias_again.data();
            if (facts.fused.residual) applied.residual = arrays.matrix<T>(Role::residual);
        }
        Fresh of_residual;
        if (makes_dresidual) applied.dresidual = arrays.make<T>(results, of_residual);
        const auto to = writes ? arrays.target<T>(results) : cpu::Matrix<T>{nullptr, 1};
        without_gil(problem.elements(), [&] {
            cpu::differentiate_rows<T>(problem, of_y, of_x, to, scale, saved.statistics(),
                                       wants_sums ? dweight.data() : nullptr,
                                       wants_sums && centers ? dbias.data() : nullptr, applied,
                                       divided);
        });
        if (!writes) return py::object(py::none());
        const auto rounded = [&](const cpu::PoolArray<double>& sums) {
            using P = Param<T>;
            Fresh fresh =
                in_kind.make(DTypeOf<P>::value, saved.normalized(), c_strides(saved.normalized()));
            intake::round_each({sums.data(), sums.size()}, nullptr, static_cast<P*>(fresh.data));
            return in_kind.give(std::move(fresh));
        };
        if (wants_sums) weight_gradient = rounded(dweight);
        if (wants_sums && centers) bias_gradient = rounded(dbias);
        if (makes_dresidual) dresidual = results.give(std::move(of_residual));
        return arrays.result(results);
    });
    if (!writes) return py::none();
    call.count_writes();
    if (facts.fused.residual) {
        if (!centers) return tuple_of(dx, weight_gradient, dresidual);
        return tuple_of(dx, weight_gradient, bias_gradient, dresidual);
    }
    if (!centers) return tuple_of(dx, weight_gradient);
    return tuple_of(dx, weight_gradient, bias_gradient);
}

constexpr Signature kRowsRestored{
    "rows_restored",
    "x, rows, normalized_shape, eps, centered, weight=None, bias=None, epilogue=None",
    "RowSaved, from x and mean, mean_low and rstd of its rows as an array of float64, shape\n"
    "(3, N); and from the parameters and what followed normalization."};

py::object rows_restored(py::handle, const Arguments<8>& given) {
    const auto& [x, rows, normalized_shape, eps, centered, weight, bias, epilogue] = given;
    Intake call(Function::rows_restored);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    call.call.normalized_shape = shape;
    call.lead(Role::x, x);
    call.read(Role::rows, rows);
    if (weight) call.read(Role::weight, weight);
    if (bias) call.read(Role::bias, bias);
    take_epilogue(call, epilogue);
    call.eps(eps);
    check(call.call);
    const ArrayRef& data = call[Role::x];
    RowSaved saved(data.dtype(), data.shape(), static_cast<Index>(data.rank - shape.size()),
                   truth_of(centered), call.call.eps);
    saved.fingerprint = fingerprint_of(data);
    RowOperands arrays(call, saved.first);
    saved.epilogue = epilogue_of_rows(call, arrays, saved);
    ArrayRef row = call[Role::rows];
    row.rank = 1;
    row.steps = call[Role::rows].steps + 1;
    row.extents = call[Role::rows].extents + 1;
    for (Index k = 0; k < kRowStatistics; ++k) {
        row.data = call[Role::rows].as<char>() + k * call[Role::rows].steps[0];
        read_doubles(row, {saved.row(k), static_cast<std::size_t>(saved.rows())});
    }
    return py::cast(std::move(saved));
}

// --- RowSaved in Python --------------------------------------------------------------------------

template <Index which>
py::object view_of(const py::object& self) {
    const auto& saved = py::cast<const RowSaved&>(self);
    std::vector<py::ssize_t> shape(saved.leading().begin(), saved.leading().end());
    py::array_t<double> array(shape, saved.row(which), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::object copy_of_rows(const RowSaved& saved) {
    return py::array_t<double>(
        {py::ssize_t{kRowStatistics}, static_cast<py::ssize_t>(saved.rows())}, saved.values.data());
}

// None; or what followed normalization.
py::object state_of(const std::shared_ptr<const RowEpilogue>& epilogue) {
    if (epilogue == nullptr) return py::none();
    const Fused& fused = epilogue->fused;
    return py::make_tuple(name_of(fused.activation), fused.negative_slope, fused.residual,
                          epilogue->residual_fingerprint, epilogue->weight, epilogue->bias);
}
py::tuple state_of(const RowSaved& s) {
    return py::make_tuple(name_of(s.dtype), s.shape, s.first, s.centered, s.eps, s.fingerprint,
                          copy_of_rows(s), state_of(s.epilogue));
}

constexpr const char* kWrongState = "state: expected the state of a pickled RowSaved";

std::shared_ptr<const RowEpilogue> epilogue_of_state(const py::object& object, Index width) {
    if (object.is_none()) return nullptr;
    const auto state = py::cast<py::tuple>(object);
    if (state.size() != 6) value_error(kWrongState);
    auto epilogue = std::make_shared<RowEpilogue>();
    const int number = activation_number(py::cast<std::string>(state[0]));
    if (number == kActivations) value_error(kWrongState);
    epilogue->fused = {static_cast<Activation>(number), py::cast<double>(state[1]),
                       py::cast<bool>(state[2])};
    epilogue->residual_fingerprint = py::cast<std::uint64_t>(state[3]);
    epilogue->weight = py::cast<std::vector<double>>(state[4]);
    epilogue->bias = py::cast<std::vector<double>>(state[5]);
    for (const auto* const each : {&epilogue->weight, &epilogue->bias}) {
        if (!each->empty() && static_cast<Index>(each->size()) != width) value_error(kWrongState);
    }
    return epilogue;
}

RowSaved of_state(const py::tuple& state) {
    if (state.size() != 7 && state.size() != 8) value_error(kWrongState);
    const auto shape = py::cast<std::vector<Index>>(state[1]);
    const auto first = py::cast<Index>(state[2]);
    const auto rows = py::cast<py::array_t<double, py::array::c_style>>(state[6]);
    const bool possible = first >= 0 && first < static_cast<Index>(shape.size()) &&
                          std::ranges::all_of(shape, [](Index extent) { return extent >= 0; });
    if (!possible) value_error(kWrongState);
    RowSaved saved(dtype_named(py::cast<std::string>(state[0])), shape, first,
                   py::cast<bool>(state[3]), intake::take_eps(state[4]));
    saved.fingerprint = py::cast<std::uint64_t>(state[5]);
    if (static_cast<std::size_t>(rows.size()) != saved.values.size()) value_error(kWrongState);
    std::copy_n(rows.data(), rows.size(), saved.values.data());
    if (state.size() == 8) saved.epilogue = epilogue_of_state(state[7], saved.problem().width);
    return saved;
}

}  // namespace

void register_rows(py::module_& m) {
    py::class_<RowSaved>(
        m, "RowSaved",
        "What a forward call of layer or RMS normalization leaves for its backward "
        "call: the\nstatistics of each row, and what is needed to notice another "
        "input. Read-only.")
        .def_property_readonly("mean", &view_of<0>,
                               "Mean of each row: array of float64, of the shape of x without the "
                               "normalized axes; 0 of RMS normalization.")
        .def_property_readonly("mean_low", &view_of<1>,
                               "Low part of the mean: the exact mean is mean + mean_low. 0 but for "
                               "float64 data.")
        .def_property_readonly("rstd", &view_of<2>,
                               "1 / sqrt(var + eps) of each row, 0 where that has no value; of RMS "
                               "normalization with the mean of squares as var.")
        .def_property_readonly("rows", &copy_of_rows,
                               "mean, mean_low and rstd as one array of float64, shape (3, rows): "
                               "a copy.")
        .def_readonly("eps", &RowSaved::eps, "What was added to the variance (float).")
        .def_readonly("centered", &RowSaved::centered,
                      "Whether the mean was subtracted (bool): not by RMS normalization.")
        .def_property_readonly(
            "shape", [](const RowSaved& s) { return intake::tuple_of_integers(s.shape); },
            "Shape of x (tuple of int).")
        .def_property_readonly(
            "normalized_shape",
            [](const RowSaved& s) { return intake::tuple_of_integers(s.normalized()); },
            "Lengths of the normalized axes, the last of x (tuple of int).")
        .def_property_readonly(
            "dtype", [](const RowSaved& s) { return intake::dlpack::descr_for(s.dtype, "dtype"); },
            "Dtype of x (numpy.dtype).")
        .def_property_readonly(
            "activation",
            [](const RowSaved& s) -> py::object {
                const bool any = s.epilogue && s.epilogue->fused.changes_backward();
                if (!any) return py::none();
                return py::str(name_of(s.epilogue->fused.activation));
            },
            "Name of the activation that followed (str), or None.")
        .def_property_readonly(
            "residual", [](const RowSaved& s) { return s.epilogue && s.epilogue->fused.residual; },
            "Whether a residual was added (bool).")
        .def_property_readonly("reads_residual", &RowSaved::reads_residual,
                               "Whether the backward pass needs the residual again (bool).")
        .def("__repr__",
             [](const RowSaved& s) {
                 return concat("<bnext.RowSaved of a ", name_of(s.dtype), " input of shape ",
                               shape_text(s.shape), ", normalized_shape ",
                               shape_text(s.normalized()), ">");
             })
        .def(py::pickle([](const RowSaved& s) { return state_of(s); }, &of_state));
    Fast<9, kRowsForward, rows_forward>::add_to(m);
    Fast<10, kRowsBackward, rows_backward>::add_to(m);
    Fast<8, kRowsCollect, rows_collect>::add_to(m);
    Fast<12, kRowsApply, rows_apply>::add_to(m);
    Fast<8, kRowsRestored, rows_restored>::add_to(m);
    m.def(
        "check_normalized_shape",
        [](py::handle shape) {
            const std::vector<Index> taken = take_normalized_shape(shape);
            check_normalized_shape(taken);
            return intake::tuple_of_integers(taken);
        },
        py::arg("normalized_shape"), "normalized_shape as a tuple, if it is one of lengths >= 0.");
}

}  // namespace bnext::bindings
