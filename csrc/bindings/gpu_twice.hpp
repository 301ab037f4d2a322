// The double backward pass on a GPU, beside the CPU's in double_backward.cpp; and what both ask of
// a call.
#pragma once

#include <pybind11/numpy.h>

#include "bindings/gpu_bodies.hpp"
#include "core/double_backward.hpp"
#include "cpu/double_backward.hpp"

namespace bnext::bindings {

// The results, by their places among the bits of `wanted`.
enum class Wanted : std::uint8_t { dy, x, weight, bias, residual };

inline bool is_curved(const Taken& taken) {
    return !taken.call.call.applied().is_piecewise_linear();
}
inline bool is_wanted(const Taken& taken, Wanted which) {
    const bool may_be = which < Wanted::bias || is_curved(taken);
    return may_be && (which != Wanted::residual || taken.call.call.applied().residual) &&
           (taken.wanted >> static_cast<unsigned>(which) & 1U) != 0;
}
inline Index twice_rows(const Taken& taken) { return twice_rows_of(is_curved(taken)); }

// Rows of a number for each channel, which members of a group exchange.
using Float64 = py::array_t<double, py::array::c_style>;
inline Float64 rows_of(py::handle object, const char* name, py::ssize_t rows, Index channels) {
    auto array = py::reinterpret_borrow<py::object>(object);
    if (!Float64::check_(array)) {
        type_error(name, ": expected a contiguous array of float64, got ",
                   py::cast<std::string>(py::str(py::type::of(array).attr("__name__"))));
    }
    auto values = py::reinterpret_borrow<Float64>(array);
    if (values.ndim() != 2 || values.shape(0) != rows || values.shape(1) != channels) {
        value_error(name, ": expected shape (", rows, ", ", channels, "), got ",
                    py::cast<std::string>(py::str(values.attr("shape"))));
    }
    return values;
}

namespace gpu {

using cuda::TwiceArray;
using cuda::TwicePhases;

// A launch over the arrays of a checked call.
class TwiceLaunch : public Launch {
public:
    TwiceLaunch(Taken& taken, TwicePhases phases)
        : Launch(taken.call, *taken.engine), taken_(taken), saved_(*taken.device_saved) {
        kernel.phases = phases;
        kernel.dtype = static_cast<std::int32_t>(x().dtype());
        kernel.device = engine_.index;
        kernel.activation = static_cast<std::int32_t>(saved_.fused.activation);
        kernel.negative_slope = saved_.fused.negative_slope;
        kernel.centred = saved_.batch_statistics;
        kernel.rank = x().rank;
        kernel.channel_axis = call_.call.axis();
        kernel.shape = x().extents;
        kernel.weight = vector(Role::weight);
        kernel.ddweight = vector(Role::ddweight);
        kernel.ddbias = vector(Role::ddbias);
        kernel.statistics = Launch::taken(saved_.rows).as<double>();
        if (!empty() && saved_.fused.changes_backward()) {
            kernel.of_z = Launch::taken(saved_.of_z).as<double>();
        }
    }

    cuda::TwiceCall kernel;

    // On the data, or on copies of what kernels cannot walk; results are made as they are wanted.
    void run() {
        if (empty()) return;
        std::array<Made, kRead> operands;
        std::size_t count = 0;
        std::array<std::size_t, kRead> place{};  // of each, where it is there
        for (std::size_t k = 0; k < kRead; ++k) {
            const bool reads = kRoles[k] != Role::residual || saved_.fused.changes_backward();
            if (!call_.call.has(kRoles[k]) || !reads) continue;
            place[k] = count + 1;
            operands[count++] = given(kRoles[k]);
        }
        const std::array<Made, kRead> as_given = operands;
        const std::span<Made> inputs(operands.data(), count);
        for (const int attempt : {0, 1, 2}) {
            if (attempt == 2) operands = as_given;
            if (attempt > 0) make_walkable(inputs, attempt == 1);
            for (std::size_t k = 0; k < kRead; ++k) {
                if (place[k] != 0) set(k, operands[place[k] - 1]);
            }
            if (writes()) make_results(inputs[0]);
            if (launched()) return;
        }
        throw Error(Error::Kind::layout, *text_);
    }

