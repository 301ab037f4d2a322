// Frame: one call of XLA's, its arrays by their names. Slice: one of the calls that vmap made of
// it.
//
// Python says what each array is in two attributes, `arguments` and `results`, which list names in
// the order of the arrays. Under vmap every array has further axes in front, of the mapped extents,
// or of extent 1 where an argument is not mapped; results have all of them. A slice is an index of
// these axes. Arrays lie in C order: XLA copies what does not.
#pragma once

#include <xla/ffi/api/ffi.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "core/activation.hpp"
#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext::foreign {

namespace ffi = ::xla::ffi;

// A value of XLA's, or its error as one of bnext's.
template <class Found>
auto value_of(Found found) {
    if (!found.has_value()) value_error(found.error().message());
    return *found;
}

inline Element element_of(ffi::DataType type) {
    switch (type) {
        case ffi::DataType::F32: return Element::float32;
        case ffi::DataType::F64: return Element::float64;
        case ffi::DataType::F16: return Element::float16;
        case ffi::DataType::BF16: return Element::bfloat16;
        default: return Element::other;
    }
}

inline std::string text_of_name(const void* name) { return static_cast<const char*>(name); }

struct Named {
    std::string_view name;
    ffi::AnyBuffer buffer;
};

class Frame {
public:
    Frame(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
          const ffi::Dictionary& attributes)
        : attributes_(attributes) {
        const auto take = [&](const char* list, std::size_t size, const auto& buffer) {
            auto names = get<std::string_view>(list);
            for (std::size_t k = 0; k < size; ++k) {
                const auto end = std::min(names.find(' '), names.size());
                arrays_.push_back({names.substr(0, end), buffer(k)});
                names.remove_prefix(std::min(end + 1, names.size()));
            }
        };
        arrays_.reserve(arguments.size() + results.size());
        take("arguments", arguments.size(),
             [&](std::size_t k) { return value_of(arguments.get<ffi::AnyBuffer>(k)); });
        inputs_ = arrays_.size();
        take("results", results.size(),
             [&](std::size_t k) { return *value_of(results.get<ffi::AnyBuffer>(k)); });
        BNEXT_CHECK(inputs_ > 0 && arrays_.size() > inputs_, "expected an argument and a result");
        const auto rank = static_cast<std::size_t>(get<std::int64_t>("rank"));
        const std::size_t whole = arrays_.front().buffer.dimensions().size();
        BNEXT_CHECK(whole >= rank && whole <= kMaxAxes, "expected arrays of ", rank,
                    " axes or more, got ", whole);
        mapped_ = whole - rank;
        for (std::size_t a = 0; a < mapped_; ++a) slices_ *= extents_of_slices()[a];
    }

    template <class T>
    [[nodiscard]] T get(std::string_view name) const {
        return value_of(attributes_.get<T>(name));
    }
    [[nodiscard]] Index slices() const { return slices_; }
    [[nodiscard]] std::size_t mapped() const { return mapped_; }  // how many axes vmap added
    [[nodiscard]] std::span<const Named> inputs() const { return {arrays_.data(), inputs_}; }
    [[nodiscard]] std::span<const Named> results() const {
        return {arrays_.data() + inputs_, arrays_.size() - inputs_};
    }
    [[nodiscard]] const Named* find(std::string_view name) const {
        const auto found = std::ranges::find(arrays_, name, &Named::name);
        return found == arrays_.end() ? nullptr : &*found;
    }
    // Whether slices differ in the first array alone, and in a residual if there is one, where they
    // follow each other, as they do in results.
    [[nodiscard]] bool only_data_is_mapped() const {
        const auto mapped = [&](const Named& array) {
            Index count = 1;
            for (std::size_t a = 0; a < mapped_; ++a) count *= array.buffer.dimensions()[a];
            return count;
        };
        const auto has_all = [&](const Named& array) { return mapped(array) == slices_; };
        return has_all(arrays_.front()) && std::ranges::all_of(results(), has_all) &&
               std::ranges::all_of(inputs().subspan(1), [&](const Named& array) {
                   return array.name == "residual" ? has_all(array) : mapped(array) == 1;
               });
    }
    // The place of a slice in an array, counted in its slices.
    [[nodiscard]] Index place(const Named& array, Index slice) const {
        const auto extents = array.buffer.dimensions();
        Index place = 0, step = 1;
        for (std::size_t a = mapped_; a-- > 0;) {
            const Index all = extents_of_slices()[a], mine = extents[a];
            BNEXT_CHECK(mine == all || mine == 1, array.name, ": expected ", all,
                        " mapped values or 1, got ", mine);
            if (mine != 1) place += (slice % all) * step;
            step *= mine;
            slice /= all;
        }
        return place;
    }

private:
    [[nodiscard]] const Index* extents_of_slices() const {
        return arrays_[inputs_].buffer.dimensions().begin();
    }

