// Parts of the check of a call: of one array, whatever function it is for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext {

// For a vector that does not fit the channels of x: the axis it fits, where libraries have them.
inline std::string remedy_of(const ArrayRef& vector, std::span<const Index> x) {
    if (vector.rank != 1 || x.empty()) return {};
    const Index size = vector.extent(0);
    const bool last = x.back() == size;
    if (!last && (x.size() < 2 || x[1] != size)) return {};
    const char* axis = last ? "-1" : "1";
    return concat(" (axis ", axis, " of x has ", size, ": channel_axis=", axis, ")");
}

// `x`: the shape that a vector of channels goes with.
inline void check_shape(const ArrayRef& array, const char* name, std::span<const Index> expected,
                        std::span<const Index> x = {}) {
    if (!std::ranges::equal(array.shape(), expected)) {
        value_error(name, ": expected shape ", shape_text(expected), ", got ",
                    shape_text(array.shape()), remedy_of(array, x));
    }
}

inline void check_memory(const ArrayRef& array, const char* name) {
    if (array.place == Place::cpu) return;  // where intake knows more
    if (array.data == nullptr && array.size() > 0) {
        type_error(name,
                   ": expected an array whose memory holds its values, got one without memory");
    }
    const auto address = reinterpret_cast<std::uintptr_t>(array.data);
    if (address % static_cast<std::uintptr_t>(array.item()) != 0) {
        value_error(name, ": expected an address that is a multiple of its elements'");
    }
}

// One of two dtypes, or, where they are the same, that one.
inline void check_dtype(const ArrayRef& array, const char* name, DType expected, DType other) {
    check_memory(array, name);
    if (array.is(expected) || array.is(other)) return;
    type_error(name, ": expected dtype ", name_of(expected), other != expected ? " or " : "",
               other != expected ? name_of(other) : "", ", got ", array.type_text());
}

template <class... Parts>
[[noreturn]] void of_another(const Parts&... parts) {
    throw Error(Error::Kind::saved, concat("saved: made from ", parts...));
}

inline void check_x(const Call& call) {
    if (!call.has(Role::x)) type_error("x: expected an array, got None");
    const ArrayRef& x = call[Role::x];
    check_memory(x, "x");
    if (!x.supported()) {
        type_error("x: expected dtype float16, bfloat16, float32 or float64, got ", x.type_text());
    }
    if (x.rank == 0) value_error("x: expected at least 1 dimension, got 0");
}

inline void check_like(const Call& call, Role role, DType dtype, std::span<const Index> shape) {
    const char* name = name_of(role);
    if (!call.has(role)) type_error(name, ": expected an array, got None");
    check_dtype(call[role], name, dtype, dtype);
    check_shape(call[role], name, shape);
}

// Of a backward call: the forward call's residual, which is needed where it is read.
inline void check_residual_again(const Call& call, bool is_read) {
    const FromForward& saved = *call.from_forward;
    if (!call.has(Role::residual)) {
        if (!is_read) return;
        value_error("residual: expected the forward call's, since the derivative of ",
                    name_of(saved.fused.activation), " follows from it, got None");
    }
    if (!saved.fused.residual) {
        value_error("residual: expected None, since the forward call had none");
    }
    check_like(call, Role::residual, saved.dtype, saved.shape);
    if (is_read && saved.residual_fingerprint != nullptr &&
        *saved.residual_fingerprint != fingerprint_of(call[Role::residual])) {
        of_another("another residual, or it was changed since (its elements differ)");
    }
}

// `out` may be dy itself, unless dy is the residual's gradient.
inline void check_not_over_dresidual(const Call& call) {
    const Fused& fused = call.from_forward->fused;
    if (fused.residual && !fused.changes_backward() && call.writes_over(Role::dy)) {
        value_error("out: expected memory of its own, got dy, which is dresidual as well");
    }
}

// `over`: the input that `out` itself may be.
inline void check_out(const Call& call, DType dtype, std::span<const Index> shape,
                      std::initializer_list<Role> inputs, Role over = Role::out) {
    if (!call.has(Role::out)) return;
    const ArrayRef& written = call[Role::out];
    if (!written.is_array) {
        type_error("out: expected a numpy array, got ", written.type_text());
    }
    check_like(call, Role::out, dtype, shape);
    if (!written.writeable) {
        value_error("out: expected a writeable array, got a read-only one");
    }
    const auto no_overlap = [](bool overlaps, const char* with) {
        if (overlaps) {
            value_error("out: expected memory of its own, got an array that overlaps ", with);
        }
    };
    // Strides in bytes, since an array that is not aligned has none in elements.
    no_overlap(!written.c_contiguous && may_overlap_itself(written.shape(), written.byte_strides()),
               "itself");
    for (const Role role : inputs) {
        if (role == over && call.writes_over(role)) continue;
        no_overlap(call.has(role) && may_meet(written, call[role]) &&
                       call.share_memory(written, call[role]),
                   name_of(role));
    }
}

}  // namespace bnext
