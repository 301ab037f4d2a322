// The formula that add_a_formula.patch adds, against long double: by the operation, and by the
// kernels alone with both kinds of stores. test_add_a_formula.py compiles this with the patched
// sources, for one data type and the instruction set of the compiler's flags.
#define BNEXT_ISA example
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../cpp/require.hpp"
#include "cpu/coefficients.hpp"
#include "cpu/kernels/set.inl.hpp"
#include "cpu/operations.hpp"

namespace bnext::cpu {
namespace example {

const KernelTable table = {{},        kernels_of<double>(), {},        {}, "example", kNativeBytes,
                           mark_used, finish_statistics,    any_beyond};

}  // namespace example

// In place of dispatch.cpp, which wants the tables of every instruction set.
const KernelTable& active_table() { return example::table; }
const WeightedTable& weighted_table_of(const KernelTable&) {
    static const WeightedTable none{};
    return none;
}
void note_used(const char*) {}

}  // namespace bnext::cpu

namespace {

using namespace bnext;

struct Shape {
    Index outer, channels, inner;
    bool interleaved;
    Index offset;  // of the second output in its memory, in elements
};

struct Arrays {
    std::vector<double> x, residual, y, sum, weight, bias, rows;
};

std::vector<double> drawn(std::size_t n, double mean, std::mt19937& random) {
    std::normal_distribution<double> normal(mean, 1.0);
    std::vector<double> values(n);
    for (double& value : values) value = normal(random);
    return values;
}

void check(const Shape& shape, std::mt19937& random) {
    const Index c = shape.channels;
    const std::array<Index, 3> extents{shape.outer, c, shape.inner};
    const std::array<Index, 3> planar{c * shape.inner, shape.inner, 1};
    const std::array<Index, 3> interleaved{c * shape.inner, 1, c};
    const AxisStrides strides(shape.interleaved ? interleaved : planar);
    const std::array<AxisStrides, 3> operands{strides, strides, strides};
    const Description description = describe(DType::float64, extents, 1, operands);
    const Problem& problem = description.problem;
    const auto n = static_cast<std::size_t>(problem.elements());
    Arrays a{drawn(n, 1e4, random),
             drawn(n, 0, random),
             std::vector<double>(n),
             std::vector<double>(n + 8),
             drawn(static_cast<std::size_t>(c), 0, random),
             drawn(static_cast<std::size_t>(c), 0, random),
             std::vector<double>(static_cast<std::size_t>(kStatisticsRows * c))};
    const Strides at = description.strides[0];
    const cpu::View<const double> x{a.x.data(), at}, residual{a.residual.data(), at};
    const cpu::View<double> y{a.y.data(), at}, sum{a.sum.data() + shape.offset, at};
    const StatisticsOut rows(a.rows.data(), c);
    const cpu::Affine<double> affine{a.weight.data(), a.bias.data()};
    cpu::statistics<double>(problem, x, 1e-5, rows);

    const auto compare = [&] {
        for (Index k = 0; k < c; ++k) {
            const long double mean = static_cast<long double>(rows.mean()[k]) + rows.mean_low()[k];
            for (Index o = 0; o < problem.outer; ++o) {
                for (Index i = 0; i < problem.inner; ++i) {
                    const long double expected =
                        (*cpu::at(x, o, k, i) - mean) * rows.rstd()[k] * a.weight[k] + a.bias[k];
                    const long double added = expected + *cpu::at(residual, o, k, i);
                    REQUIRE(std::abs(*cpu::at(y, o, k, i) - expected) < 1e-14L);
                    REQUIRE(std::abs(*cpu::at(sum, o, k, i) - added) < 1e-14L);
                }
            }
        }
        std::fill(a.y.begin(), a.y.end(), NAN);
        std::fill(a.sum.begin(), a.sum.end(), NAN);
    };
    cpu::apply_norm_add<double>(problem, x, residual, y, sum, rows, 1e-5, affine);
    compare();

    // The kernels alone, over everything at once.
    const Tiling tiling(problem);
    const auto& kernels =
        cpu::example::table.kernels<double>(tiling.walk(), Pass::forward, Epilogue::add);
    using F = Formula<Pass::forward, Epilogue::add, double>;
    const Index columns = tiling.columns();
    cpu::CoefficientRows<double, F::kRows, 0> made(c * columns);
    double* into[F::kRows];
    cpu::CoefficientsIn<double> all{};
    for (std::size_t r = 0; r < F::kRows; ++r) {
        into[r] = made.row(r, cpu::made_at(c, columns));
        all.row[r] = made.row(r, 0);
    }
    kernels.make_coefficients(
        c, {rows.mean(), rows.mean_low(), rows.rstd(), a.weight.data(), a.bias.data()}, into);
    made.complete(0, c, columns);
    const cpu::View<const double> in[] = {x, residual};
    const cpu::View<double> out[] = {y, sum};
    for (const cpu::Stores stores : {cpu::Stores::cached, cpu::Stores::streaming}) {
        kernels.write(in, out, {&tiling, tiling.all(), {0, c}}, all, {stores, 0, true});
        compare();
    }
}

}  // namespace

int main() {
    using F = Formula<Pass::forward, Epilogue::add, double>;
    static_assert(F::kReads == 2 && F::kWrites == 2 && F::kFlags == Flags::none);
    std::mt19937 random(7);
    int shapes = 0;
    for (const Index offset : {0, 1, 8}) {
        for (const Index inner : {1, 3, 15, 16, 40, 1001}) {
            for (const Index channels : {1, 5, 16, 67}) {
                for (const bool interleaved : {false, true}) {
                    check({5, channels, inner, interleaved, offset}, random);
                    ++shapes;
                }
            }
        }
    }
    std::printf("%d shapes\n", shapes);
}
