// The phases of norms of cells (core/cell_problem.hpp), over a run of one example's cells: what
// their sums are, what follows from them for a slab and for each of its cells, and how they are
// written. Kernels and phases are batch normalization's, to which a cell is a channel.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>

#include "core/cells.hpp"
#include "cpu/activated_phases.hpp"
#include "cpu/cell_norm.hpp"
#include "cpu/phases.hpp"

namespace bnext::cpu {

// Numbers for the cells of a task, from cell `base` of example `example` on.
template <class T>
struct CellRoom {
    static constexpr std::size_t kCoefficientRows =
        std::max(int{Normalize<Compute<T>>::kRows}, int{Gradient<Compute<T>>::kRows});

    CellRoom(Index cells, Index columns)
        : extent(cells),
          numbers(static_cast<std::size_t>((kStatisticsRows + 3) * cells)),
          parameters(static_cast<std::size_t>(2 * cells)),
          coefficients(cells * columns) {}
    // The same, for a backward pass through an activation.
    CellRoom(Index cells, Index columns, const Activated* activated) : CellRoom(cells, columns) {
        if (activated != nullptr) of_z.emplace(cells, columns, *activated);
    }

    [[nodiscard]] StatisticsOut rows() const { return {numbers.data(), extent}; }
    // Further numbers of each cell: k is 0, 1 or 2.
    [[nodiscard]] double* more(Index k) const {
        return numbers.data() + (kStatisticsRows + k) * extent;
    }
    [[nodiscard]] Param<T>* weight() const { return parameters.data(); }
    [[nodiscard]] Param<T>* bias() const { return parameters.data() + extent; }

    Index extent;
    Index example = 0, base = 0;
    PoolArray<double> numbers;
    PoolArray<Param<T>> parameters;
    CoefficientRows<Compute<T>, kCoefficientRows, 0> coefficients;
    std::optional<RowsOfZ<T>> of_z;
};

// A range of whole slabs, from cells; and what each slab has, for each of its cells.
inline ChannelRange slabs_of(const ChannelRange& cells, Index cells_of_slab) {
    return {cells.begin / cells_of_slab, cells.end / cells_of_slab};
}
inline void spread_slabs(const ChannelRange& cells, Index cells_of_slab, const StatisticsIn& slabs,
                         const StatisticsOut& rows) {
    Index c = cells.begin;
    for (Index s = cells.begin / cells_of_slab; c < cells.end; ++s) {
        const double mean = slabs.mean()[s], low = slabs.mean_low()[s], rstd = slabs.rstd()[s];
        for (const Index end = c + cells_of_slab; c < end; ++c) {
            rows.mean()[c] = mean;
            rows.mean_low()[c] = low;
            rows.rstd()[c] = rstd;
        }
    }
}

// What both passes have. Cells are counted from the room's first one on.
template <class T>
struct CellPass {
    const CellProblem& problem;
    const Setting<T>& setting;   // of the second phase, over cells
    const Activated* activated;  // null without an activation

    [[nodiscard]] Index together() const { return problem.cells_of_slab; }
    // The rows of the room's slabs.
    template <class D>
    [[nodiscard]] StatisticsRows<D> from(const StatisticsRows<D>& slabs,
                                         const CellRoom<T>& room) const {
        const Index first = room.example * problem.slabs() + room.base / together();
        return {slabs.mean() + first, problem.all_slabs()};
    }
    // The parameters of the room's cells: where all cells are channels, these; else copies.
    [[nodiscard]] bool copies_parameters() const { return problem.cells() != problem.parameters; }
    void copy_parameters(const Param<T>* all, const ChannelRange& cells, const CellRoom<T>& room,
                         Param<T>* into) const {
        if (all == nullptr || !copies_parameters()) return;
        Index p = (room.base + cells.begin) % problem.parameters;
        for (Index c = cells.begin; c < cells.end; ++c) {
            into[c] = all[p];
            if (++p == problem.parameters) p = 0;
        }
    }
    const Param<T>* parameters_of(const Param<T>* all, const CellRoom<T>& room,
                                  const Param<T>* copies) const {
        return all == nullptr || copies_parameters() ? (all == nullptr ? nullptr : copies)
                                                     : all + room.base;
    }
};

// --- forward -------------------------------------------------------------------------------------

// Coefficients by rows of cells that are final. Of: Normal, ActivatedNormal.
template <class T, class Of = Normal<T>>
struct NormalCells : Of {
    void prepare(const Setting<T>&, const ChannelRange&, double) const {}
};

template <class T>
struct ForwardOfCells : CellPass<T> {
    using F = Formula<Pass::forward, Epilogue::none, Compute<T>>;
    using Activating = Formula<Pass::forward, Epilogue::activated, Compute<T>>;

    const Setting<T>& sums;  // of the first phase: over slabs as planes, where they are joined
    const Examples<const T>& x;
    const Examples<const T>& residual;  // x without one
    const Examples<T>& y;
    const Affine<T>& affine;
    double eps;
    const StatisticsOut& slabs;

