// Operands: a slice as the operations of the CPU take its arrays.
#pragma once

#include <memory>
#include <optional>

#include "cpu/operations.hpp"
#include "cpu/own_weights.hpp"
#include "cpu/pool_array.hpp"
#include "xla/described.hpp"

namespace bnext::foreign {

class Operands : public DescribedCall {
public:
    using DescribedCall::DescribedCall;

    // Of an array of the shape of x: all lie in C order, and so have the strides of x.
    template <class T>
    [[nodiscard]] cpu::View<T> view(std::string_view name) const {
        using Value = std::remove_const_t<T>;
        return {static_cast<T*>(values(name, type_of<Value>(), x().size())), strides()};
    }
    template <class T>
    [[nodiscard]] cpu::Affine<T> affine() const {
        return {vector<Param<T>>("weight", channels()), vector<Param<T>>("bias", channels())};
    }
    // The weights of positions, in their C order; null where there are none, and where each
    // position counts once. A pass that writes gradients has 0 outside.
    template <class T>
    [[nodiscard]] std::unique_ptr<cpu::OwnWeights<Compute<T>>> weights(
        bool zero_outside = false) const {
        using C = Compute<T>;
        const Index positions = problem().count();
        const bool has_each = has("weights");
        if (problem().elements() == 0 || !(has_each || has("counts"))) return nullptr;
        const auto size = static_cast<std::size_t>(positions);
        std::span<const C> each;
        std::span<const std::uint8_t> counts;
        const cpu::PoolArray<std::uint8_t> found(has_each ? size : 0);
        const auto is_one = [](auto value) { return value == 1; };
        if (has_each) {
            each = {vector<C>("weights", positions), size};
            // A weight that is no number counts, and makes every result one.
            const auto counts_at = [](C weight) { return std::uint8_t{!(weight <= 0)}; };
            std::ranges::transform(each, found.data(), counts_at);
            counts = {found.data(), size};
            const auto is_whole = [](C weight) { return weight == 0 || weight == 1; };
            if (std::ranges::all_of(each, is_whole)) each = {};
        } else {
            const void* const bytes = values("counts", ffi::DataType::PRED, positions);
            counts = {static_cast<const std::uint8_t*>(bytes), size};
        }
        const cpu::Outside outside = outside_of(frame().get<std::string_view>("masked"));
        if (each.empty() && std::ranges::all_of(counts, is_one)) return nullptr;
        return std::make_unique<cpu::OwnWeights<C>>(problem(), counts, each,
                                                    zero_outside ? cpu::Outside::zero : outside);
    }

    // What a forward pass applies besides; nothing without an activation and a residual.
    template <class T>
    [[nodiscard]] std::optional<cpu::Applied<T>> applied() const {
        if (!fused().any()) return {};
        cpu::Applied<T> all{fused()};
        if (has("residual")) all.residual = view<const T>("residual");
        if (has("flags")) {
            const auto words =
                static_cast<Index>(cpu::flag_words(static_cast<std::size_t>(x().size())));
            all.flags = {vector<std::uint16_t>("flags", words), strides()};
        }
        BNEXT_CHECK(!fused().keeps_flags() || all.flags.are_kept(),
                    "flags: expected an array, got none");
        if (has("dresidual")) all.dresidual = view<T>("dresidual");
        all.of_forward = affine<T>();
        return all;
    }

private:
    static cpu::Outside outside_of(std::string_view name) {
        if (name == "unchanged") return cpu::Outside::unchanged;
        return name == "normalized" ? cpu::Outside::normalized : cpu::Outside::zero;
    }
};

template <class T>
const cpu::Applied<T>* pointer_to(const std::optional<cpu::Applied<T>>& applied) {
    return applied ? &*applied : nullptr;
}
template <class C>
const cpu::Weights<C>* pointer_to(const std::unique_ptr<cpu::OwnWeights<C>>& weights) {
    return weights != nullptr ? &weights->get() : nullptr;
}

}  // namespace bnext::foreign
