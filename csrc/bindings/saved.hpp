// Saved: what a forward call leaves for its backward call. Not the activations themselves; the
// caller has x, and hands it over again.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bindings/saved_weights.hpp"
#include "core/call.hpp"
#include "core/statistics.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::bindings {

// A flag for every value of x (cpu/flag_bits.hpp), in an order of its own.
struct Flags {
    cpu::PoolArray<std::uint16_t> words;
    std::vector<Index> strides;
};

// What a call with an activation or a residual, or in place, leaves besides.
struct SavedEpilogue {
    Fused fused;
    std::uint64_t residual_fingerprint = 0;
    Flags flags;  // empty where none are kept
    // Of a norm of cells, whose rows have slabs: the weights of the channels, then the biases.
    std::vector<double> parameters;
};

// The parameters of a call in float64; 1 and 0 where there are none.
void read_parameters(const Call& call, std::span<double> weight, std::span<double> bias);

class Saved {
public:
    DType dtype = DType::float32;
    bool batch_statistics = true;  // false: mean and var were given, and are constants
    Index channel_axis = 0;
    double eps = 0;
    // Values per channel behind mean and m2, or the sum of their weights; 0 if they were given.
    double count = 0;
    std::uint64_t fingerprint = 0;
    const void* address = nullptr;  // of x; null in another process
    bool has_parameters = false;    // whether weight() and bias() are the forward call's
    Index groups = 0;               // of a norm of cells: the channels of rows are N * groups slabs
    std::shared_ptr<const SavedEpilogue> epilogue;  // null without
    SharedWeights weights;                          // of positions; null where all count alike

    Saved() = default;  // of no input at all
    // For an input of that dtype and shape; the statistics are not initialised.
    Saved(DType of, std::span<const Index> x, Index axis, double epsilon, Index groups = 0);
    // For the input of a call that was checked.
    explicit Saved(const Call& call)
        : Saved(call[Role::x].dtype(), call[Role::x].shape(), call.axis(), call.eps,
                call.is_of_cells() ? call.groups() : 0) {
        address = call[Role::x].data;
    }

    [[nodiscard]] Index channels() const { return channels_; }
    [[nodiscard]] StatisticsOut rows() { return {first(), channels_}; }
    [[nodiscard]] StatisticsIn rows() const { return {first(), channels_}; }
    [[nodiscard]] std::span<double> row(Row which) { return {rows().row(which), extent()}; }
    [[nodiscard]] std::span<const double> row(Row which) const {
        return {rows().row(which), extent()};
    }
    // Of the forward call, in float64: copies, since an optimizer may change the parameters before
    // y is made again from them. 1 and 0 where there were none.
    [[nodiscard]] std::span<double> weight() const { return {first() + all().size(), extent()}; }
    [[nodiscard]] std::span<double> bias() const { return {weight().data() + extent(), extent()}; }
    // The same, of a norm of cells: of channels.
    [[nodiscard]] std::span<const double> weight_of_channels() const {
        if (groups == 0) return weight();
        return std::span(epilogue->parameters).first(epilogue->parameters.size() / 2);
    }
    [[nodiscard]] std::span<const double> bias_of_channels() const {
        if (groups == 0) return bias();
        return std::span(epilogue->parameters).last(epilogue->parameters.size() / 2);
    }
    void keep_parameters(const Call& call) {
        read_parameters(call, weight(), bias());
        has_parameters = true;
    }
    [[nodiscard]] bool in_place() const { return epilogue != nullptr && epilogue->fused.in_place; }

    // All rows of statistics, one behind the other.
    [[nodiscard]] std::span<const double> all() const {
        return {first(), kStatisticsRows * extent()};
    }
    [[nodiscard]] std::span<const Index> shape() const {  // of x; of no input, empty
        return {reinterpret_cast<const Index*>(first() + (kStatisticsRows + 2) * extent()), rank_};
    }

    // Takes all rows, and the parameters if they follow; or all rows but the last, which was not
    // there once, and is 0 then. False: none of these.
    bool take(std::span<const double> rows);
    // mean and var are given, and constants; m2 there is none.
    void has_given_statistics();

    // All rows, shape (kStatisticsRows, C), of float64.
    void take_rows(const ArrayRef& rows);

    // What check() asks of it.
    [[nodiscard]] FromForward facts() const {
        FromForward facts{dtype, shape(), channel_axis, batch_statistics, &fingerprint};
        if (epilogue != nullptr) {
            facts.fused = epilogue->fused;
            if (epilogue->residual_fingerprint != 0) {
                facts.residual_fingerprint = &epilogue->residual_fingerprint;
            }
        }
        facts.has_parameters = has_parameters;
        facts.groups = groups;
        facts.weighted = weights != nullptr;
        return facts;
    }

private:
    [[nodiscard]] std::size_t extent() const { return static_cast<std::size_t>(channels_); }
    [[nodiscard]] double* first() const { return reinterpret_cast<double*>(memory_.data()); }

    Index channels_ = 0;
    std::size_t rank_ = 0;
    cpu::PoolArray<char> memory_;  // the rows, the parameters, and the shape: one allocation
};

// As an object of Python's type. That is a type of the interpreter's own: to make and to destroy an
// instance of pybind11's takes as long as a twentieth of a call on (64, 20).
pybind11::object object_of(Saved saved);

bool is_saved(pybind11::handle object);
// The Saved of an object, for a call of a function; an error that names the argument for anything
// else. `data`: what errors call the array that is given again.
const Saved& take_saved(pybind11::handle object, Function function, const char* data);

}  // namespace bnext::bindings
