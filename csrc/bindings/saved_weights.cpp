#include "bindings/saved_weights.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "core/error.hpp"

namespace bnext::bindings {

namespace py = pybind11;

namespace {

constexpr const char* kOutsides[] = {"zero", "normalized", "unchanged"};

cpu::Outside outside_of(const std::string& name) {
    for (std::size_t k = 0; k < std::size(kOutsides); ++k) {
        if (name == kOutsides[k]) return static_cast<cpu::Outside>(k);
    }
    value_error("masked: expected 'zero', 'normalized' or 'unchanged', got '", name, "'");
}

template <class T>
std::vector<T> copy_of(py::handle object) {
    const auto array = py::cast<py::array_t<T, py::array::c_style | py::array::forcecast>>(object);
    return {array.data(), array.data() + array.size()};
}

// Values in C order over `axes`, in the order of these axes: their numbers from the slowest on.
template <class From, class To>
std::vector<To> reordered(const std::vector<From>& values, std::span<const Index> shape,
                          std::span<const std::size_t> order, std::span<const Index> strides) {
    std::vector<To> result(values.size());
    std::vector<Index> at(order.size(), 0);
    Index from = 0;
    for (auto& each : result) {
        each = static_cast<To>(values[static_cast<std::size_t>(from)]);
        for (std::size_t k = order.size(); k-- > 0;) {
            from += strides[order[k]];
            if (++at[k] < shape[order[k]]) break;
            from -= shape[order[k]] * strides[order[k]];
            at[k] = 0;
        }
    }
    return result;
}

}  // namespace

SharedWeights take_weighting(py::handle object, const char** name) {
    if (!object || object.is_none()) return nullptr;
    const auto parts = py::reinterpret_borrow<py::tuple>(object);
    auto taken = std::make_shared<SavedWeights>();
    taken->counts = copy_of<std::uint8_t>(parts[0]);
    if (!parts[1].is_none()) taken->weights = copy_of<double>(parts[1]);
    taken->outside = outside_of(py::cast<std::string>(parts[2]));
    const auto given = py::cast<std::string>(parts[3]);
    *name = "sample_weight";
    for (const char* const each : {"lengths", "mask", "offsets"}) {
        if (given == each) *name = each;
    }
    return taken;
}

py::object state_of(const SavedWeights& saved) {
    return py::make_tuple(
        py::bytes(reinterpret_cast<const char*>(saved.counts.data()), saved.counts.size()),
        saved.weights, kOutsides[static_cast<std::size_t>(saved.outside)]);
}

SharedWeights weights_of_state(py::handle state, std::size_t positions) {
    const auto parts = py::cast<py::tuple>(state);
    if (parts.size() != 3) return nullptr;
    auto saved = std::make_shared<SavedWeights>();
    const auto counts = py::cast<std::string>(parts[0]);
    for (const char each : counts) saved->counts.push_back(each != 0 ? 1 : 0);
    saved->weights = py::cast<std::vector<double>>(parts[1]);
    saved->outside = outside_of(py::cast<std::string>(parts[2]));
    const bool fits = saved->counts.size() == positions &&
                      (saved->weights.empty() || saved->weights.size() == positions);
    return fits ? saved : nullptr;
}

template <class C>
std::unique_ptr<cpu::OwnWeights<C>> own_weights(const SavedWeights& saved, const Problem& problem,
                                                std::span<const Index> shape, Index axis,
                                                AxisStrides strides, bool zero_outside) {
    BNEXT_CHECK(static_cast<Index>(saved.counts.size()) == problem.count(), "weighting: expected ",
                problem.count(), " positions, got ", saved.counts.size());
    std::vector<Index> dense(shape.size(), 0);  // strides of the C order over the positions' axes
    Index step = 1;
    for (std::size_t a = shape.size(); a-- > 0;) {
        if (static_cast<Index>(a) == axis) continue;
        dense[a] = step;
        step *= shape[a];
    }
    const std::vector<std::size_t> order = order_of_positions(shape, axis, strides);
    const bool in_order = std::ranges::is_sorted(order);
    const cpu::Outside outside = zero_outside ? cpu::Outside::zero : saved.outside;
    const std::vector<std::uint8_t> counts =
        in_order ? std::vector<std::uint8_t>()
                 : reordered<std::uint8_t, std::uint8_t>(saved.counts, shape, order, dense);
    const std::vector<C> weights = in_order
                                       ? std::vector<C>(saved.weights.begin(), saved.weights.end())
                                       : reordered<double, C>(saved.weights, shape, order, dense);
    return std::make_unique<cpu::OwnWeights<C>>(problem, in_order ? saved.counts : counts, weights,
                                                outside);
}

template decltype(own_weights<float>) own_weights<float>;
template decltype(own_weights<double>) own_weights<double>;

}  // namespace bnext::bindings
