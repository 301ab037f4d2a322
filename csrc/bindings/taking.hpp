// How calls take their arguments in: by the names of their parameters, in whatever order they have.
#pragma once

#include "bindings/device_saved.hpp"
#include "bindings/fastcall.hpp"
#include "bindings/operands.hpp"
#include "bindings/saved.hpp"

namespace bnext::bindings {

// A call that was taken in and checked, and the arguments that are its function's own.
struct Taken {
    Taken(Function function, bool plain, const Engine* on)
        : call(function, plain, on), engine(on) {}

    Intake call;
    const Engine* engine;  // of a call on a GPU
    const Saved* saved = nullptr;
    const DeviceSaved* device_saved = nullptr;  // of a call on a GPU
    FromForward facts{};
    SharedWeights weights;  // of positions, where the call has any
    bool bessel = true, keeps = true, over = false;
    unsigned wanted = 0;  // results, a bit each
    py::handle x, dy, weight, like, count;
    py::handle pilots, sums, total;  // of the double backward pass in a group
};

inline bool flag_of(py::handle object) {
    if (object.ptr() == Py_True) return true;
    const int truth = PyObject_IsTrue(object.ptr());
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

// A function of the module: takes its arguments in, checks the call, and hands it to `body`, or
// on a GPU to `on_gpu`. Nothing is written, and no state changes, before the check is through.
template <Function function, const Signature& signature, py::object (*body)(Taken& taken),
          py::object (*on_gpu)(Taken& taken) = nullptr>
class Operation {
public:
    // To the module; or to an engine for a GPU, which has it if there is a body for it.
    static void add_to(const py::object& m, py::handle engine) {
        if (!engine || on_gpu != nullptr) Fast<kSize, signature, &call>::add_to(m, engine);
    }

private:
    static constexpr std::size_t kSize = size_of(signature);
    // The first phases are checked for all that a pass writes, and write none of it.
    static constexpr bool kWrites =
        function != Function::collect_stats && function != Function::backward_reduce;
    // The first array, whose library is the call's.
    static constexpr std::string_view kLead = function == Function::backward_constant ? "dy"
                                              : has(signature, "x")                   ? "x"
                                                                                      : "";

    // (Constants: as expressions of a call they would be found while it runs.)
    static constexpr std::size_t kPlain = place_of(signature, "plain");
    static constexpr std::size_t kSavedPlace = place_of(signature, "saved");
    static constexpr std::size_t kLeadPlace = place_of(signature, kLead);
    static constexpr bool kHasLead = has(signature, kLead);

    static py::object call(py::handle self, const Arguments<kSize>& arguments) {
        bool plain = false;
        if constexpr (has(signature, "plain")) {
            plain = arguments[kPlain] && flag_of(arguments[kPlain]);
        }
        Taken taken(function, plain, engine_of(self));
        if constexpr (has(signature, "saved")) {
            const py::handle saved = arguments[kSavedPlace];
            const char* data = kLead == "dy" ? "dy" : "x";
            if (taken.engine == nullptr) {
                taken.saved = &take_saved(saved, function, data);
                taken.facts = taken.saved->facts();
            } else {
                taken.device_saved = &take_device_saved(saved, *taken.engine, function, data);
                taken.facts = taken.device_saved->facts();
            }
            taken.call.call.from_forward = &taken.facts;
        }
        if constexpr (kHasLead) {
            taken.x = arguments[kLeadPlace];
            constexpr Role role = role_of(kLead);
            taken.call.lead(role, taken.x);
        }
        [&]<std::size_t... k>(std::index_sequence<k...>) {
            (take<k>(taken, arguments[k]), ...);
        }(std::make_index_sequence<kSize>());
        check(taken.call.call);
        py::object result = taken.engine == nullptr ? body(taken) : on_gpu(taken);
        if constexpr (kWrites) taken.call.count_writes();
        return result;
    }

    template <std::size_t k>
    static void take(Taken& taken, py::handle object) {
        constexpr std::string_view name = name_of(signature, k);
        Intake& call = taken.call;
        if (!object) return;
        if constexpr (name == "eps") {
            call.eps(object);
        } else if constexpr (name == "channel_axis") {
            call.axis(object);
        } else if constexpr (name == "num_groups") {
            if (!object.is_none()) {
                call.call.num_groups = intake::take_integer(object, "num_groups");
            }
        } else if constexpr (name == "epilogue") {
            take_epilogue(taken, object);
        } else if constexpr (name == "weighting") {
            taken.weights = take_weighting(object, &call.call.weighting);
            if (taken.weights != nullptr && taken.engine != nullptr) {
                value_error(call.call.weighting, ": expected None for an input on a GPU, got one");
            }
        } else if constexpr (name == "momentum") {
            call.momentum(object);
        } else if constexpr (name == "num_batches_tracked") {
            call.count(object);
        } else if constexpr (name == "num_batches_skipped") {
            call.count(object, Role::num_batches_skipped);
        } else if constexpr (name == "bessel") {
            taken.bessel = flag_of(object);
        } else if constexpr (name == "keeps") {
            taken.keeps = flag_of(object);
        } else if constexpr (name == "over") {
            taken.over = flag_of(object);
        } else if constexpr (name == "wanted") {
            taken.wanted = static_cast<unsigned>(intake::take_integer(object, "wanted"));
        } else if constexpr (name == "like") {
            taken.like = object;
        } else if constexpr (name == "count") {
            taken.count = object;
        } else if constexpr (name == "pilots") {
            taken.pilots = object;
        } else if constexpr (name == "sums") {
            taken.sums = object;
        } else if constexpr (name == "total") {
            taken.total = object;
        } else if constexpr (name != "saved" && name != "plain" && name != kLead) {
            take_array<role_of(name)>(taken, object);
        }
    }

    // None; or what follows normalization: residual, activation, negative_slope.
    static void take_epilogue(Taken& taken, py::handle object) {
        if (object.is_none()) return;
        const auto parts = py::reinterpret_borrow<py::tuple>(object);
        Fused& fused = taken.call.call.fused;
        take_array<Role::residual>(taken, parts[0]);
        fused.activation = intake::take_activation(parts[1]);
        fused.negative_slope = intake::take_real(parts[2], "negative_slope");
    }

    template <Role role>
    static void take_array(Taken& taken, py::handle object) {
        constexpr bool is_running = role == Role::running_mean || role == Role::running_var;
        constexpr bool is_sum = role == Role::sum_dy || role == Role::sum_dy_xmu;
        constexpr bool is_merged = has(signature, "m2") && role != Role::weight &&
                                   role != Role::bias && role != Role::residual;
        if (role == Role::weight) taken.weight = object;
        if (role == Role::dy) taken.dy = object;
        if constexpr (role == Role::out || (is_running && has(signature, "momentum"))) {
            // Without a first array, one of these has the call's library.
            if (!kHasLead && taken.call.library() == nullptr) taken.call.belongs_to(object);
            taken.call.write(role, object);
        } else if constexpr (is_sum || is_merged) {
            taken.call.read_numpy(role, object);
        } else if constexpr (function != Function::parameter_gradients) {
            taken.call.read(role, object);
        }
    }
};

}  // namespace bnext::bindings
