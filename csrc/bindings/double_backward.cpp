// The double backward pass as Python calls it.
#include "cpu/double_backward.hpp"

#include <pybind11/numpy.h>

#include "bindings/bodies.hpp"
#include "bindings/gpu_twice.hpp"
#include "bindings/register.hpp"

namespace bnext::bindings {
namespace {

constexpr Signature kDoubleBackward{
    "double_backward",
    "dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual, wanted, plain=False",
    "The gradients by dy, x, weight, bias and residual of what the backward call gave, by those "
    "of\n"
    "its results. `wanted` has a bit for each; None for the others, and for the last two where "
    "they\n"
    "are 0: without an activation that is curved."};

constexpr Signature kPilots{"double_backward_pilots",
                            "dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual",
                            "Of each channel, values that sums of ddx and of g may be about, shape "
                            "(2, C), after a look at\n"
                            "all that `double_backward` takes."};

constexpr Signature kReduce{
    "double_backward_reduce",
    "dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual, pilots",
    "The sums of a part of the batch, about pilots that all parts have: rows of shape (C,)."};

constexpr Signature kApply{
    "double_backward_apply",
    "dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual, wanted, pilots, sums, "
    "total, count",
    "What `double_backward` gives, from the sums over `count` values of all parts. `sums`: of the\n"
    "gradients by parameters, of this part; None: of all."};

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

// What a pass takes and gives besides arrays of the data's size; and the places of such results
// among the results of the call, -1 for none.
struct TwiceVectors {
    const double *ddweight = nullptr, *ddbias = nullptr;
    double *of_weight = nullptr, *of_bias = nullptr;
    int of_dy = -1, of_x = -1, of_residual = -1;
    py::object* made = nullptr;
};

// f(of, twice, arrays) over the arrays of a call, without the GIL; results of the data's size are
// views of `twice`.
template <class F>
void over_arrays(Taken& taken, const FurtherResults& further, TwiceVectors vectors, const F& f) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    with_dtype(call[Role::x].dtype(), [&](auto type) {
        using T = decltype(type);
        const std::optional<Results> none;
        Operands arrays(call, none, further, flags_to_read(saved));
        const auto affine = affine_of<T>(call);
        const AppliedAgain<T> again(saved, arrays);
        const auto view = [&](int k) {
            return k < 0 ? cpu::View<T>{nullptr, {}} : arrays.further<T>(k);
        };
        const cpu::TwiceArrays<T> twice{arrays.other<T>(Role::ddx),
                                        arrays.other<T>(Role::ddresidual),
                                        vectors.ddweight,
                                        vectors.ddbias,
                                        view(vectors.of_dy),
                                        view(vectors.of_x),
                                        view(vectors.of_residual),
                                        vectors.of_weight,
                                        vectors.of_bias};
        const cpu::TwiceOf<T> of{arrays.problem(), arrays.dy<T>(), arrays.x<T>(),
                                 saved.rows(),     affine.weight,  saved.batch_statistics,
                                 again.get()};
        without_gil(arrays.elements(), [&] { f(of, twice); });
        for (int k = 0; k < further.count; ++k) {
            vectors.made[static_cast<std::size_t>(k)] = arrays.further_result(k);
        }
    });
}

// The results of either call that gives them: f(of, arrays) computes.
template <class F>
py::object results_of(Taken& taken, const F& f) {
    Intake& call = taken.call;
    const Saved& saved = *taken.saved;
    const auto wants = [&](Wanted which) { return is_wanted(taken, which); };
    Vectors vectors(call);
    // Arrays of the data's size, one after the other as they are wanted.
    const Results results(call.library());
    int count = 0;
    const auto place = [&](Wanted which) { return wants(which) ? count++ : -1; };
    std::array<py::object, 3> made;
    TwiceVectors all{.made = made.data()};
    all.ddweight = vectors.given(Role::ddweight);
    all.ddbias = vectors.given(Role::ddbias);
    if (wants(Wanted::weight)) all.of_weight = vectors.make();
    if (wants(Wanted::bias)) all.of_bias = vectors.make();
    all.of_dy = place(Wanted::dy);
    all.of_x = place(Wanted::x);
    all.of_residual = place(Wanted::residual);
    over_arrays(taken, {count, &results}, all, f);

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
    return tuple_of(array(all.of_dy), array(all.of_x), vector(all.of_weight), vector(all.of_bias),
                    array(all.of_residual));
}

py::object double_backward(Taken& taken) {
    return results_of(taken,
                      [](const auto& of, const auto& twice) { cpu::double_backward(of, twice); });
}

py::object pilots(Taken& taken) {
    Float64 rows({Index{2}, taken.call.call.channels()});
    double* const to = rows.mutable_data();
    std::fill_n(to, rows.size(), 0.0);
    over_arrays(taken, {}, {}, [&](const auto& of, const auto& twice) {
        cpu::double_backward_pilots(of, twice, to);
    });
    return rows;
}

py::object reduce(Taken& taken) {
    const Index channels = taken.call.call.channels();
    const Float64 about = rows_of(taken.pilots, "pilots", 2, channels);
    const double* const from = about.data();
    Float64 rows({twice_rows(taken), channels});
    double* const to = rows.mutable_data();
    std::fill_n(to, rows.size(), 0.0);
    Vectors vectors(taken.call);
    TwiceVectors given;
    given.ddweight = vectors.given(Role::ddweight);
    given.ddbias = vectors.given(Role::ddbias);
    over_arrays(taken, {}, given, [&](const auto& of, const auto& twice) {
        cpu::double_backward_reduce(of, twice, from, to);
    });
    return rows;
}

py::object apply(Taken& taken) {
    const Index channels = taken.call.call.channels(), rows = twice_rows(taken);
    const Float64 about = rows_of(taken.pilots, "pilots", 2, channels);
    const Float64 total = rows_of(taken.total, "total", rows, channels);
    const cpu::TwiceTotal all{total.data(), intake::take_real(taken.count, "count")};
    std::optional<Float64> part;
    if (!taken.sums.is_none()) part = rows_of(taken.sums, "sums", rows, channels);
    const double* const pilots = about.data();
    return results_of(taken, [&](const auto& of, const auto& twice) {
        const cpu::TwiceTotal mine{part ? part->data() : nullptr,
                                   static_cast<double>(of.problem.count())};
        cpu::double_backward_apply(of, twice, pilots, part ? mine : all, all);
    });
}

}  // namespace

void register_double_backward(const py::object& m, py::handle engine) {
    constexpr auto function = Function::double_backward;
    Operation<function, kDoubleBackward, double_backward, gpu::double_backward>::add_to(m, engine);
    Operation<function, kPilots, pilots, gpu::twice_pilots>::add_to(m, engine);
    Operation<function, kReduce, reduce, gpu::twice_reduce>::add_to(m, engine);
    Operation<function, kApply, apply, gpu::twice_apply>::add_to(m, engine);
}

}  // namespace bnext::bindings
