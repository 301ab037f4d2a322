#include <cmath>
#include <limits>

#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext {

void check_axis(Index axis, Index rank, const std::string& text) {
    if (axis >= -rank && axis < rank) return;
    value_error("channel_axis: expected an axis of a ", rank, "-dimensional array (", -rank, " to ",
                rank - 1, "), got ", text.empty() ? std::to_string(axis) : text);
}

void check_eps(double eps) {
    if (!(eps >= 0.0) || std::isinf(eps)) {
        value_error("eps: expected a finite number >= 0, got ", number_text(eps));
    }
}

void check_negative_slope(double slope) {
    if (!std::isfinite(slope)) {
        value_error("negative_slope: expected a finite number, got ", number_text(slope));
    }
}

void check_momentum(double momentum) {
    if (!std::isfinite(momentum)) {
        value_error("momentum: expected a finite number or None, got ", number_text(momentum));
    }
}

void check_counter(const ArrayRef& counter, const char* name) {
    if (!counter.is_array || counter.element != Element::int64 || counter.rank != 0 ||
        !counter.writeable ||
        reinterpret_cast<std::uintptr_t>(counter.data) % sizeof(std::int64_t) != 0) {
        type_error(name, ": expected a writeable int64 array of shape (), got ",
                   counter.type_text());
    }
    if (counter.place == Place::cuda) return;  // where it cannot be read
    constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max() - 1;
    const std::int64_t count = *counter.as<std::int64_t>();
    if (count < 0 || count > largest) {
        value_error(name, ": expected a count of batches from 0 to ", largest, ", got ", count);
    }
}

void check_more_than_one(std::span<const Index> shape, Index count) {
    if (count == 1) {
        value_error("Expected more than 1 value per channel when training, got input size ",
                    shape_text(shape));
    }
}

void check_num_groups(Index groups, Index channels) {
    if (groups >= 1 && channels % groups == 0) return;
    value_error("num_groups: expected a divisor of the number of channels, ", channels, ", got ",
                groups);
}

void check_spatial(std::span<const Index> shape, Index channel_axis) {
    Index values = 1;
    for (std::size_t a = 1; a < shape.size(); ++a) {
        values *= static_cast<Index>(a) == channel_axis ? 1 : shape[a];
    }
    if (values == 1) {
        value_error("Expected more than 1 spatial element when training, got input size ",
                    shape_text(shape));
    }
}

}  // namespace bnext
