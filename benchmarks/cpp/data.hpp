// The arrays of one problem, with fresh random values and mapped pages.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "cpu/operations.hpp"
#include "shapes.hpp"

namespace bnext::benchmarks {

// Memory on huge pages, where the system grants them: NumPy asks for them as well.
template <class T>
class Buffer {
public:
    explicit Buffer(Index size) : size_(size) {
        constexpr std::size_t kPage = std::size_t{2} << 20;
        const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
        const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
        data_.reset(static_cast<T*>(std::aligned_alloc(kPage, rounded)));
        if (!data_) throw std::bad_alloc();
#ifdef __linux__
        madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
    }

    void fill(std::minstd_rand& random) {
        constexpr auto kScale = 4.0 / static_cast<double>(std::minstd_rand::max());
        for (Index i = 0; i < size_; ++i) {
            data_.get()[i] =
                static_cast<T>(static_cast<float>(static_cast<double>(random()) * kScale - 1.0));
        }
    }

    T* data() { return data_.get(); }

private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    Index size_;
    std::unique_ptr<T, Free> data_;
};

inline Description describe(const Shape& shape, Layout layout, DType dtype) {
    const Index c = shape.channels;
    const std::array<Index, 3> extents{shape.batch, c, shape.inner};
    const std::array<Index, 3> planar{c * shape.inner, shape.inner, 1};
    const std::array<Index, 3> interleaved{c * shape.inner, 1, c};
    const AxisStrides strides(layout == Layout::planar ? planar : interleaved);
    const std::array<AxisStrides, 3> operands{strides, strides, strides};
    return bnext::describe(dtype, extents, 1, operands);
}

template <class T>
struct Data {
    Data(const Shape& shape, Layout layout)
        : description(describe(shape, layout, DTypeOf<T>::value)),
          x_values(problem().elements()),
          dy_values(problem().elements()),
          out_values(problem().elements()),
          dresidual_values(problem().elements()),
          flag_words(cpu::flag_words(problem().elements())) {
        std::minstd_rand random(static_cast<unsigned>(shape.channels + shape.inner));
        x_values.fill(random);
        dy_values.fill(random);
        out_values.fill(random);
        cpu::forward<T>(problem(), x(), out(), affine(), 1e-5, statistics());
        cpu::backward_reduce<T>(problem(), dy(), x(), statistics(), sum_dy.data(),
                                sum_dy_xmu.data());
        const cpu::Applied<T> with_relu = applied(Activation::relu, true);
        cpu::forward<T>(problem(), x(), out(), affine(), 1e-5, statistics(),
                        &with_relu);  // the flags, for backward
    }

    [[nodiscard]] const Problem& problem() const { return description.problem; }
    cpu::View<const T> x() { return {x_values.data(), description.strides[0]}; }
    cpu::View<const T> dy() { return {dy_values.data(), description.strides[0]}; }
    cpu::View<T> out() { return {out_values.data(), description.strides[0]}; }
    StatisticsOut statistics() { return {rows.data(), problem().channels}; }
    cpu::Affine<T> affine() { return {weight.data(), bias.data()}; }
    // What a pass with this epilogue is given. dy stands for the residual too: no pass here reads
    // both.
    cpu::Applied<T> applied(Activation activation, bool residual) {
        cpu::Applied<T> applied{.fused = {.activation = activation, .residual = residual}};
        if (residual) applied.residual = dy();
        if (residual) applied.dresidual = {dresidual_values.data(), description.strides[0]};
        if (applied.fused.keeps_flags()) {
            applied.flags = {flag_words.data(), description.strides[0]};
        }
        applied.of_forward = affine();
        return applied;
    }

    Description description;
    Buffer<T> x_values, dy_values, out_values, dresidual_values;
    Buffer<std::uint16_t> flag_words;
    std::size_t channels = static_cast<std::size_t>(description.problem.channels);
    std::vector<Param<T>> weight = std::vector<Param<T>>(channels, Param<T>{1.5});
    std::vector<Param<T>> bias = std::vector<Param<T>>(channels, Param<T>{0.5});
    std::vector<double> rows =
        std::vector<double>(static_cast<std::size_t>(kStatisticsRows) * channels);
    std::vector<double> sum_dy = std::vector<double>(channels);
    std::vector<double> sum_dy_xmu = std::vector<double>(channels);
};

}  // namespace bnext::benchmarks
