// Saved: what a forward call leaves for its backward call. Not the activations themselves; the
// caller has x, and hands it over again.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/call.hpp"
#include "core/statistics.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {

class Saved {
public:
    DType dtype = DType::float32;
    bool batch_statistics = true;  // false: mean and var were given, and are constants
    Index channel_axis = 0;
    double eps = 0;
    Index count = 0;  // values per channel behind mean and m2; 0 if they were given
    std::uint64_t fingerprint = 0;
    std::vector<Index> shape;

    // For an input of that dtype and shape; the statistics are not initialised.
    Saved(DType of, std::span<const Index> x, Index axis, double epsilon);
    // For the input of a call that was checked.
    explicit Saved(const Call& call)
        : Saved(call[Role::x].dtype(), call[Role::x].shape(), call.axis(), call.eps) {}

    [[nodiscard]] Index channels() const { return channels_; }
    [[nodiscard]] StatisticsOut rows() { return {rows_.data(), channels_}; }
    [[nodiscard]] StatisticsIn rows() const { return {rows_.data(), channels_}; }
    [[nodiscard]] std::span<double> row(Row which) { return {rows().row(which), extent()}; }
    [[nodiscard]] std::span<const double> row(Row which) const {
        return {rows().row(which), extent()};
    }
    // All rows, one behind the other.
    [[nodiscard]] std::span<const double> all() const { return {rows_.data(), rows_.size()}; }

    // Takes all rows; or all but the last, which was not there once, and is 0 then. False: neither.
    bool take(std::span<const double> rows);
    // mean and var are given, and constants; m2 there is none.
    void has_given_statistics();

    // All rows, shape (kRows, C), of float64.
    void take_rows(const ArrayRef& rows);

    // What check() asks of it.
    [[nodiscard]] FromForward facts() const {
        return {dtype, shape, channel_axis, batch_statistics, &fingerprint};
    }

private:
    [[nodiscard]] std::size_t extent() const { return static_cast<std::size_t>(channels_); }

    Index channels_ = 0;
    cpu::PoolArray<double> rows_;  // one allocation
};

const Saved& take_saved(pybind11::handle object);

}  // namespace bnext::bindings
