// Norms of cells as Python calls them: group and instance normalization, on the CPU.
#include "bindings/bodies.hpp"
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

constexpr Signature kCellForward{
    "cell_forward", "x, num_groups, weight, bias, eps, channel_axis, out, plain=False",
    "y and Saved, by the moments of each group of an example's channels; without a number\n"
    "of groups, of each channel."};

py::object cell_forward(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.fingerprint = fingerprint_of(call[Role::x]);
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        saved.count = cpu::cell_forward<T>(arrays.cells(), x_of<T>(arrays), target_of<T>(arrays),
                                           affine, saved.eps, saved.rows());
    };
    const py::object y = compute(call, Results(call.library()), pass);
    return tuple_of(y, object_of(std::move(saved)));
}

constexpr Signature kCellBackward{"cell_backward", "dy, x, saved, weight, out, plain=False",
                                  "dx, dweight, dbias."};

py::object cell_backward(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const auto channels = static_cast<std::size_t>(call.call.channels());
    const cpu::PoolArray<double> dweight(channels), dbias(channels);
    const auto pass = [&](auto type, const Operands& arrays, const auto& affine) {
        using T = decltype(type);
        const auto view = arrays.dy<T>();
        cpu::cell_backward<T>(arrays.cells(), {view.data, view.stride, arrays.step_of_dy()},
                              x_of<T>(arrays), target_of<T>(arrays), saved.rows(), affine.weight,
                              dweight.data(), dbias.data());
    };
    const py::object dx = compute(call, Results(call.library()), pass);
    const Results parameters(call.library_of_weight(taken.weight));
    return with_dtype(saved.dtype, [&](auto type) {
        using P = Param<decltype(type)>;
        return tuple_of(dx, parameters.vector<P>({dweight.data(), channels}),
                        parameters.vector<P>({dbias.data(), channels}));
    });
}

constexpr Signature kCellRestored{
    "cell_restored", "x, num_groups, rows, eps, channel_axis",
    "Saved, from x and the rows of its statistics, (5, N * G) of float64."};

py::object cell_restored(Taken& taken) {
    Intake& call = taken.call;
    Saved saved(call.call);
    saved.take_rows(call[Role::rows]);
    if (saved.channels() != 0) {
        saved.count = static_cast<double>(call[Role::x].size() / saved.channels());
    }
    saved.fingerprint = fingerprint_of(call[Role::x]);
    return object_of(std::move(saved));
}

}  // namespace

void register_cell_calls(const py::object& m) {
    Operation<Function::cell_forward, kCellForward, cell_forward>::add_to(m, {});
    Operation<Function::cell_backward, kCellBackward, cell_backward>::add_to(m, {});
    Operation<Function::cell_restored, kCellRestored, cell_restored>::add_to(m, {});
}

}  // namespace bnext::bindings
