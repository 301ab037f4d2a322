// Layer and RMS normalization as Python calls them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/bodies.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/register.hpp"
#include "bindings/row_operands.hpp"
#include "bindings/row_saved.hpp"
#include "bindings/row_taking.hpp"
#include "cpu/rows.hpp"

namespace bnext::bindings {
namespace {

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

py::object rows_restored(py::handle, const Arguments<8>& given) {
    const auto& [x, rows, normalized_shape, eps, centered, weight, bias, epilogue] = given;
    Intake call(Function::rows_restored);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    call.call.normalized_shape = shape;
    call.lead(Role::x, x);
    call.read(Role::rows, rows);
    if (weight) call.read(Role::weight, weight);
    if (bias) call.read(Role::bias, bias);
    take_row_epilogue(call, epilogue);
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

}  // namespace

void register_rows(py::module_& m) {
    register_row_saved(m);
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
