// The arrays of one call, seen as one Problem: copies are made here, of what the kernels cannot
// walk.
#pragma once

#include <algorithm>

#include "bindings/gil.hpp"
#include "bindings/saved.hpp"
#include "core/cell_problem.hpp"
#include "cpu/flag_bits.hpp"
#include "cpu/reorder.hpp"
#include "cpu/view.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {

namespace py = pybind11;

using intake::Fresh;
using intake::Intake;
using intake::Results;

// The flags of a call with an activation: to be made, to be read, or neither.
struct CallFlags {
    Flags* made = nullptr;
    const Flags* read = nullptr;
};

// Results beside the first: how many, and who makes them. They are always fresh.
struct FurtherResults {
    int count = 0;
    const Results* from = nullptr;
};

// The inputs of one call (x, dy, the residual, ...) and its results, described together. The result
// is `out` itself where its strides suit the kernels, else fresh memory that is copied into `out`
// at the end; a fresh array where there is no `out`.
class Operands {
public:
    // Without `results`: of an operation that writes no data but further results.
    Operands(Intake& call, const std::optional<Results>& results, FurtherResults further = {},
             CallFlags flags = {})
        : call_(call),
          results_(results),
          further_(further),
          flags_(flags),
          axis_(call.call.axis()) {
        add(call.call.data());
        if (call.call.has(Role::x)) add(Role::dy);
        if (call.call.applied().any()) add(Role::residual);
        for (const Role role : {Role::ddx, Role::ddresidual}) add(role);
        if (results && call.call.has(Role::out)) wanted_ = &call[Role::out];
        const bool viewable =
            std::all_of(&in_[0], &in_[count_], [](const ArrayRef& each) { return each.viewable; });
        if (viewable && (wanted_ != nullptr ? fits_wanted() : fits_fresh())) return;
        make_walkable();  // x is one of them
        if (wanted_ != nullptr && fits_wanted()) return;
        if (!fits_fresh()) {
            copy_all();
            fits_fresh();
        }
        BNEXT_CHECK(description_.accepted(), "out: ", description_.refusal);
    }

    [[nodiscard]] const Problem& problem() const { return description_.problem; }
    // Weights of positions, as kernels take them; null without.
    template <class T>
    [[nodiscard]] std::unique_ptr<cpu::OwnWeights<Compute<T>>> weights(
        const SharedWeights& saved, bool zero_outside = false) const {
        if (saved == nullptr || problem().elements() == 0) return nullptr;
        return own_weights<Compute<T>>(*saved, problem(), in_[0].shape(), axis_,
                                       in_[0].axis_strides(), zero_outside);
    }
    [[nodiscard]] Index elements() const {
        return call_.call.is_of_cells() ? cells_.problem.elements() : problem().elements();
    }
    [[nodiscard]] const CellProblem& cells() const { return cells_.problem; }
    // The step from an example of a view below to the next.
    [[nodiscard]] Index step_of_x() const { return cells_.steps[0]; }
    [[nodiscard]] Index step_of_dy() const { return cells_.steps[place_of(Role::dy)]; }
    [[nodiscard]] Index step_of_residual() const { return cells_.steps[place_of(Role::residual)]; }
    [[nodiscard]] Index step_of_target() const { return cells_.steps[count_]; }
    [[nodiscard]] Index step_of_dresidual() const { return cells_.steps[further_at_]; }

