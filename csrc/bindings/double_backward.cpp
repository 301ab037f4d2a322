// The double backward pass as Python calls it.
#include "cpu/double_backward.hpp"

#include "bindings/bodies.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

// The results, by their places among the bits of `wanted`.
enum class Wanted : std::uint8_t { dy, x, weight, bias, residual };

constexpr Signature kDoubleBackward{
    "double_backward",
    "dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual, wanted, plain=False",
    "The gradients by dy, x, weight, bias and residual of what the backward call gave, by those "
    "of\n"
    "its results. `wanted` has a bit for each; None for the others, and for the last two where "
    "they\n"
    "are 0: without an activation that is curved."};

// Vectors of a double a channel: of an argument, or null; of a result, or null.
class Vectors {
public:
    explicit Vectors(const Intake& call) : call_(call) {}
    const double* given(Role role) {
        if (!call_.call.has(role)) return nullptr;
        double* const values = make();
        read_doubles(call_[role], {values, channels()});
        return values;
    }
    double* make() { return (held_[count_++] = cpu::PoolArray<double>(channels())).data(); }

private:
    [[nodiscard]] std::size_t channels() const {
        return static_cast<std::size_t>(call_.call.channels());
    }
    const Intake& call_;
    std::array<cpu::PoolArray<double>, 4> held_;
    std::size_t count_ = 0;
};

py::object double_backward(Taken& taken) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const Fused fused = call.call.applied();
    const bool is_curved = !fused.is_piecewise_linear();
    const auto wants = [&](Wanted which) {
        const bool may_be = which < Wanted::bias || is_curved;
        return may_be && (which != Wanted::residual || fused.residual) &&
               (taken.wanted >> static_cast<unsigned>(which) & 1U) != 0;
    };
    Vectors vectors(call);
    const double* const ddweight = vectors.given(Role::ddweight);
    const double* const ddbias = vectors.given(Role::ddbias);
    double* const of_weight = wants(Wanted::weight) ? vectors.make() : nullptr;
    double* const of_bias = wants(Wanted::bias) ? vectors.make() : nullptr;

    // Arrays of the data's size, one after the other as they are wanted.
    const Results results(call.library());
    const std::optional<Results> none;
    int count = 0;
    const auto place = [&](Wanted which) { return wants(which) ? count++ : -1; };
    const int of_dy = place(Wanted::dy), of_x = place(Wanted::x);
    const int of_residual = place(Wanted::residual);
    std::array<py::object, 3> made;
    with_dtype(call[Role::x].dtype(), [&](auto type) {
        using T = decltype(type);
        Operands arrays(call, none, {count, &results}, flags_to_read(saved));
        const auto affine = affine_of<T>(call);
        const AppliedAgain<T> again(saved, arrays);
        const auto view = [&](int k) {
            return k < 0 ? cpu::View<T>{nullptr, {}} : arrays.further<T>(k);
        };
        const cpu::TwiceArrays<T> twice{arrays.other<T>(Role::ddx),
                                        arrays.other<T>(Role::ddresidual),
                                        ddweight,
                                        ddbias,
                                        view(of_dy),
                                        view(of_x),
                                        view(of_residual),
                                        of_weight,
                                        of_bias};
        without_gil(arrays.elements(), [&] {
            cpu::double_backward<T>(arrays.problem(), arrays.dy<T>(), arrays.x<T>(), saved.rows(),
                                    affine.weight, saved.batch_statistics, twice, again.get());
        });
        for (int k = 0; k < count; ++k) {
            made[static_cast<std::size_t>(k)] = arrays.further_result(k);
        }
    });
    const auto array = [&](int k) {
        return k < 0 ? py::object(py::none()) : made[static_cast<std::size_t>(k)];
    };
    const Results of_parameters(call.library_of_weight(taken.weight));
    const auto vector = [&](const double* values) -> py::object {
        if (values == nullptr) return py::none();
        return with_dtype(saved.dtype, [&](auto type) {
            const auto channels = static_cast<std::size_t>(call.call.channels());
            return of_parameters.vector<Param<decltype(type)>>(
                std::span<const double>(values, channels));
        });
    };
    return tuple_of(array(of_dy), array(of_x), vector(of_weight), vector(of_bias),
                    array(of_residual));
}

}  // namespace

void register_double_backward(const py::object& m) {
    Operation<Function::double_backward, kDoubleBackward, double_backward>::add_to(m, {});
}

}  // namespace bnext::bindings
