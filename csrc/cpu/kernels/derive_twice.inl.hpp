// What both phases of the double backward pass go along: runs of all arrays, and act' and act'' at
// the values of a run. These are in the compute type, as the forward pass has z; a run goes by
// pieces, so that they stay in a cache.

inline constexpr int kTwicePiece = 256;

// act'(z) in place of z, and act''(z).
template <Activation A, class C>
BNEXT_NO_INLINE void derive_twice(double negative_slope, C* values, C* curve, int n) {
    constexpr bool kCurved = !Fused{A}.is_piecewise_linear();
    const Fused fused{A, negative_slope};
    for (int j = 0; j < n; j += kLanes) {
        const Pack<C> z = load(values + j);
        store(values + j, gradient_through<true>(fused, z, broadcast(C{1})));
        if constexpr (kCurved) store(curve + j, second_derivative(A, z));
    }
}

template <class C>
BNEXT_FORCE_INLINE auto twice_derivation_of(Activation activation) {
    using Derive = void (*)(double, C*, C*, int);
    static constexpr auto kAll = []<int... A>(std::integer_sequence<int, A...>) {
        struct {
            Derive of[kActivations];
        } all = {{derive_twice<static_cast<Activation>(A), C>...}};
        return all;
    }(std::make_integer_sequence<int, kActivations>());
    return kAll.of[static_cast<int>(activation)];
}

// The arrays at a run: null where there is none.
template <class T>
struct TwiceRun {
    const T *x, *dy, *ddx, *ddresidual, *residual;
    T *of_dy, *of_x, *of_residual;
    Index flag;

    BNEXT_FORCE_INLINE TwiceRun(const DoubleBackward<T>& of, Index o, Index c, Index i)
        : x(at(of.x, o, c, i)),
          dy(at(of.dy, o, c, i)),
          ddx(of.ddx.data != nullptr ? at(of.ddx, o, c, i) : nullptr),
          ddresidual(of.ddresidual.data != nullptr ? at(of.ddresidual, o, c, i) : nullptr),
          residual(of.residual.data != nullptr ? at(of.residual, o, c, i) : nullptr),
          of_dy(of.of_dy.data != nullptr ? at(of.of_dy, o, c, i) : nullptr),
          of_x(of.of_x.data != nullptr ? at(of.of_x, o, c, i) : nullptr),
          of_residual(of.of_residual.data != nullptr ? at(of.of_residual, o, c, i) : nullptr),
          flag(of.activated.flags.at(o, c, i)) {}

    BNEXT_FORCE_INLINE void advance(Index n) {
        x += n;
        dy += n;
        if (ddx != nullptr) ddx += n;
        if (ddresidual != nullptr) ddresidual += n;
        if (residual != nullptr) residual += n;
        if (of_dy != nullptr) of_dy += n;
        if (of_x != nullptr) of_x += n;
        if (of_residual != nullptr) of_residual += n;
        flag += n;
    }
};

// act' and act'' at the next n values, at most a piece, of which the first is column k's; step 0:
// all of them are.
template <class T>
BNEXT_NO_INLINE void derive_run(const DoubleBackward<T>& of, const TwiceRun<T>& run, Index k,
                                Index step, Index n, Compute<T>* slope, Compute<T>* curve) {
    using C = Compute<T>;
    const Fused& fused = of.activated.fused;
    if (of.activated.flags.are_kept()) {
        const Pack<C> one = broadcast(C{1});
        const Pack<C> other = broadcast(static_cast<C>(fused.other_derivative()));
        for_each_pack_of(0, n, [&](Index j, int) BNEXT_INLINE_LAMBDA {
            store(slope + j, where_set(flags_from(of.activated.flags, run.flag + j), one, other));
        });
        return;
    }
    const auto row = [&](int r, Index j, int some) BNEXT_INLINE_LAMBDA {
        return step == 0 ? broadcast(of.z[r][k]) : load_columns(of.z[r] + k + j, some);
    };
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Normalize<Pack<C>> by{{row(0, j, some), row(1, j, some), row(2, j, some)}};
        const Pack<C> in[] = {load_columns(run.x + j, some)};
        Pack<C> z[1];
        by(in, z);
        if (run.residual != nullptr) z[0] = z[0] + load_columns(run.residual + j, some);
        store(slope + j, z[0]);
    });
    if (of.is_extreme != nullptr) {
        for (Index j = 0; j < n; ++j) {
            const Index c = k + j * step;
            if (!of.is_extreme[c]) continue;
            const double d = static_cast<double>(run.x[j]) - of.exact[0][c];
            double z = d * of.exact[1][c] + of.exact[2][c];
            if (run.residual != nullptr) z += static_cast<double>(run.residual[j]);
            slope[j] = static_cast<C>(z);
        }
    }
    twice_derivation_of<C>(fused.activation)(fused.negative_slope, slope, curve,
                                             static_cast<int>(n));
}

// g in place of the slope, and e in place of the curve.
template <class T>
BNEXT_NO_INLINE void gradients_of_run(const T* dy, bool is_curved, Index n, Compute<T>* slope,
                                      Compute<T>* curve) {
    using C = Compute<T>;
    for_each_pack_of(0, n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        const Pack<C> of_dy = load_columns(dy + j, some);
        if (is_curved) {
            store(slope + j, of_dy * load(slope + j));
            store(curve + j, of_dy * load(curve + j));
        } else {
            store(slope + j, round_to<C>(times_slope(widen(of_dy), widen(load(slope + j)), true)));
        }
    });
}

// Rows of so many columns, from column k of the region on.
template <class T>
struct TwiceRows {
    TwiceRun<T> first;
    Index x, dy, ddx, ddresidual, residual;  // pitches
    Index of_dy, of_x, of_residual, flag;

    BNEXT_FORCE_INLINE TwiceRows(const DoubleBackward<T>& of, const Tile& tile, Index o, Index i,
                                 Index column)
        : first(of, o, 0, i),
          x(row_pitch(of.x, tile)),
          dy(row_pitch(of.dy, tile)),
          ddx(row_pitch(of.ddx, tile)),
          ddresidual(row_pitch(of.ddresidual, tile)),
          residual(row_pitch(of.residual, tile)),
          of_dy(row_pitch(of.of_dy, tile)),
          of_x(row_pitch(of.of_x, tile)),
          of_residual(row_pitch(of.of_residual, tile)),
          flag(is_outer_only(tile) ? of.activated.flags.stride.outer
                                   : of.activated.flags.stride.inner) {
        first.advance(column);
    }
    [[nodiscard]] BNEXT_FORCE_INLINE TwiceRun<T> row(Index r) const {
        TwiceRun<T> run = first;
        run.x += r * x;
        run.dy += r * dy;
        if (run.ddx != nullptr) run.ddx += r * ddx;
        if (run.ddresidual != nullptr) run.ddresidual += r * ddresidual;
        if (run.residual != nullptr) run.residual += r * residual;
        if (run.of_dy != nullptr) run.of_dy += r * of_dy;
        if (run.of_x != nullptr) run.of_x += r * of_x;
        if (run.of_residual != nullptr) run.of_residual += r * of_residual;
        run.flag += r * flag;
        return run;
    }
};