    // The views of the first input, of dy beside x, of another input (null without), of the result,
    // and of further ones.
    template <class T>
    [[nodiscard]] cpu::View<const T> x() const {
        return input<T>(0);
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> dy() const {
        return input<T>(place_of(Role::dy));
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> other(Role role) const {
        const std::size_t place = place_of(role);
        return place == 0 ? cpu::View<const T>{nullptr, {}} : input<T>(place);
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> residual() const {
        return other<T>(Role::residual);
    }
    template <class T>
    [[nodiscard]] cpu::View<T> target() const {
        return {static_cast<T*>(direct_ ? wanted_->data : fresh_.data),
                description_.strides[count_]};
    }
    template <class T>
    [[nodiscard]] cpu::View<T> further(int k) const {
        if (k >= further_.count) return {nullptr, {}};
        const auto place = static_cast<std::size_t>(k);
        return {static_cast<T*>(made_[place].data), description_.strides[further_at_ + place]};
    }
    template <class T>
    [[nodiscard]] cpu::View<T> dresidual() const {
        return further<T>(0);
    }
    [[nodiscard]] cpu::FlagBits flags() const {
        const Flags* const flags = flags_.made != nullptr ? flags_.made : flags_.read;
        if (flags == nullptr) return {};
        return {const_cast<std::uint16_t*>(flags->words.data()), description_.strides[flags_at_]};
    }

    // None where nothing is written.
    py::object result() {
        if (!results_) return py::none();
        if (wanted_ == nullptr) return results_->give(std::move(fresh_));
        if (!direct_) intake::copy_values(*wanted_, fresh_ref_);
        return py::reinterpret_borrow<py::object>(call_.out());
    }
    py::object further_result(int k) {
        return further_.from->give(std::move(made_[static_cast<std::size_t>(k)]));
    }

private:
    void add(Role role) {
        if (!call_.call.has(role)) return;
        roles_[count_] = role;
        in_[count_++] = call_[role];
    }
    // Of an input beside the first; 0 where it is not there.
    [[nodiscard]] std::size_t place_of(Role role) const {
        std::size_t k = count_ - 1;
        while (k > 0 && roles_[k] != role) --k;
        return k;
    }
    template <class T>
    [[nodiscard]] cpu::View<const T> input(std::size_t k) const {
        return {in_[k].template as<const T>(), description_.strides[k]};
    }
    // The memory order that copies are made in: of flags that there are, else of x.
    [[nodiscard]] AxisStrides order() const {
        return flags_.read != nullptr ? AxisStrides(flags_.read->strides) : in_[0].byte_strides();
    }
    Index* dense_strides() {
        Index* const strides = call_.extents().take(in_[0].rank);
        dense_strides_like(in_[0].shape(), order(), {strides, in_[0].rank});
        return strides;
    }

    // Describes the first `inputs` inputs, an output of those strides, and what goes with it:
    // whether kernels can walk them all.
    bool fits(AxisStrides out, std::size_t inputs) {
        std::array<AxisStrides, kMaxOperands> strides;
        std::size_t n = 0;
        for (; n < inputs; ++n) strides[n] = in_[n].axis_strides();
        if (!out.empty()) strides[n++] = out;
        const bool whole = inputs == count_;
        further_at_ = n;
        for (int k = 0; whole && k < further_.count; ++k) {
            strides[n++] = {dense_strides(), in_[0].rank};
        }
        flags_at_ = n;
        if (flags_.read != nullptr) strides[n++] = flags_.read->strides;
        if (whole && flags_.made != nullptr) strides[n++] = {dense_strides(), in_[0].rank};
        if (call_.call.is_of_cells()) {
            cells_ = describe_cells(in_[0].dtype(), in_[0].shape(), axis_, call_.call.groups(),
                                    {strides.data(), n});
            description_ = {cells_.problem.example, cells_.strides, cells_.refusal};
            return description_.accepted();
        }
        description_ = describe(in_[0].dtype(), in_[0].shape(), axis_, {strides.data(), n});
        if (!description_.accepted() || !whole || flags_.made == nullptr) {
            return description_.accepted();
        }
        flags_.made->strides.assign(strides[n - 1].begin(), strides[n - 1].end());
        flags_.made->words =
            cpu::PoolArray<std::uint16_t>(cpu::flag_words(static_cast<std::size_t>(in_[0].size())));
        return true;
    }
    bool fits(AxisStrides out) { return fits(out, count_); }
    bool fits_wanted() {
        return direct_ = wanted_->viewable && fits(wanted_->axis_strides()) && make_further();
    }
    // With fresh memory in x's memory order.
    bool fits_fresh() {
        if (!results_) return fits({}) && make_further();
        Index* const strides = dense_strides();
        const std::size_t rank = in_[0].rank;
        if (!fits({strides, rank})) return false;
        const Results results = wanted_ == nullptr ? *results_ : Results();
        fresh_ = results.make(in_[0].dtype(), in_[0].shape(), {strides, rank});
        if (wanted_ != nullptr) {
            fresh_ref_ = in_[0];
            fresh_ref_.data = fresh_.data;
            Index* const steps = call_.extents().take(rank);
            for (std::size_t a = 0; a < rank; ++a) steps[a] = strides[a] * in_[0].item();
            fresh_ref_.steps = steps;
        }
        return make_further();
    }
    bool make_further() {
        for (int k = 0; k < further_.count; ++k) {
            made_[static_cast<std::size_t>(k)] =
                further_.from->make(in_[0].dtype(), in_[0].shape(), {dense_strides(), in_[0].rank});
        }
        return true;
    }

    // An input that does not fit is replaced by a copy: in the memory order of x (or the flags) if
    // the kernels can walk that, else in C order.
    void make_walkable() {
        if (!in_[0].viewable || !fits({}, 1)) {
            in_[0] = copy_of(in_[0], order());
            if (!fits({}, 1)) in_[0] = copy_of(in_[0], {});
        }
        for (std::size_t k = 1; k < count_; ++k) {
            if (!in_[k].viewable || !fits({}, k + 1)) in_[k] = copy_of(in_[k], order());
        }
    }
    // For inputs that can be read where they are, but whose order no dense output can have:
    // repeated or overlapping elements (broadcast_to, sliding windows).
    void copy_all() {
        in_[0] = copy_of(in_[0], flags_.read != nullptr ? order() : AxisStrides());
        for (std::size_t k = 1; k < count_; ++k) in_[k] = copy_of(in_[k], order());
    }

    // A dense copy whose axes lie in memory in the order of the steps `like`; of none, in C order.
    ArrayRef copy_of(const ArrayRef& array, AxisStrides like) {
        ArrayRef copy = array;
        Index* const steps = call_.extents().take(array.rank);
        dense_strides_like(array.shape(), like, {steps, array.rank});
        for (std::size_t a = 0; a < array.rank; ++a) steps[a] *= array.item();
        auto& memory = copies_[copy_count_++];
        memory = cpu::PoolArray<char>(static_cast<std::size_t>(array.size() * array.item()));
        copy.data = memory.data();
        copy.steps = steps;
        complete(copy, call_.extents());
        if (!copy_between_orders(copy, array)) intake::copy_values(copy, array);
        return copy;
    }

    // From C order to channels last, or the other way round, by all threads.
    bool copy_between_orders(const ArrayRef& to, const ArrayRef& from) const {
        if (axis_ != 1 || to.rank < 3 || !from.viewable || to.c_contiguous == from.c_contiguous) {
            return false;
        }
        const ArrayRef& other = from.c_contiguous ? to : from;
        Index expected = other.item();
        for (std::size_t a = other.rank + 1; a-- > 0;) {  // channels, planes from behind, examples
            const std::size_t of = a == other.rank ? 1 : a;
            if (a == 1) continue;
            if (other.extents[of] != 1 && other.steps[of] != expected) return false;
            expected *= other.extents[of];
        }
        const Index size = to.size();
        if (size == 0) return true;
        const Index channels = to.extents[1], count = to.extents[0];
        const Index plane = size / (count * channels);
        without_gil(size, [&] {
            cpu::transpose(from.data, to.data, to.item(), count,
                           from.c_contiguous ? channels : plane,
                           from.c_contiguous ? plane : channels);
        });
        return true;
    }

    Intake& call_;
    const std::optional<Results>& results_;
    static constexpr std::size_t kMostInputs = 5, kMostFurther = 3;

    const FurtherResults further_;
    const CallFlags flags_;
    std::array<ArrayRef, kMostInputs> in_;  // NOLINT: not initialised on purpose
    std::array<Role, kMostInputs> roles_{};
    std::size_t count_ = 0, further_at_ = 0, flags_at_ = 0;
    Index axis_;
    std::array<cpu::PoolArray<char>, 2 * kMostInputs> copies_;  // of each in two orders at most
    std::size_t copy_count_ = 0;
    const ArrayRef* wanted_ = nullptr;
    Fresh fresh_;
    std::array<Fresh, kMostFurther> made_;
    ArrayRef fresh_ref_;
    bool direct_ = false;
    Description description_;
    CellDescription cells_;  // of a norm of cells: the description is an example's
};

}  // namespace bnext::bindings
