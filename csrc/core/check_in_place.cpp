#include <cmath>
#include <vector>

#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext {
namespace {

constexpr const char* kSince = " in place (out is x), since the backward pass has y alone";

void check_fused(const Fused& fused, DType dtype) {
    check_invertible(fused);
    if (fused.residual) value_error("residual: expected None", kSince, ", got an array");
    // Products with the slope would lose digits.
    if (fused.activation == Activation::leaky_relu &&
        fused.negative_slope < smallest_normal(dtype)) {
        value_error("negative_slope: expected at least ", number_text(smallest_normal(dtype)),
                    " for ", name_of(dtype), kSince, ", got ", number_text(fused.negative_slope));
    }
}

// y = xhat * weight + bias is rounded to so many significant bits. Of these, at least half are left
// for xhat, by |bias / weight|.
void check_parameters(const Call& call, DType dtype) {
    const auto read = [&](Role role, double otherwise) {
        std::vector<double> row(static_cast<std::size_t>(call.channels()), otherwise);
        if (call.has(role)) read_doubles(call[role], row);
        return row;
    };
    const std::vector<double> weight = read(Role::weight, 1.0), bias = read(Role::bias, 0.0);
    const double most = std::ldexp(1.0, significant_bits(dtype) / 2);
    const double least = smallest_normal(dtype);
    for (std::size_t c = 0; c < weight.size(); ++c) {
        const double size = std::abs(weight[c]);
        const bool fits = std::isfinite(size) && size >= least && std::abs(bias[c]) <= most * size;
        if (fits) continue;
        value_error("weight: expected magnitudes of at least |bias| / ", number_text(most),
                    " and of ", number_text(least), " for ", name_of(dtype), kSince, ", got ",
                    number_text(weight[c]), " beside a bias of ", number_text(bias[c]),
                    " in channel ", c);
    }
}

}  // namespace

void check_invertible(const Fused& fused) {
    if (fused.is_invertible()) return;
    const bool leaky = fused.activation == Activation::leaky_relu;
    value_error("activation: expected None, or leaky_relu with a negative_slope above 0,", kSince,
                ", got ", name_of(fused.activation),
                leaky ? concat(" with ", number_text(fused.negative_slope)) : "");
}

void check_in_place(const Call& call) {
    const Fused fused = call.applied();
    if (!fused.in_place) return;
    const DType dtype = call[Role::x].dtype();
    check_fused(fused, dtype);
    check_parameters(call, dtype);
}

}  // namespace bnext
