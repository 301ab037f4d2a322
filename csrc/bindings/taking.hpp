// How calls take their arguments in: by the names of their parameters, in whatever order they have.
#pragma once

#include "bindings/fastcall.hpp"
#include "bindings/operands.hpp"
#include "bindings/saved.hpp"

namespace bnext::bindings {

// A call that was taken in and checked, and the arguments that are its function's own.
struct Taken {
    Taken(Function function, bool plain) : call(function, plain) {}

    Intake call;
    const Saved* saved = nullptr;
    FromForward facts{};
    bool bessel = true;
    py::handle x, weight, like, count;
};

inline bool flag_of(py::handle object) {
    if (object.ptr() == Py_True) return true;
    const int truth = PyObject_IsTrue(object.ptr());
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

// A function of the module: takes its arguments in, checks the call, and hands it to `body`.
// Nothing is written, and no state changes, before the check is through.
template <Function function, const Signature& signature, py::object (*body)(Taken& taken)>
class Operation {
public:
    static void add_to(py::module_& m) { Fast<kSize, signature, &call>::add_to(m); }

private:
    static constexpr std::size_t kSize = size_of(signature);
    static consteval std::size_t place(std::string_view name) { return place_of(signature, name); }
    static consteval bool has(std::string_view name) { return place(name) < kSize; }
    // The first array, whose library is the call's.
    static constexpr std::string_view kLead = function == Function::backward_constant ? "dy"
                                              : has("x")                              ? "x"
                                                                                      : "";

    static py::object call(const Arguments<kSize>& arguments) {
        bool plain = false;
        if constexpr (has("plain")) {
            plain = arguments[place("plain")] && flag_of(arguments[place("plain")]);
        }
        Taken taken(function, plain);
        if constexpr (has("saved")) {
            taken.saved = &take_saved(arguments[place("saved")]);
            taken.facts = taken.saved->facts();
            taken.call.call.from_forward = &taken.facts;
        }
        if constexpr (has(kLead)) {
            taken.x = arguments[place(kLead)];
            constexpr Role role = role_of(kLead);
            taken.call.lead(role, taken.x);
        }
        [&]<std::size_t... k>(std::index_sequence<k...>) {
            (take<k>(taken, arguments[k]), ...);
        }(std::make_index_sequence<kSize>());
        check(taken.call.call);
        py::object result = body(taken);
        taken.call.count_writes();
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
        } else if constexpr (name == "momentum") {
            call.momentum(object);
        } else if constexpr (name == "num_batches_tracked") {
            call.count(object);
        } else if constexpr (name == "bessel") {
            taken.bessel = flag_of(object);
        } else if constexpr (name == "like") {
            taken.like = object;
        } else if constexpr (name == "count") {
            taken.count = object;
        } else if constexpr (name != "saved" && name != "plain" && name != kLead) {
            take_array<role_of(name)>(taken, object);
        }
    }

    template <Role role>
    static void take_array(Taken& taken, py::handle object) {
        constexpr bool is_running = role == Role::running_mean || role == Role::running_var;
        constexpr bool is_sum = role == Role::sum_dy || role == Role::sum_dy_xmu;
        constexpr bool is_merged = has("m2") && role != Role::weight && role != Role::bias;
        if (role == Role::weight) taken.weight = object;
        if constexpr (role == Role::out || (is_running && has("momentum"))) {
            // Without a first array, the call's library is that of one of these.
            if (!has(kLead) && taken.call.library() == nullptr) taken.call.belongs_to(object);
            taken.call.write(role, object);
        } else if constexpr (is_sum || is_merged) {
            taken.call.read_numpy(role, object);
        } else if constexpr (function != Function::parameter_gradients) {
            taken.call.read(role, object);
        }
    }
};

}  // namespace bnext::bindings
