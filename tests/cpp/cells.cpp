// Cells whose slabs and parameters are not their own (core/cells.hpp), by the phases that batch
// normalization runs, against long double: instance and group normalization of odd sizes, under
// every schedule. And sums whose n is no integer, from the kernel's place to y and dx.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/phases.hpp"
#include "require.hpp"

namespace {

using namespace bnext;
using namespace bnext::cpu;
using Real = long double;

constexpr double kEps = 1e-5;
constexpr Schedule kSchedules[] = {Schedule::serial, Schedule::channels, Schedule::split};

template <class T>
constexpr double kUnit = sizeof(T) == 8 ? 0x1p-53 : (sizeof(T) == 4 ? 0x1p-24 : 0x1p-8);

template <class T>
std::vector<T> drawn(Index n, double mean, std::mt19937& random) {
    std::normal_distribution<double> normal(mean, 1.0);
    std::vector<T> values(static_cast<std::size_t>(n));
    for (T& value : values) value = static_cast<T>(static_cast<Compute<T>>(normal(random)));
    return values;
}

std::vector<double> zeros(Index n) { return std::vector<double>(static_cast<std::size_t>(n)); }
std::size_t at(Index k) { return static_cast<std::size_t>(k); }

// Cells of `length` contiguous values each.
Problem problem_of(DType dtype, Index cells, Index length) {
    const std::array<Index, 2> shape{cells, length}, strides{length, 1};
    const AxisStrides operand(strides);
    return describe(dtype, shape, 0, {&operand, 1}).problem;
}

bool is_near(Real value, Real expected, Real tolerance) {
    return std::abs(value - expected) <= tolerance;
}

// The mean of cell c, about an origin.
Real mean_of(const StatisticsIn& rows, Index c, double origin) {
    return (static_cast<Real>(rows.mean()[c]) - origin) + rows.mean_low()[c];
}

// The mean about an origin, and m2, by definition.
struct Slab {
    Real mean = 0, m2 = 0;
};

template <class T>
std::vector<Slab> slabs_of(const CellMaps& maps, const std::vector<T>& x, Index cells, Index length,
                           double origin) {
    std::vector<Slab> slabs(at(cells / maps.cells_of_slab));
    const Real n = static_cast<Real>(maps.cells_of_slab) * length;
    const auto value = [&](Index k) {
        return static_cast<Real>(static_cast<double>(x[at(k)])) - origin;
    };
    for (Index k = 0; k < cells * length; ++k) {
        slabs[at(maps.slab(k / length))].mean += value(k) / n;
    }
    for (Index k = 0; k < cells * length; ++k) {
        Slab& slab = slabs[at(maps.slab(k / length))];
        const Real d = value(k) - slab.mean;
        slab.m2 += d * d;
    }
    return slabs;
}

template <class T>
void check_norm(const CellMaps& maps, Index examples, Index length, double mean,
                std::mt19937& random) {
    const Index cells = examples * maps.parameters, values = cells * length;
    const Index per_slab = maps.cells_of_slab;
    const Problem problem = problem_of(DTypeOf<T>::value, cells, length);
    const Strides stride{0, length, 1};
    const auto x = drawn<T>(values, mean, random), dy = drawn<T>(values, 0.5, random);
    const auto weight = drawn<Param<T>>(maps.parameters, 2.0, random);
    const auto bias = drawn<Param<T>>(maps.parameters, 0.0, random);
    std::vector<Param<T>> cell_weight(at(cells)), cell_bias(at(cells));
    for (Index c = 0; c < cells; ++c) {
        cell_weight[at(c)] = weight[at(maps.parameter(c))];
        cell_bias[at(c)] = bias[at(maps.parameter(c))];
    }
    const auto slabs = slabs_of(maps, x, cells, length, mean);
    const auto deviation = [&](Index k, const Slab& slab) {
        return (static_cast<Real>(static_cast<double>(x[at(k)])) - mean) - slab.mean;
    };
    const auto n = static_cast<double>(per_slab * length);

    std::vector<T> y(at(values)), dx(at(values)), first_y, first_dx;
    std::vector<double> all = zeros(kStatisticsRows * cells), a = zeros(cells), b = zeros(cells);
    const StatisticsOut rows(all.data(), cells);
    const View<const T> x_view{x.data(), stride}, dy_view{dy.data(), stride};
    for (const Schedule schedule : kSchedules) {
        force_schedule(&schedule);
        const double returned =
            forward_of_cells<T>(problem, x_view, View<T>{y.data(), stride},
                                {cell_weight.data(), cell_bias.data()}, kEps, rows, maps);
        REQUIRE(returned == n);
        backward_reduce<T>(problem, dy_view, x_view, rows, a.data(), b.data());
        // The sums of slabs, with their cells' weights in them; Gradient multiplies by the weight.
        auto s1 = zeros(cells), s2 = zeros(cells);
        sum_slabs(maps, cells, weight.data(), a.data(), b.data(), s1.data(), s2.data());
        auto by_1 = s1, by_2 = s2;
        for (Index c = 0; c < cells; ++c) {
            by_1[at(c)] /= static_cast<double>(cell_weight[at(c)]);
            by_2[at(c)] /= static_cast<double>(cell_weight[at(c)]);
        }
        backward_apply<T>(problem, dy_view, x_view, View<T>{dx.data(), stride}, rows,
                          cell_weight.data(), by_1.data(), by_2.data(), n);
        if (schedule != Schedule::serial) {  // every schedule gives the same bits
            REQUIRE(std::memcmp(y.data(), first_y.data(), y.size() * sizeof(T)) == 0);
            REQUIRE(std::memcmp(dx.data(), first_dx.data(), dx.size() * sizeof(T)) == 0);
            continue;
        }
        first_y = y;
        first_dx = dx;

        auto dweight = zeros(maps.parameters), dbias = zeros(maps.parameters);
        sum_parameters(maps, cells, a.data(), b.data(), rows.rstd(), dweight.data(), dbias.data());
        std::vector<Real> slab_1(slabs.size()), slab_2(slabs.size());
        std::vector<Real> by_weight(at(maps.parameters)), by_bias(at(maps.parameters));
        const Real eps = sizeof(T) == 8 ? 1e-12L : 1e-5L;
        for (Index c = 0; c < cells; ++c) {
            const Slab& slab = slabs[at(maps.slab(c))];
            const Real var = slab.m2 / n, rstd = 1 / std::sqrt(var + kEps);
            REQUIRE(is_near(mean_of(rows, c, mean), slab.mean, eps * std::sqrt(var)));
            REQUIRE(is_near(rows.var()[c], var, eps * var));
            REQUIRE(is_near(rows.rstd()[c], rstd, eps * rstd));
            const Index p = maps.parameter(c);
            const Real factor = weight[at(p)];
            for (Index k = c * length; k < (c + 1) * length; ++k) {
                const Real d = deviation(k, slab);
                const Real grad = static_cast<double>(dy[at(k)]);
                slab_1[at(maps.slab(c))] += factor * grad;
                slab_2[at(maps.slab(c))] += factor * grad * d;
                by_bias[at(p)] += grad;
                by_weight[at(p)] += grad * d * rstd;
            }
        }
        const Real sums = eps * values * 10;
        for (Index p = 0; p < maps.parameters; ++p) {
            REQUIRE(is_near(dbias[at(p)], by_bias[at(p)], sums));
            REQUIRE(is_near(dweight[at(p)], by_weight[at(p)], sums));
        }
        for (Index c = 0; c < cells; ++c) {
            const auto s = at(maps.slab(c));
            REQUIRE(is_near(s1[at(c)], slab_1[s], sums) && is_near(s2[at(c)], slab_2[s], sums));
            const Real rstd = 1 / std::sqrt(slabs[s].m2 / n + kEps);
            const Real factor = cell_weight[at(c)], shift = cell_bias[at(c)];
            for (Index k = c * length; k < (c + 1) * length; ++k) {
                const Real xhat = deviation(k, slabs[s]) * rstd;
                const Real grad = factor * static_cast<double>(dy[at(k)]);
                const Real expected = rstd * (grad - slab_1[s] / n - xhat * rstd * slab_2[s] / n);
                const Real units = kUnit<T> * 64 * (1 + std::abs(xhat)) * (1 + std::abs(factor));
                REQUIRE(is_near(static_cast<double>(y[at(k)]), xhat * factor + shift,
                                units * (1 + std::abs(shift))));
                REQUIRE(is_near(static_cast<double>(dx[at(k)]), expected,
                                units * rstd * (1 + std::abs(grad))));
            }
        }
    }
    force_schedule(nullptr);
}

// --- n that is no integer
// -------------------------------------------------------------------------

double share(Index o, Index i) { return 0.37 + 0.5 * static_cast<double>((7 * o + 3 * i) % 5); }

// The phases of batch normalization behind a reduction that weights values.
template <class Sums, class Add>
double weighted(const Region& region, const View<const double>& x, const Sums& center, double* a,
                double* b, const Add& add) {
    double n = 0;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        n = a[k] = b[k] = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = region.tiling->tile(t);
            for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
                for (Index i = tile.inner_begin; i < tile.inner_end; ++i) {
                    n += share(o, i);
                    add(k, o, c, i, share(o, i), *cpu::at(x, o, c, i) - center(c));
                }
            }
        }
    }
    return n;
}

