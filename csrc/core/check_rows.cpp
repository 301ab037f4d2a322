#include "core/call.hpp"
#include "core/check_parts.hpp"
#include "core/error.hpp"
#include "core/statistics.hpp"

namespace bnext {
namespace {

// As Python prints the shape of any leading axes and these.
std::string any_and(std::span<const Index> shape) {
    std::string text = "(*";
    for (const Index extent : shape) text += concat(", ", extent);
    return text + ")";
}

void check_parameters(const Call& call, DType dtype, std::span<const Index> shape) {
    for (const Role role : {Role::weight, Role::bias}) {
        if (call.has(role)) check_like(call, role, param_dtype(dtype), shape);
    }
}

void check_data(const Call& call) {
    check_normalized_shape(call.normalized_shape);
    check_x(call);
    const auto shape = call[Role::x].shape(), wanted = call.normalized_shape;
    if (shape.size() < wanted.size() || !std::ranges::equal(shape.last(wanted.size()), wanted)) {
        value_error("x: expected shape ", any_and(wanted), ", since normalized_shape is ",
                    shape_text(wanted), ", got ", shape_text(shape));
    }
    check_eps(call.eps);
    check_negative_slope(call.fused.negative_slope);
    if (call.has(Role::residual)) check_like(call, Role::residual, call[Role::x].dtype(), shape);
}

void check_backward(const Call& call) {
    const FromForward& saved = *call.from_forward;
    check_x(call);
    const ArrayRef& x = call[Role::x];
    if (!std::ranges::equal(saved.shape, x.shape())) {
        of_another("an input of shape ", shape_text(saved.shape), ", got x of shape ",
                   shape_text(x.shape()));
    }
    if (!x.is(saved.dtype)) {
        of_another("a ", name_of(saved.dtype), " input, got x of ", name_of(x.dtype()));
    }
    if (saved.fingerprint != nullptr && *saved.fingerprint != fingerprint_of(x)) {
        of_another("another x, or x was changed since (their elements differ)");
    }
    check_like(call, Role::dy, saved.dtype, saved.shape);
    check_parameters(call, saved.dtype,
                     saved.shape.subspan(static_cast<std::size_t>(saved.channel_axis)));
    check_residual_again(call, saved.reads_residual());
    check_not_over_dresidual(call);
    check_out(call, saved.dtype, saved.shape, {Role::dy, Role::x, Role::residual, Role::weight},
              Role::dy);
}

}  // namespace

void check_normalized_shape(std::span<const Index> shape) {
    if (shape.empty()) value_error("normalized_shape: expected at least 1 dimension, got ()");
    for (const Index extent : shape) {
        if (extent < 0) {
            value_error("normalized_shape: expected lengths >= 0, got ", shape_text(shape));
        }
    }
}

void check_rows(const Call& call) {
    if (call.function == Function::rows_backward) return check_backward(call);
    check_data(call);
    const ArrayRef& x = call[Role::x];
    if (call.function == Function::rows_restored) {
        Index rows = 1;
        for (const Index extent : x.shape().first(x.rank - call.normalized_shape.size())) {
            rows *= extent;
        }
        check_like(call, Role::rows, DType::float64, std::array{kRowStatistics, rows});
        return check_parameters(call, x.dtype(), call.normalized_shape);
    }
    if (call.function == Function::rows_apply) {
        Index rows = 1;
        for (const Index extent : x.shape().first(x.rank - call.normalized_shape.size())) {
            rows *= extent;
        }
        for (const Role role : {Role::mean, Role::mean_low, Role::m2}) {
            check_like(call, role, DType::float64, std::array{rows});
        }
    }
    check_parameters(call, x.dtype(), call.normalized_shape);
    check_out(call, x.dtype(), x.shape(), {Role::x, Role::residual, Role::weight, Role::bias});
}

}  // namespace bnext