    // What is given in the order of Wanted.
    py::object results() {
        if (empty()) make_results(given(Role::x));
        const auto vector_of = [&](Wanted which, const Made& made) -> py::object {
            return is_wanted(taken_, which) ? made.array : py::object(py::none());
        };
        const auto data_of = [&](std::size_t k) -> py::object {
            return made_[k].array ? made_[k].array : py::object(py::none());
        };
        return tuple_of(data_of(0), data_of(1), vector_of(Wanted::weight, of_weight_),
                        vector_of(Wanted::bias, of_bias_), data_of(2));
    }
    // Vectors for the gradients by parameters, as far as they are wanted.
    void make_vectors() {
        const auto make = [&](Wanted which, Made& made, void*& address) {
            if (!is_wanted(taken_, which)) return;
            const DType dtype = param_dtype(saved_.dtype);
            made = empty() ? Made{engine_.zeros(channels(), dtype, x_array_), {}} : gradient();
            address = made.ref.data;
        };
        make(Wanted::weight, of_weight_, kernel.of_weight);
        make(Wanted::bias, of_bias_, kernel.of_bias);
    }
    // The same, with values that are on the host.
    template <class P>
    void give_vectors(std::span<const double> of_weight, std::span<const double> of_bias) {
        const auto there = [&](Wanted which, std::span<const double> values) {
            return is_wanted(taken_, which) ? of_host(Results().vector<P>(values)) : Made{};
        };
        of_weight_ = there(Wanted::weight, of_weight);
        of_bias_ = there(Wanted::bias, of_bias);
    }
    // Rows of NumPy's, on the device for the time of the launch.
    double* rows_on_device(const Float64& values) {
        kept_.push_back(of_host(values).array);
        return Launch::taken(kept_.back()).as<double>();
    }
    py::object on_host(const Made& rows) const {
        return engine_.library->object.attr("to_numpy")(rows.array);
    }

private:
    static constexpr std::size_t kRead = 5, kWritten = 3;
    static constexpr std::array kRoles{Role::x, Role::dy, Role::ddx, Role::ddresidual,
                                       Role::residual};

    [[nodiscard]] bool writes() const {
        return kernel.phases == TwicePhases::both || kernel.phases == TwicePhases::apply;
    }
    void set(std::size_t k, const Made& array) {
        kernel.data[k] = array.ref.data;
        kernel.strides[k] = array.ref.strides;
    }
    void make_results(const Made& x) {
        constexpr std::array kWanted{Wanted::dy, Wanted::x, Wanted::residual};
        for (std::size_t k = 0; k < kWritten; ++k) {
            if (!is_wanted(taken_, kWanted[k])) continue;
            made_[k] = like(x);
            set(kRead + k, made_[k]);
        }
    }
    bool launched() {
        kernel.stream = stream();
        kernel.caller = this;
        kernel.allocate = &Launch::allocate;
        kernel.fail = &Launch::note_failure;
        text_.reset();
        engine_.twice_table().run(&kernel);
        return raise_failure();
    }

