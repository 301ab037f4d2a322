// Call: one call of a function, with its arrays by their roles; and the one check of all calls.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/activation.hpp"
#include "core/array_ref.hpp"

namespace bnext {

// What is called, as Python names it.
enum class Function : std::uint8_t {
    forward,
    normalize,
    normalize_by_running,
    backward,
    backward_constant,
    double_backward,
    moments,
    restored,
    collect_stats,
    apply_norm,
    recompute,
    move_running,
    backward_reduce,
    backward_apply,
    parameter_gradients,
    cell_forward,  // group and instance normalization
    cell_backward,
    cell_restored,
    rows_forward,  // layer and RMS normalization
    rows_collect,  // of rows whose values are divided among the members of a group
    rows_apply,
    rows_backward,
    rows_restored,
};

constexpr bool is_of_cells(Function function) {
    return function == Function::cell_forward || function == Function::cell_backward ||
           function == Function::cell_restored;
}
// The functions whose result a later call takes, as errors name them. (Those of rows have the name
// of either norm.)
constexpr const char* forward_of(bool of_cells) {
    return of_cells ? "group_norm_forward or instance_norm_forward" : "batch_norm_forward";
}

// What an array is for. Errors call an array by its role.
enum class Role : std::uint8_t {
    x,
    dy,
    mean,
    var,
    m2,
    mean_low,
    rows,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    num_batches_skipped,
    sum_dy,
    sum_dy_xmu,
    out,
    residual,
    ddx,
    ddweight,
    ddbias,
    ddresidual,
};
constexpr std::size_t kRoles = 21;
inline constexpr std::array<const char*, kRoles> kRoleNames{"x",
                                                            "dy",
                                                            "mean",
                                                            "var",
                                                            "m2",
                                                            "mean_low",
                                                            "rows",
                                                            "weight",
                                                            "bias",
                                                            "running_mean",
                                                            "running_var",
                                                            "num_batches_tracked",
                                                            "num_batches_skipped",
                                                            "sum_dy",
                                                            "sum_dy_xmu",
                                                            "out",
                                                            "residual",
                                                            "ddx",
                                                            "ddweight",
                                                            "ddbias",
                                                            "ddresidual"};

constexpr const char* name_of(Role role) { return kRoleNames[static_cast<std::size_t>(role)]; }
constexpr Role role_of(std::string_view name) {  // of a name that is one
    std::size_t role = 0;
    while (role < kRoleNames.size() && name != kRoleNames[role]) ++role;
    return static_cast<Role>(role);
}

// What a forward call has left for this one.
struct FromForward {
    DType dtype;
    std::span<const Index> shape;
    Index channel_axis;
    bool batch_statistics;
    const std::uint64_t* fingerprint;  // null: whether x has changed is not asked
    Fused fused{};                     // what it applied besides
    const std::uint64_t* residual_fingerprint = nullptr;  // null: not asked
    bool has_parameters = false;                          // whether weight and bias are known
    bool has_flags = true;  // where they can be: not on a GPU, which reads the residual again
    Index groups = 0;       // of a norm of cells (core/cells.hpp); 0: batch normalization
    bool weighted = false;  // whether positions had weights

    // Whether the backward pass reads the residual.
    [[nodiscard]] bool reads_residual() const {
        return fused.reads_residual() || (!has_flags && fused.keeps_flags());
    }
};

struct Call {
    explicit Call(Function of) : function(of) {}
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    Function function;
    Index channel_axis = 0;  // negative counts from the end
    std::string axis_text;   // as it was given, where Index does not say it
    double eps = 0;
    double momentum = 0;
    std::optional<Index> num_groups;  // of group normalization; none: each channel is a group
    Fused fused{};                    // of a forward pass, but for whether there is a residual
    const FromForward* from_forward = nullptr;
    const char* weighting = nullptr;  // the argument that gives positions weights, if one does
    std::span<const Index> normalized_shape{};  // of functions of rows: the trailing axes
    // Whether two arrays share an element; asked where their bounds meet.
    bool (*share_memory)(const ArrayRef&, const ArrayRef&) = nullptr;

    [[nodiscard]] bool is_of_rows() const { return function >= Function::rows_forward; }
    [[nodiscard]] bool has(Role role) const { return (given_ >> index(role) & 1U) != 0; }
    [[nodiscard]] const ArrayRef& operator[](Role role) const { return arrays_[index(role)]; }
    ArrayRef& add(Role role) {
        given_ |= 1U << index(role);
        return arrays_[index(role)];
    }
    // What the call applies besides: of a backward pass, what its forward pass did.
    [[nodiscard]] Fused applied() const {
        if (from_forward != nullptr) return from_forward->fused;
        Fused all = fused;
        all.residual = has(Role::residual);
        all.in_place = writes_over(Role::x);
        all.without_flags = is_of_cells();  // a slab's arrays are read again from a cache
        return all;
    }
    // Whether `out` is that array itself, on the CPU.
    [[nodiscard]] bool writes_over(Role role) const {
        if (!has(Role::out) || !has(role)) return false;
        const ArrayRef &written = (*this)[Role::out], &read = (*this)[role];
        return written.is_array && read.is_array && written.place == Place::cpu &&
               read.place == Place::cpu && same_places(written, read);
    }
    [[nodiscard]] Role data() const { return has(Role::x) ? Role::x : Role::dy; }
    [[nodiscard]] Index axis() const {  // from the front, of a call that was checked
        if (from_forward != nullptr) return from_forward->channel_axis;
        return channel_axis < 0 ? channel_axis + (*this)[Role::x].rank : channel_axis;
    }
    [[nodiscard]] Index channels() const {
        if (from_forward != nullptr) {
            return from_forward->shape[static_cast<std::size_t>(from_forward->channel_axis)];
        }
        return (*this)[Role::x].extent(axis());
    }

    // Of a norm of cells.
    [[nodiscard]] bool is_of_cells() const { return bnext::is_of_cells(function); }
    [[nodiscard]] Index groups() const {
        if (from_forward != nullptr) return from_forward->groups;
        return num_groups.value_or(channels() == 0 ? 1 : channels());  // 0: of no norm of cells
    }

private:
    static constexpr std::size_t index(Role role) { return static_cast<std::size_t>(role); }

    std::uint32_t given_ = 0;
    std::array<ArrayRef, kRoles> arrays_;  // NOLINT: not initialised on purpose
};

// Throws Error where an argument is wrong: names the argument, what was expected and what came.
// Nothing has been written then, and no element of data been read but for fingerprints.
void check(const Call& call);

// The part of it for a forward call whose `out` is x, if it is: the backward pass finds x from y.
void check_in_place(const Call& call);

// The check of the functions of rows.
void check_rows(const Call& call);

// Parts of it, for callers that have no arrays yet.
void check_axis(Index axis, Index rank, const std::string& text = {});
void check_eps(double eps);
void check_momentum(double momentum);
void check_negative_slope(double slope);
void check_invertible(const Fused& fused);
void check_counter(const ArrayRef& counter, const char* name);
void check_normalized_shape(std::span<const Index> shape);
void check_more_than_one(std::span<const Index> shape, Index count);
void check_num_groups(Index groups, Index channels);
void check_spatial(std::span<const Index> shape, Index channel_axis);

}  // namespace bnext
