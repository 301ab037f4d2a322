// Norms of cells as Python calls them: group and instance normalization.
#include "bindings/bodies.hpp"
#include "bindings/gpu_cells.hpp"
#include "bindings/register.hpp"
#include "cpu/cell_norm.hpp"

namespace bnext::bindings {
namespace {

template <class T>
cpu::Examples<const T> x_of(const Operands& arrays) {
    const auto view = arrays.x<T>();
    return {view.data, view.stride, arrays.step_of_x()};
}
template <class T>
cpu::Examples<T> target_of(const Operands& arrays) {
    const auto view = arrays.target<T>();
    return {view.data, view.stride, arrays.step_of_target()};
}

template <class T>
cpu::Examples<const T> residual_of(const Operands& arrays) {
    const auto view = arrays.residual<T>();
    return {view.data, view.stride, arrays.step_of_residual()};
}

// What an activation and a residual leave for the backward pass; null without.
std::shared_ptr<const SavedEpilogue> epilogue_of_cells(const Call& call) {
    const Fused fused = call.applied();
    if (!fused.any()) return nullptr;
    auto kept = std::make_shared<SavedEpilogue>();
    kept->fused = fused;
    if (fused.residual) kept->residual_fingerprint = fingerprint_of(call[Role::residual]);
    const auto channels = static_cast<std::size_t>(call.channels());
    kept->parameters.resize(2 * channels);
    const std::span<double> all(kept->parameters);
    read_parameters(call, all.first(channels), all.last(channels));
    return kept;
}

constexpr Signature kCellForward{
    "cell_forward",
    "x, num_groups, weight, bias, eps, channel_axis, out, plain=False, epilogue=None",
    "y and Saved, by the moments of each group of an example's channels; without a number\n"
    "of groups, of each channel."};

py::object cell_forward(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        cpu::CellsApplied<T> applied{call.call.applied()};
        if (applied.fused.residual) applied.residual = residual_of<T>(arrays);
        saved.count = cpu::cell_forward<T>(arrays.cells(), x_of<T>(arrays), target_of<T>(arrays),
                                           affine, saved.eps, saved.rows(), applied);
    };
    const py::object y = compute(call, Results(call.library()), pass);
    saved.epilogue = epilogue_of_cells(call.call);
    return tuple_of(y, object_of(std::move(saved)));
}

constexpr Signature kCellBackward{
    "cell_backward", "dy, x, saved, weight, out, plain=False, residual=None",
    "dx, dweight, dbias; and dresidual, if the forward call had one."};

// What the forward pass applied, for the backward pass.
template <class T>
cpu::CellsApplied<T> applied_again(const cpu::Applied<T>* again, const Operands& arrays) {
    if (again == nullptr) return {};
    cpu::CellsApplied<T> applied{again->fused};
    applied.of_forward = again->of_forward;
    if (!applied.fused.changes_backward()) applied.fused = {};  // g is dy
    if (applied.fused.reads_residual()) applied.residual = residual_of<T>(arrays);
    const auto view = arrays.dresidual<T>();
    if (view.data != nullptr) {
        applied.dresidual = {view.data, view.stride, arrays.step_of_dresidual()};
    }
    return applied;
}

py::object cell_backward(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const auto channels = static_cast<std::size_t>(call.call.channels());
    const cpu::PoolArray<double> dweight(channels), dbias(channels);
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const auto view = arrays.dy<T>();
        const AppliedAgain<T> again(saved, arrays);
        const auto applied = applied_again<T>(again.get(), arrays);
        cpu::cell_backward<T>(arrays.cells(), {view.data, view.stride, arrays.step_of_dy()},
                              x_of<T>(arrays), target_of<T>(arrays), saved.rows(), affine.weight,
                              dweight.data(), dbias.data(), applied);
    };
    py::object dresidual = py::reinterpret_borrow<py::object>(taken.dy);
    const py::object dx =
        compute(call, Results(call.library()), pass, wanted_dresidual(saved, dresidual));
    const bool has_residual = saved.epilogue && saved.epilogue->fused.residual;
    const Results parameters(call.library_of_weight(taken.weight));
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        const auto of_weight = parameters.vector<P>({dweight.data(), channels});
        const auto of_bias = parameters.vector<P>({dbias.data(), channels});
        return has_residual ? tuple_of(dx, of_weight, of_bias, dresidual)
                            : tuple_of(dx, of_weight, of_bias);
    });
}

constexpr Signature kCellRestored{
    "cell_restored",
    "x, num_groups, rows, eps, channel_axis, weight=None, bias=None, epilogue=None",
    "Saved, from x and the rows of its statistics, (5, N * G) of float64; and from the parameters\n"
    "and the activation that followed normalization."};

py::object cell_restored(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.take_rows(call[Role::rows]);
    if (saved.channels() != 0) {
        saved.count = static_cast<double>(call[Role::x].size() / saved.channels());
    }
    saved.fingerprint = fingerprint_of(call[Role::x]);
    saved.epilogue = epilogue_of_cells(call.call);
    return object_of(std::move(saved));
}

}  // namespace

void register_cell_calls(const py::object& m, py::handle engine) {
    Operation<Function::cell_forward, kCellForward, cell_forward, gpu::cell_forward>::add_to(
        m, engine);
    Operation<Function::cell_backward, kCellBackward, cell_backward, gpu::cell_backward>::add_to(
        m, engine);
    Operation<Function::cell_restored, kCellRestored, cell_restored, gpu::cell_restored>::add_to(
        m, engine);
}

}  // namespace bnext::bindings