struct WeightedMoments : CollectMoments<double> {
    double reduce(const Region& region, double* a, double* b) const {
        const auto origin = [&](Index c) { return origin_of(x, setting.plan.tiling, c); };
        const double n = weighted(region, x, origin, a, b,
                                  [&](Index k, Index, Index, Index, double w, double d) {
                                      a[k] += w * d;
                                      b[k] += w * d * d;
                                  });
        for (Index k = 0; k < region.channels.size(); ++k) {
            a[k] /= n;
            b[k] -= n * a[k] * a[k];
        }
        return n;
    }
};

struct WeightedGradients : CollectGradients<double> {
    double reduce(const Region& region, double* a, double* b) const {
        const auto mean = [&](Index c) { return of.mean()[c]; };
        return weighted(region, in[0], mean, a, b,
                        [&](Index k, Index o, Index c, Index i, double w, double d) {
                            const double grad = w * *cpu::at(in[1], o, c, i);
                            a[k] += grad;
                            b[k] += grad * d;
                        });
    }
};

void check_weighted(Index outer, Index channels, Index inner, std::mt19937& random) {
    const std::array<Index, 3> shape{outer, channels, inner}, dense{channels * inner, inner, 1};
    const AxisStrides operand(dense);
    const Description description = describe(DType::float64, shape, 1, {&operand, 1});
    const Problem& problem = description.problem;
    const Strides stride = description.strides[0];
    const auto x = drawn<double>(problem.elements(), 3.0, random);
    const auto dy = drawn<double>(problem.elements(), 0.5, random);
    std::vector<double> y(x.size()), dx(x.size());
    std::vector<double> all = zeros(kStatisticsRows * channels), a = zeros(channels),
                        b = zeros(channels);
    const StatisticsOut rows(all.data(), channels);
    const View<const double> in[] = {{x.data(), stride}, {dy.data(), stride}};
    const View<double> y_view{y.data(), stride}, dx_view{dx.data(), stride};
    const Affine<double> plain{nullptr, nullptr};
    using Norm = Formula<Pass::forward, Epilogue::none, double>;
    using Grad = Formula<Pass::backward, Epilogue::none, double>;
    for (const Schedule schedule : kSchedules) {
        force_schedule(&schedule);
        const auto forward = prepare<double>(problem, kWholeWork<Norm>, Pass::forward);
        const double n = forward.run(
            Both<WeightedMoments, Second<Norm, double, Normal<double>>>{
                {{forward, in[0], rows}}, {forward, in, &y_view, {rows, plain, kEps}}},
            problem);
        const auto backward = prepare<double>(problem, kWholeWork<Grad>, Pass::backward);
        const StatisticsIn saved = rows;
        const double again = backward.run(
            Both<WeightedGradients, Second<Grad, double, Gradients<double>>>{
                {{backward, in, saved, a.data(), b.data()}},
                {backward, in, &dx_view, {saved, nullptr, a.data(), b.data()}}},
            problem);
        REQUIRE(n == again && n != std::floor(n));
        for (Index c = 0; c < channels; ++c) {
            Real total = 0, mean = 0, m2 = 0, s1 = 0, s2 = 0;
            const auto each = [&](const auto& f) {
                for (Index o = 0; o < outer; ++o) {
                    for (Index i = 0; i < inner; ++i) {
                        f(static_cast<Real>(share(o, i)), at((o * channels + c) * inner + i));
                    }
                }
            };
            each([&](Real w, std::size_t) { total += w; });
            each([&](Real w, std::size_t k) { mean += w * x[k] / total; });
            each([&](Real w, std::size_t k) {
                m2 += w * (x[k] - mean) * (x[k] - mean);
                s1 += w * dy[k];
                s2 += w * dy[k] * (x[k] - mean);
            });
            const Real var = m2 / total, rstd = 1 / std::sqrt(var + kEps);
            REQUIRE(is_near(n, total, 1e-12L * total));
            REQUIRE(is_near(mean_of(rows, c, 0.0), mean, 1e-12L));
            REQUIRE(is_near(rows.var()[c], var, 1e-12L * (1 + var)));
            REQUIRE(is_near(a[at(c)], s1, 1e-12L * total));
            REQUIRE(is_near(b[at(c)], s2, 1e-12L * total));
            each([&](Real, std::size_t k) {
                const Real d = x[k] - mean;
                const Real gradient = rstd * (dy[k] - s1 / total - d * rstd * rstd * s2 / total);
                REQUIRE(is_near(y[k], d * rstd, 1e-12L * (1 + std::abs(d)) * rstd));
                REQUIRE(is_near(dx[k], gradient, 1e-12L * (1 + std::abs(d)) * rstd));
            });
        }
    }
    force_schedule(nullptr);
}

