// Layer and RMS normalization on a GPU, as Python calls it.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bindings/device_row_saved.hpp"
#include "bindings/register.hpp"
#include "bindings/row_operands.hpp"
#include "bindings/row_taking.hpp"
#include "cuda/row_table.hpp"

namespace bnext::bindings {
namespace gpu_rows {
namespace {

// A launch over the arrays of a checked call, as rows.
class RowLaunch : public Launch {
public:
    RowLaunch(Intake& call, const Engine& engine, Index first, bool centered)
        : Launch(call, engine), first_(first) {
        const auto shape = x().shape();
        kernel.centered = centered;
        kernel.dtype = static_cast<std::int32_t>(x().dtype());
        kernel.device = engine.index;
        kernel.eps = call.call.eps;
        const auto axis = static_cast<std::size_t>(first);
        kernel.rows = RowSaved::product(shape.first(axis));
        kernel.width = RowSaved::product(shape.subspan(axis));
    }

    cuda::RowCall kernel;

    // The rows of an array, or of a copy of one that has none.
    cuda::RowsAt rows_of(Role role) {
        const Made array = given(role);
        const Index pitch = array.ref.viewable ? pitch_of(array.ref, first_) : -1;
        return pitch > 0 ? cuda::RowsAt{array.ref.data, pitch} : dense(kept(in_c_order(array)));
    }
    // A parameter's values in C order; null where it is not given.
    const void* values(Role role) { return vector(role); }
    // The same, of a copy that the caller keeps: the second result, or None.
    py::object copy_of(Role role) {
        return call_.call.has(role) ? in_c_order(given(role)).array : py::object(py::none());
    }
    // Where the result goes: `out` if it has rows, else a new array.
    cuda::RowsAt target() {
        if (out()) {
            const ArrayRef& wanted = call_[Role::out];
            const Index pitch = wanted.viewable ? pitch_of(wanted, first_) : -1;
            if (pitch > 0) return {wanted.data, pitch};
        }
        made_ = made(x().shape(), x().dtype());
        return dense(made_);
    }
    py::object result() {
        if (!out()) return made_.array;
        if (made_.array) copy_into(out(), made_.array);
        return out();
    }
    // A new array in C order.
    Made made(std::span<const Index> shape, DType dtype) {
        return taken(engine_.empty(shape, dtype, x_array_));
    }
    Made zeros(std::span<const Index> shape, DType dtype) {
        return taken(engine_.library->object.attr("zeros")(intake::tuple_of_integers(shape),
                                                           name_of(dtype), x_array_));
    }
    cuda::RowsAt dense(const Made& array) const {
        return {array.ref.data, std::max<Index>(kernel.width, 1)};
    }

    void run() {
        if (empty()) return;
        kernel.stream = stream();
        kernel.caller = this;
        kernel.allocate = &Launch::allocate;
        kernel.fail = &Launch::note_failure;
        text_.reset();
        engine_.row_table().run(&kernel);
        raise_failure();
    }

private:
    [[nodiscard]] py::object out() const { return py::reinterpret_borrow<py::object>(call_.out()); }
    Made kept(Made array) {
        kept_.push_back(array.array);
        return array;
    }

