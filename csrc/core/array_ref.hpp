// ArrayRef: where the elements of an array are, whatever library the array belongs to.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "core/dtype.hpp"
#include "core/problem.hpp"

namespace bnext {

// Element types: the supported ones with the values of DType, and what counters are of.
enum class Element : std::uint8_t { float32, float64, float16, bfloat16, int64, other };

constexpr Element element_of(DType dtype) { return static_cast<Element>(dtype); }

enum class Place : std::uint8_t { cpu, cuda };

struct ArrayRef {
    void* data;
    const Index* extents;
    const Index* steps;    // from an element to the next along each axis, in bytes
    const Index* strides;  // the same in elements, of a viewable array
    std::uint8_t rank;
    Element element;  // in native byte order, else `other`
    Place place;
    bool is_array;  // false: something else came, as `text` says
    bool writeable;
    bool viewable;       // aligned, and the steps are multiples of the element
    bool c_contiguous;   // also an array of Fortran order may be: false is always right
    const void* object;  // what the text is of
    std::string (*text)(const void* object);  // the name of the dtype, or of what came instead

    [[nodiscard]] std::span<const Index> shape() const { return {extents, rank}; }
    [[nodiscard]] std::span<const Index> byte_strides() const { return {steps, rank}; }
    [[nodiscard]] AxisStrides axis_strides() const { return {strides, rank}; }
    [[nodiscard]] bool supported() const { return element < Element::int64; }
    [[nodiscard]] DType dtype() const { return static_cast<DType>(element); }  // if supported
    [[nodiscard]] bool is(DType wanted) const { return element == element_of(wanted); }
    [[nodiscard]] Index extent(Index axis) const { return extents[axis]; }
    [[nodiscard]] Index size() const {
        Index product = 1;
        for (const Index each : shape()) product *= each;
        return product;
    }
    [[nodiscard]] Index item() const {
        return supported() ? size_of(dtype()) : Index{element == Element::int64 ? 8 : 1};
    }
    [[nodiscard]] std::string type_text() const { return text(object); }
    template <class T>
    [[nodiscard]] T* as() const {
        return static_cast<T*>(data);
    }
};

// Room for the extents and strides of a call's arrays. What is not used is not touched.
class Extents {
public:
    Extents() = default;
    Extents(const Extents&) = delete;
    Extents& operator=(const Extents&) = delete;

    Index* take(std::size_t count) { return values_.data() + std::exchange(used_, used_ + count); }

private:
    static constexpr std::size_t kArrays = 20;
    std::size_t used_ = 0;
    std::array<Index, kArrays * 3 * kMaxAxes> values_;  // NOLINT: not initialised on purpose
};

// Fills in `strides` and whether the array is viewable and contiguous, from the rest.
void complete(ArrayRef& array, Extents& extents);

// Whether two arrays may have a byte in common, by the first and last that each can touch.
bool may_meet(const ArrayRef& a, const ArrayRef& b);

// Whether the elements of two arrays of one shape have the same places.
bool same_places(const ArrayRef& a, const ArrayRef& b);

// A hash of eight elements of x and where they are: enough to notice another array, or that x was
// overwritten since, at the price of eight reads.
std::uint64_t fingerprint_of(const ArrayRef& x);

// The values of a vector as doubles.
void read_doubles(const ArrayRef& vector, std::span<double> values);

DType dtype_named(const std::string& name);
std::string shape_text(std::span<const Index> shape);  // as Python prints a tuple
std::string number_text(double value);                 // as Python prints a float

}  // namespace bnext