template <class T>
void check_norms(double mean, std::mt19937& random) {
    for (const Index examples : {1, 3}) {
        for (const Index length : {1, 7, 33, 129, 4099}) {
            for (const CellMaps& maps : {CellMaps::instance_norm(5), CellMaps::group_norm(5, 1),
                                         CellMaps::group_norm(21, 7), CellMaps::group_norm(6, 6)}) {
                if (maps.cells_of_slab * length > 1) {
                    check_norm<T>(maps, examples, length, mean, random);
                }
            }
        }
    }
    check_norm<T>(CellMaps::group_norm(771, 3), 2, 9, mean, random);  // slabs wider than a block
}

}  // namespace

int main() {
    constexpr CellMaps maps = CellMaps::group_norm(6, 2);
    static_assert(maps.slab(8) == 2 && maps.parameter(8) == 2);
    static_assert(OneToOne::slab(8) == 8 && OneToOne::parameter(8) == 8);
    std::mt19937 random(7);
    check_norms<float>(100.0, random);
    check_norms<double>(1e6, random);
    check_norms<bfloat16>(0.0, random);
    for (const Index outer : {1, 3, 300}) {
        for (const Index inner : {3, 16, 1001}) check_weighted(outer, 3, inner, random);
    }
    std::puts("cells are normalized by the moments of their slabs");
}