    ffi::Dictionary attributes_;
    std::vector<Named> arrays_;
    std::size_t inputs_ = 0, mapped_ = 0;
    Index slices_ = 1;
};

// The activation of a call.
inline Fused fused_of(const Frame& frame) {
    Fused fused;
    fused.activation = static_cast<Activation>(
        activation_number(frame.get<std::string_view>("activation")) % kActivations);
    fused.negative_slope = frame.get<double>("negative_slope");
    return fused;
}

class Slice {
public:
    Slice(const Frame& frame, Index number) : frame_(frame), number_(number) {}

    [[nodiscard]] const Frame& frame() const { return frame_; }
    [[nodiscard]] bool has(std::string_view name) const { return frame_.find(name) != nullptr; }
    [[nodiscard]] std::span<const Index> shape(std::string_view name) const {
        const auto extents = named(name).buffer.dimensions();
        BNEXT_CHECK(extents.size() >= frame_.mapped(), name, ": expected ", frame_.mapped(),
                    " axes or more, got ", extents.size());
        return {extents.begin() + frame_.mapped(), extents.size() - frame_.mapped()};
    }
    // The values of an array of which there are `count`, of a type of that many bytes.
    [[nodiscard]] void* values(std::string_view name, ffi::DataType type, Index count) const {
        const Named& array = named(name);
        Index size = 1;
        for (const Index extent : shape(name)) size *= extent;
        BNEXT_CHECK(size == count && array.buffer.element_type() == type, name, ": expected ",
                    count, " values of type ", static_cast<int>(type), ", got ", size, " of type ",
                    static_cast<int>(array.buffer.element_type()));
        const auto bytes = static_cast<Index>(ffi::ByteWidth(type)) * size;
        return static_cast<char*>(array.buffer.untyped_data()) +
               frame_.place(array, number_) * bytes;
    }
    // Numbers in double. Programs have them as pairs of words, since JAX has no float64 by default.
    [[nodiscard]] double* doubles(std::string_view name, Index count) const {
        return static_cast<double*>(values(name, ffi::DataType::U32, 2 * count));
    }
    // Null where there is none.
    template <class T>
    [[nodiscard]] T* vector(std::string_view name, Index count) const {
        return has(name) ? static_cast<T*>(values(name, type_of<T>(), count)) : nullptr;
    }
    template <class T>
    static constexpr ffi::DataType type_of() {
        if constexpr (std::is_same_v<T, float>) return ffi::DataType::F32;
        if constexpr (std::is_same_v<T, double>) return ffi::DataType::F64;
        if constexpr (std::is_same_v<T, float16>) return ffi::DataType::F16;
        if constexpr (std::is_same_v<T, bfloat16>) return ffi::DataType::BF16;
        if constexpr (std::is_same_v<T, std::uint16_t>) return ffi::DataType::U16;
    }

    // Adds all inputs that have a role.
    void refer_all(Call& call, Extents& extents) const {
        for (const Named& each : frame_.inputs()) {
            const Role role = role_of(each.name);
            if (static_cast<std::size_t>(role) < kRoles) {
                refer(each.name, call.add(role), extents);
            }
        }
        BNEXT_CHECK(call.has(Role::x), "x: expected an array, got none");
    }
    void refer(std::string_view name, ArrayRef& array, Extents& extents) const {
        const Named& of = named(name);
        const std::span<const Index> axes = shape(name);
        array.element = element_of(of.buffer.element_type());
        array.extents = axes.data();
        array.rank = static_cast<std::uint8_t>(axes.size());
        array.place = Place::cpu;
        array.is_array = true;
        array.writeable = false;
        array.object = array.supported() ? name_of(array.dtype()) : "another";
        array.text = &text_of_name;
        Index* const steps = extents.take(axes.size());
        Index step = array.item();
        for (std::size_t a = axes.size(); a-- > 0;) {
            steps[a] = step;
            step *= axes[a];
        }
        array.steps = steps;
        array.data =
            static_cast<char*>(of.buffer.untyped_data()) + frame_.place(of, number_) * step;
        complete(array, extents);
    }

private:
    [[nodiscard]] const Named& named(std::string_view name) const {
        const Named* const found = frame_.find(name);
        BNEXT_CHECK(found != nullptr, name, ": expected an array, got none");
        return *found;
    }

    const Frame& frame_;
    Index number_;
};

}  // namespace bnext::foreign