    // The cells of what the first phase sums: of a slab, or one.
    [[nodiscard]] Index cells_of_unit() const {
        return this->problem.joined ? this->together() : 1;
    }
    [[nodiscard]] View<const T> units(const CellRoom<T>& room) const {
        View<const T> in = x.of(room.example, room.base);
        in.stride.channel *= cells_of_unit();
        return in;
    }
    void begin(const ChannelRange&, CellRoom<T>&) const {}
    // What rooms have rows of z for.
    [[nodiscard]] const Activated* of_rooms() const { return nullptr; }
    double reduce(const Region& region, const CellRoom<T>& room, double* a, double* b) const {
        const View<const T> in = units(room);
        return sums.kernels.reduce(&in, region, nullptr, nullptr, a, b);
    }
    void merge(double done, double more, Index count, double* a, double* b, const double* more_a,
               const double* more_b) const {
        const MergeShares shares(done, more);
        for (Index i = 0; i < count; ++i) bnext::merge(a[i], b[i], more_a[i], more_b[i], shares);
    }
    // The sums of the units of these cells are final, of n values each: gives the slabs their
    // statistics, and the cells what they need of them. Returns the n of a slab.
    double finish(const ChannelRange& cells, double n, const double* a, const double* b,
                  CellRoom<T>& room) const {
        const StatisticsOut here = this->from(slabs, room), rows = room.rows();
        const View<const T> in = units(room);
        const ChannelRange range = slabs_of(cells, this->together());
        if (this->problem.joined) {
            n = CollectMoments<T>{sums, in, here}.keep(range, n, a, b);
        } else {
            const CellMaps maps{this->together(), this->problem.parameters};
            n = CollectMoments<T, CellMaps>{sums, in, rows, maps}.keep(cells, n, a, b);
            for (Index s = range.begin; s < range.end; ++s) {
                const Index c = s * this->together();
                here.mean()[s] = rows.mean()[c];
                here.mean_low()[s] = rows.mean_low()[c];
                here.m2()[s] = rows.m2()[c];
            }
        }
        this->setting.table.finish_statistics(range.size(), here.m2() + range.begin, n, eps,
                                              here.var() + range.begin, here.rstd() + range.begin);
        spread_slabs(cells, this->together(), here, rows);
        this->copy_parameters(affine.weight, cells, room, room.weight());
        this->copy_parameters(affine.bias, cells, room, room.bias());
        return n;
    }
    // Calls use(the second phase of the room's cells).
    template <class Use>
    void with_second(const CellRoom<T>& room, const Use& use) const {
        const View<const T> of_x = x.of(room.example, room.base);
        const View<const T> in[] = {of_x, residual.of(room.example, room.base)};
        const View<T> out = y.of(room.example, room.base);
        const Affine<T> by{this->parameters_of(affine.weight, room, room.weight()),
                           this->parameters_of(affine.bias, room, room.bias())};
        if (this->activated != nullptr) {
            using Of = NormalCells<T, ActivatedNormal<T>>;
            return use(Second<Activating, T, Of>{this->setting, in, &out,
                                                 Of{{{room.rows(), by, eps}, *this->activated}},
                                                 this->activated});
        }
        use(Second<F, T, NormalCells<T>>{this->setting, in, &out,
                                         NormalCells<T>{{room.rows(), by, eps}}});
    }
};

// --- backward ------------------------------------------------------------------------------------

// Gradient multiplies all of a cell by its weight, so the sums of the slab are divided by it first.
// For that, weights below this share of the largest of their group stand for it. What it adds to
// dx, 2^-60 of dy times the largest weight, is far below a rounding of what other cells add.
inline constexpr double kSmallestWeight = 0x1p-60;

// The weights of channels, as the backward pass needs them.
template <class T>
class ChannelWeights {
public:
    ChannelWeights(const Param<T>* weight, Index channels, Index channels_of_group)
        : channels_(channels), values_(static_cast<std::size_t>(3 * channels)) {
        double *const given = values_.data(), *const by = given + channels;
        for (Index c = 0; c < channels; ++c) given[c] = value_or(weight, c, 1.0);
        for (Index first = 0; first < channels; first += channels_of_group) {
            double largest = 0;
            for (Index c = first; c < first + channels_of_group; ++c) {
                largest = std::max(largest, std::abs(given[c]));
            }
            const double least = largest * kSmallestWeight;
            for (Index c = first; c < first + channels_of_group; ++c) {
                by[c] = std::abs(given[c]) < least ? std::copysign(least, given[c]) : given[c];
                // (Where all are 0, so are the sums.)
                by[c + channels] = largest > 0 ? 1.0 / by[c] : 1.0;
            }
        }
    }
    [[nodiscard]] const double* given(Index c) const { return values_.data() + c; }
    // What dx is multiplied by, and the reciprocal.
    [[nodiscard]] const double* by(Index c) const { return given(c) + channels_; }
    [[nodiscard]] const double* inverse(Index c) const { return by(c) + channels_; }

private:
    Index channels_;
    PoolArray<double> values_;
};

template <class T>
struct BackwardOfCells : CellPass<T> {
    using F = Formula<Pass::backward, Epilogue::none, Compute<T>>;
    using Activating = Formula<Pass::backward, Epilogue::activated, Compute<T>>;