    Index first_;
    Made made_;
};

DeviceRowSaved saved_of(const Intake& call, const Engine& engine, bool centered) {
    const ArrayRef& x = call[Role::x];
    DeviceRowSaved saved;
    saved.where = engine.where;
    saved.dtype_object = call.array(Role::x).attr(engine.dtype_name);
    saved.dtype = x.dtype();
    saved.shape.assign(x.shape().begin(), x.shape().end());
    saved.first = static_cast<Index>(x.rank - call.call.normalized_shape.size());
    saved.centered = centered;
    saved.eps = call.call.eps;
    saved.fused = call.call.applied();
    saved.fused.in_place = false;
    return saved;
}

// What the backward pass makes z of again, where it has to.
void keep_parameters(RowLaunch& launch, DeviceRowSaved& saved) {
    if (!saved.fused.changes_backward()) return;
    saved.weight = launch.copy_of(Role::weight);
    saved.bias = launch.copy_of(Role::bias);
}

void apply(cuda::RowCall& kernel, const Fused& fused) {
    kernel.activation = static_cast<std::int32_t>(fused.activation);
    kernel.negative_slope = fused.negative_slope;
}

py::object rows_forward(py::handle self, const Arguments<9>& given) {
    const auto& [x, normalized_shape, weight, bias, eps, out, centered, plain, epilogue] = given;
    const Engine& engine = *engine_of(self);
    Intake call(Function::rows_forward, truth_of(plain), &engine);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    take_rows(call, shape, x, weight, bias, eps, out, epilogue);
    check(call.call);

    DeviceRowSaved saved = saved_of(call, engine, truth_of(centered));
    RowLaunch launch(call, engine, saved.first, saved.centered);
    std::vector<Index> of_rows{kRowStatistics};
    of_rows.insert(of_rows.end(), saved.leading().begin(), saved.leading().end());
    const Made rows = launch.empty() ? launch.zeros(of_rows, DType::float64)
                                     : launch.made(of_rows, DType::float64);
    saved.rows = rows.array;
    launch.kernel.statistics = rows.as<double>();
    launch.kernel.out = launch.target();
    if (!launch.empty()) {
        launch.kernel.x = launch.rows_of(Role::x);
        launch.kernel.weight = launch.values(Role::weight);
        launch.kernel.bias = launch.values(Role::bias);
        if (saved.fused.residual) launch.kernel.residual = launch.rows_of(Role::residual);
        apply(launch.kernel, saved.fused);
        keep_parameters(launch, saved);
    }
    launch.run();
    const py::object y = launch.result();
    call.count_writes();
    return tuple_of(y, py::cast(std::move(saved)));
}

py::object rows_backward(py::handle self, const Arguments<10>& given) {
    const auto& [dy, x, kept, weight, out, centered, plain, wants_parameters, residual, divided] =
        given;
    const Engine& engine = *engine_of(self);
    Intake call(Function::rows_backward, truth_of(plain), &engine);
    const DeviceRowSaved& saved = take_device_row_saved(kept, engine, truth_of(centered));
    const FromForward facts = saved.facts();
    call.call.from_forward = &facts;
    call.lead(Role::x, x);
    call.read(Role::dy, dy);
    call.read(Role::weight, weight);
    if (residual) call.read(Role::residual, residual);
    call.write(Role::out, out);
    check(call.call);

    RowLaunch launch(call, engine, saved.first, saved.centered);
    const bool wants_sums = !wants_parameters || truth_of(wants_parameters);
    const auto gradient = [&]() -> py::object {
        const DType dtype = param_dtype(saved.dtype);
        return launch.empty() ? launch.zeros(saved.normalized(), dtype).array
                              : launch.made(saved.normalized(), dtype).array;
    };
    py::object dweight = py::none(), dbias = py::none();
    if (wants_sums) dweight = gradient();
    if (wants_sums && saved.centered) dbias = gradient();
    // Without an activation, dy is the residual's gradient.
    py::object dresidual = py::reinterpret_borrow<py::object>(dy);
    const bool makes_dresidual = facts.fused.residual && facts.fused.changes_backward();
    launch.kernel.backward = true;
    launch.kernel.out = launch.target();
    if (makes_dresidual) {
        const Made made = launch.made(saved.shape, saved.dtype);
        dresidual = made.array;
        launch.kernel.dresidual = launch.dense(made);
    }
    if (!launch.empty()) {
        launch.kernel.x = launch.rows_of(Role::x);
        launch.kernel.dy = launch.rows_of(Role::dy);
        launch.kernel.weight = launch.values(Role::weight);
        launch.kernel.statistics = launch.taken(saved.rows).as<double>();
        if (!dweight.is_none()) launch.kernel.dweight = launch.taken(dweight).ref.data;
        if (!dbias.is_none()) launch.kernel.dbias = launch.taken(dbias).ref.data;
        if (facts.fused.changes_backward()) {
            apply(launch.kernel, facts.fused);
            if (facts.fused.residual) launch.kernel.residual = launch.rows_of(Role::residual);
            const auto address = [&](const py::object& array) -> const void* {
                return array.is_none() ? nullptr : launch.taken(array).ref.data;
            };
            launch.kernel.z_weight = address(saved.weight);
            launch.kernel.z_bias = address(saved.bias);
        }
    }
    launch.run();
    const py::object dx = launch.result();
    call.count_writes();
    if (facts.fused.residual) {
        if (!saved.centered) return tuple_of(dx, dweight, dresidual);
        return tuple_of(dx, dweight, dbias, dresidual);
    }
    if (!saved.centered) return tuple_of(dx, dweight);
    return tuple_of(dx, dweight, dbias);
}

py::object rows_restored(py::handle self, const Arguments<8>& given) {
    const auto& [x, rows, normalized_shape, eps, centered, weight, bias, epilogue] = given;
    const Engine& engine = *engine_of(self);
    Intake call(Function::rows_restored, false, &engine);
    const std::vector<Index> shape = take_normalized_shape(normalized_shape);
    call.call.normalized_shape = shape;
    call.lead(Role::x, x);
    call.read(Role::rows, rows);
    if (weight) call.read(Role::weight, weight);
    if (bias) call.read(Role::bias, bias);
    take_row_epilogue(call, epilogue);
    call.eps(eps);
    check(call.call);
    DeviceRowSaved saved = saved_of(call, engine, truth_of(centered));
    RowLaunch launch(call, engine, saved.first, saved.centered);
    saved.rows = launch.copy_of(Role::rows);
    keep_parameters(launch, saved);
    return py::cast(std::move(saved));
}

}  // namespace
}  // namespace gpu_rows

void register_gpu_rows(const py::object& calls, py::handle engine) {
    Fast<9, kRowsForward, gpu_rows::rows_forward>::add_to(calls, engine);
    Fast<10, kRowsBackward, gpu_rows::rows_backward>::add_to(calls, engine);
    Fast<8, kRowsRestored, gpu_rows::rows_restored>::add_to(calls, engine);
}

}  // namespace bnext::bindings