    Taken& taken_;
    const DeviceSaved& saved_;
    std::array<Made, kWritten> made_;
    Made of_weight_, of_bias_;
};

inline py::object double_backward(Taken& taken) {
    TwiceLaunch launch(taken, TwicePhases::both);
    launch.make_vectors();
    launch.run();
    return launch.results();
}

// --- in a group: what is exchanged is copied to the host -----------------------------------------

inline py::object zero_rows(Index rows, Index channels) {
    Float64 zeros({rows, channels});
    std::fill_n(zeros.mutable_data(), zeros.size(), 0.0);
    return zeros;
}

inline py::object twice_pilots(Taken& taken) {
    TwiceLaunch launch(taken, TwicePhases::find_pilots);
    if (launch.empty()) return zero_rows(2, launch.channels());
    const Made pilots = launch.rows(2);
    launch.kernel.pilots = pilots.as<double>();
    launch.run();
    return launch.on_host(pilots);
}

inline py::object twice_reduce(Taken& taken) {
    TwiceLaunch launch(taken, TwicePhases::reduce);
    const Index channels = launch.channels(), count = twice_rows(taken);
    const Float64 pilots = rows_of(taken.pilots, "pilots", 2, channels);
    if (launch.empty()) return zero_rows(count, channels);
    launch.kernel.pilots = launch.rows_on_device(pilots);
    const Made sums = launch.rows(count);
    launch.kernel.sums = sums.as<double>();
    launch.run();
    return launch.on_host(sums);
}

// The gradients by the weight and the bias, of which sums are those of all parts. On the host,
// where every member of the group has the same bits, also one without values.
inline void give_totals(Taken& taken, TwiceLaunch& launch, const Float64& pilots,
                        const Float64& total, double count) {
    if (!is_wanted(taken, Wanted::weight) && !is_wanted(taken, Wanted::bias)) return;
    const Saved& merged = taken.device_saved->merged();
    const py::object& library = taken.engine->library->object;
    const auto on_host = [&](Role role) -> std::optional<Float64> {
        const Intake& call = taken.call;
        if (!call.call.has(role)) return std::nullopt;
        return Float64::ensure(library.attr("to_numpy")(call.array(role)));
    };
    const auto data_of = [](const std::optional<Float64>& values) {
        return values ? values->data() : nullptr;
    };
    const auto weight = on_host(Role::weight), ddweight = on_host(Role::ddweight);
    const auto ddbias = on_host(Role::ddbias);
    of_nothing(merged, [&](auto type, const Problem& problem) {
        using T = decltype(type);
        const auto size = static_cast<std::size_t>(problem.channels);
        std::vector<Param<T>> of_scale;
        if (weight) of_scale.assign(weight->data(), weight->data() + size);
        std::vector<double> of_weight(size), of_bias(size);
        const cpu::Applied<T> applied{.fused = taken.device_saved->fused};
        const cpu::TwiceTotal all{total.data(), count};
        const cpu::TwiceOf<T> of{.problem = problem,
                                 .dy = {},
                                 .x = {},
                                 .statistics = merged.rows(),
                                 .weight = weight ? of_scale.data() : nullptr,
                                 .centred = true,
                                 .applied = &applied};
        const cpu::TwiceArrays<T> arrays{.ddx = {},
                                         .ddresidual = {},
                                         .ddweight = data_of(ddweight),
                                         .ddbias = data_of(ddbias),
                                         .of_dy = {},
                                         .of_x = {},
                                         .of_residual = {},
                                         .of_weight = of_weight.data(),
                                         .of_bias = of_bias.data()};
        cpu::double_backward_apply<T>(of, arrays, pilots.data(), all, all);
        launch.give_vectors<Param<T>>(of_weight, of_bias);
    });
}

inline py::object twice_apply(Taken& taken) {
    TwiceLaunch launch(taken, TwicePhases::apply);
    const Index channels = launch.channels(), count = twice_rows(taken);
    const Float64 pilots = rows_of(taken.pilots, "pilots", 2, channels);
    const Float64 total = rows_of(taken.total, "total", count, channels);
    launch.kernel.count = intake::take_real(taken.count, "count");
    const bool totals = taken.sums.is_none();
    if (totals) {
        give_totals(taken, launch, pilots, total, launch.kernel.count);
    } else {
        launch.make_vectors();
    }
    if (launch.empty()) return launch.results();
    launch.kernel.pilots = launch.rows_on_device(pilots);
    launch.kernel.total = launch.rows_on_device(total);
    if (!totals) {
        launch.kernel.sums = launch.rows_on_device(rows_of(taken.sums, "sums", count, channels));
    }
    launch.run();
    return launch.results();
}

}  // namespace gpu
}  // namespace bnext::bindings