    const Setting<T>& sums;
    const Examples<const T>& x;
    const Examples<const T>& dy;
    const Examples<const T>& residual;  // x where none is read
    const Examples<T>& dx;
    const Examples<T>& dresidual;  // dx without a residual
    const StatisticsIn& slabs;
    const ChannelWeights<T>& weights;
    double* sum_dy;  // of all cells
    double* sum_dy_xmu;
    const Affine<T>& of_forward;  // which z has, of an activation

    // The inputs of an activated pass; without an activation, the first two.
    struct Inputs {
        View<const T> in[3];
    };
    [[nodiscard]] Inputs inputs(const CellRoom<T>& room) const {
        const View<const T> of_x = x.of(room.example, room.base);
        return {{of_x, dy.of(room.example, room.base), residual.of(room.example, room.base)}};
    }
    [[nodiscard]] Affine<T> affine_of_z(const CellRoom<T>& room) const {
        return {this->parameters_of(of_forward.weight, room, room.weight()),
                this->parameters_of(of_forward.bias, room, room.bias())};
    }

    [[nodiscard]] const Activated* of_rooms() const { return this->activated; }
    [[nodiscard]] Index cells_of_unit() const { return 1; }
    void begin(const ChannelRange& cells, CellRoom<T>& room) const {
        spread_slabs(cells, this->together(), this->from(slabs, room), room.rows());
        if (!room.of_z) return;
        this->copy_parameters(of_forward.weight, cells, room, room.weight());
        this->copy_parameters(of_forward.bias, cells, room, room.bias());
        const StatisticsIn rows = room.rows();
        const Affine<T> by = affine_of_z(room);
        const Index c = cells.begin;
        if (cells.size() == 0) return;
        room.of_z->make(sums, cells,
                        {rows.mean() + c, rows.mean_low() + c, rows.rstd() + c,
                         bnext::cpu::from(by.weight, c), bnext::cpu::from(by.bias, c)});
    }
    double reduce(const Region& region, const CellRoom<T>& room, double* a, double* b) const {
        const Inputs all = inputs(room);
        const double* const mean = room.rows().mean() + region.channels.begin;
        if (!room.of_z) return sums.kernels.reduce(all.in, region, mean, nullptr, a, b);
        const auto of_z = room.of_z->from(region.channels.begin);
        return sums.kernels.reduce(all.in, region, mean, &of_z, a, b);
    }
    void merge(double, double, Index count, double* a, double* b, const double* more_a,
               const double* more_b) const {
        for (Index i = 0; i < count; ++i) {
            a[i] += more_a[i];
            b[i] += more_b[i];
        }
    }
    double finish(const ChannelRange& cells, double n, const double* a, const double* b,
                  CellRoom<T>& room) const {
        const Inputs all = inputs(room);
        const StatisticsIn rows = room.rows();
        const Index first = room.example * this->problem.cells() + room.base;
        double *const of_dy = sum_dy + first, *const of_dy_xmu = sum_dy_xmu + first;
        if (room.of_z) {
            const Affine<T> by = affine_of_z(room);
            n = CollectActivated<T>{{sums, all.in, rows, of_dy, of_dy_xmu}, by, *room.of_z}.keep(
                cells, n, a, b);
        } else {
            n = CollectGradients<T>{sums, all.in, rows, of_dy, of_dy_xmu}.keep(cells, n, a, b);
        }

        double *const s1 = room.more(0), *const s2 = room.more(1), *const scale = room.more(2);
        const Index channels = this->problem.parameters, together = this->together();
        Index p = (room.base + cells.begin) % channels;
        for (Index c = cells.begin; c < cells.end; c += together) {
            const SlabSums slab = sum_slab(together, weights.given(p), of_dy + c, of_dy_xmu + c);
            const double *const by = weights.by(p), *const inverse = weights.inverse(p);
            const double rstd = rows.rstd()[c];
            for (Index i = 0; i < together; ++i) {
                s1[c + i] = slab.s1 * inverse[i];
                s2[c + i] = slab.s2 * inverse[i];
                scale[c + i] = rstd * by[i];
            }
            p += together;
            if (p == channels) p = 0;
        }
        return n * static_cast<double>(together);
    }
    template <class Use>
    void with_second(const CellRoom<T>& room, const Use& use) const {
        const Inputs all = inputs(room);
        const View<T> out[] = {dx.of(room.example, room.base),
                               dresidual.of(room.example, room.base)};
        const StatisticsIn rows = room.rows();
        const Gradients<T> gradients{rows, nullptr, room.more(0), room.more(1), room.more(2)};
        if (room.of_z) {
            const Affine<T> by = affine_of_z(room);
            return use(Second<Activating, T, ActivatedGradients<T>>{this->setting,
                                                                    all.in,
                                                                    out,
                                                                    {gradients, by, *room.of_z},
                                                                    this->activated,
                                                                    &*room.of_z});
        }
        use(Second<F, T, Gradients<T>>{this->setting, all.in, out, gradients});
    }
};

}  // namespace bnext::cpu
