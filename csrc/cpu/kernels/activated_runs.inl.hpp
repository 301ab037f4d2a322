// Activated passes (core/formulas.hpp) over a run: values that follow each other, with their
// coefficients and flags. Layouts differ only in the runs that they are cut into.
//
// A run goes by pieces that stay in the first-level cache: z of a piece is made, then a loop of the
// activation goes over it, then it is written. So there is one loop for each activation and compute
// type, and not one for each dtype, layout and pass besides. ReLU, the one that costs less than
// this, has loops of its own.

inline constexpr int kPiece = 256;

template <class T>
struct ActivatedRun {
    using C = Compute<T>;
    const T* in[3];     // x, residual; backward: x, dy, residual
    const T* ahead[3];  // of each input, what the caller reads next
    T* out[2];          // y; backward: dx, dresidual
    const C* row[kMostRows];
    Index
        step;  // from the coefficients of one value to the next one's: 1, or 0 (then 16 are alike)
    Index n;
    Index flag;    // of the first value, where flags are kept
    bool streams;  // the outputs begin on boundaries of lines
};

// z of the pack at j; `columns` of its values exist (0: all).
template <class T>
struct ZOfRun {
    using C = Compute<T>;
    const C *center, *scale, *shift;
    Index step;

    BNEXT_FORCE_INLINE Pack<C> operator()(Index j, int columns, const Pack<C>& x) const {
        const int some = step == 0 ? 0 : columns;
        const Normalize<Pack<C>> normalize{{load_columns(center + j * step, some),
                                            load_columns(scale + j * step, some),
                                            load_columns(shift + j * step, some)}};
        const Pack<C> in[] = {x};
        Pack<C> z[1];
        normalize(in, z);
        return z[0];
    }
};
template <class T, Pass P>
BNEXT_FORCE_INLINE ZOfRun<T> z_of(const ActivatedRun<T>& run) {
    if constexpr (P == Pass::forward) {
        using F = NormalizeActivated<Compute<T>>;
        return {run.row[F::kCenter], run.row[F::kScale], run.row[F::kShift], run.step};
    } else {
        using F = GradientActivated<Compute<T>>;
        return {run.row[F::kCenter], run.row[F::kScaleOfZ], run.row[F::kShiftOfZ], run.step};
    }
}

// Calls f(j, columns) for the packs of [begin, end): all of them whole but a last one.
template <class F>
BNEXT_FORCE_INLINE void for_each_pack_of(Index begin, Index end, F&& f) {
    Index j = begin;
    for (; j + kLanes <= end; j += kLanes) f(j, 0);
    if (j < end) f(j, static_cast<int>(end - j));
}
BNEXT_FORCE_INLINE int lanes_in(int columns) { return columns == 0 ? kLanes : columns; }

template <class T>
BNEXT_FORCE_INLINE void write_pack_of_run(T* p, int columns, bool streams,
                                          const Pack<Compute<T>>& values) {
    streams&& columns == 0 ? stream(p, values) : store_columns(p, columns, values);
}

// --- loops of an activation
// -----------------------------------------------------------------------

// act(z) in place of z; flags where they are kept (not null).
template <Activation A, class C>
BNEXT_NO_INLINE void activate_piece(double slope, C* values, int n, FlagWriter* flags) {
    const Fused fused{A, slope, false};
    for (int j = 0; j < n; j += kLanes) {
        const Pack<C> z = load(values + j);
        if constexpr (Fused{A, 0.0, true}.keeps_flags()) {
            if (flags != nullptr) {
                const int some = n - j < kLanes ? n - j : kLanes;
                flags->put(bits_of(passes(fused, z)) & ((1U << some) - 1U), some);
            }
        }
        store(values + j, activate<true>(fused, z));
    }
}

// dy * act'(z) in place of z.
template <Activation A, class C>
BNEXT_NO_INLINE void derive_piece(double slope, C* values, const C* dy, int n) {
    const Fused fused{A, slope, false};
    for (int j = 0; j < n; j += kLanes) {
        const Pack<C> z = load(values + j), of_dy = load(dy + j);
        store(values + j, gradient_through<true>(fused, z, of_dy));
    }
}

template <class C>
struct ActivationLoops {
    void (*activate)(double slope, C* values, int n, FlagWriter* flags);
    void (*derive)(double slope, C* values, const C* dy, int n);
};
template <class C>
BNEXT_FORCE_INLINE const ActivationLoops<C>& loops_of(Activation activation) {
    static constexpr auto kLoops = []<int... A>(std::integer_sequence<int, A...>) {
        struct {
            ActivationLoops<C> of[kActivations];
        } all = {{{activate_piece<static_cast<Activation>(A), C>,
                   derive_piece<static_cast<Activation>(A), C>}...}};
        return all;
    }(std::make_integer_sequence<int, kActivations>{});
    return kLoops.of[static_cast<int>(activation)];
}

// --- forward
// --------------------------------------------------------------------------------------

template <bool kResidual, class T>
BNEXT_NO_INLINE void write_relu(const ActivatedRun<T>& given, const FlagBits& kept) {
    using C = Compute<T>;
    const ActivatedRun<T> run = given;
    const ZOfRun<T> normalized = z_of<T, Pass::forward>(run);
    FlagWriter flags(kept, run.flag);
    const bool keeps = kResidual && kept.are_kept();
    for_each_pack_of(0, run.n, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(run.ahead[0] + j);
        Pack<C> z = normalized(j, columns, load_columns(run.in[0] + j, columns));
        if constexpr (kResidual) {
            prefetch_packs<1>(run.ahead[1] + j);
            z = z + load_columns(run.in[1] + j, columns);
        }
        write_pack_of_run(run.out[0] + j, columns, run.streams, relu(z));
        if (keeps) {
            const unsigned bits = bits_of(passes(Fused{Activation::relu, 0.0, true}, z));
            flags.put(bits & ((1U << lanes_in(columns)) - 1U), lanes_in(columns));
        }
    });
    if (keeps) flags.finish();
}

template <class T>
BNEXT_NO_INLINE void write_smooth(const ActivatedRun<T>& given, const Activated& by) {
    using C = Compute<T>;
    const ActivatedRun<T> run = given;
    const ZOfRun<T> normalized = z_of<T, Pass::forward>(run);
    const auto activate = loops_of<C>(by.fused.activation).activate;
    const bool keeps = by.flags.are_kept();
    FlagWriter flags(by.flags, run.flag);
    alignas(64) C values[kPiece];
    for (Index begin = 0; begin < run.n; begin += kPiece) {
        const Index end = run.n - begin < kPiece ? run.n : begin + kPiece;
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(run.ahead[0] + j);
            Pack<C> z = normalized(j, columns, load_columns(run.in[0] + j, columns));
            if (by.fused.residual) z = z + load_columns(run.in[1] + j, columns);
            store(values + (j - begin), z);
        });
        activate(by.fused.negative_slope, values, static_cast<int>(end - begin),
                 keeps ? &flags : nullptr);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            write_pack_of_run(run.out[0] + j, columns, run.streams, load(values + (j - begin)));
        });
    }
    if (keeps) flags.finish();
}

template <class T>
BNEXT_FORCE_INLINE void write_forward_run(const ActivatedRun<T>& run, const Activated& by) {
    if (by.fused.activation != Activation::relu) return write_smooth(run, by);
    by.fused.residual ? write_relu<true>(run, by.flags) : write_relu<false>(run, by.flags);
}

// --- backward
// -------------------------------------------------------------------------------------

// What deviations are taken of: x, or in place z.
template <class S>
BNEXT_FORCE_INLINE Pack<S> deviating(const Fused& fused, const Pack<S>& x) {
    return fused.in_place ? argument_of(fused, x) : x;
}

// g = dy * act'(z) of the values [begin, end) of a run, at most a piece: by flags, where they are
// kept. In place, y has the sign of z.
template <class T>
BNEXT_NO_INLINE void gradient_of_piece(const ActivatedRun<T>& given, const ZOfRun<T>& z_of_run,
                                       Index begin, Index end, const Activated& by, Compute<T>* g) {
    using C = Compute<T>;
    const ActivatedRun<T> run = given;
    const ZOfRun<T> normalized = z_of_run;
    const Fused fused = by.fused;
    const auto load_dy = [&](Index j, int columns)
                             BNEXT_INLINE_LAMBDA { return load_columns(run.in[1] + j, columns); };
    const auto prefetch = [&](Index j) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(run.ahead[0] + j);
        prefetch_packs<1>(run.ahead[1] + j);
    };
    if (by.flags.are_kept()) {
        const FlagBits flags = by.flags;
        const Pack<C> slope = broadcast(static_cast<C>(
            fused.activation == Activation::leaky_relu ? fused.negative_slope : 0.0));
        const bool leaks = fused.activation == Activation::leaky_relu;
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch(j);
            const Pack<C> dy = load_dy(j, columns);
            const Pack<C> off = leaks ? dy * slope : broadcast(C{0});
            store(g + (j - begin), where_set(flags_from(flags, run.flag + j), dy, off));
        });
        return;
    }
    if (fused.activation == Activation::relu) {
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch(j);
            const Pack<C> z = normalized(j, columns, load_columns(run.in[0] + j, columns));
            store(g + (j - begin), relu_gradient(z, load_dy(j, columns)));
        });
        return;
    }
    alignas(64) C of_dy[kPiece];
    for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        prefetch(j);
        Pack<C> z = load_columns(run.in[0] + j, columns);
        if (!fused.in_place) z = normalized(j, columns, z);
        if (fused.residual) z = z + load_columns(run.in[2] + j, columns);
        store(g + (j - begin), z);
        store(of_dy + (j - begin), load_dy(j, columns));
    });
    loops_of<C>(fused.activation)
        .derive(fused.negative_slope, g, of_dy, static_cast<int>(end - begin));
}

template <class T>
BNEXT_NO_INLINE void write_backward_run(const ActivatedRun<T>& given, const Activated& by) {
    using C = Compute<T>;
    using F = GradientActivated<Pack<C>>;
    const ActivatedRun<T> run = given;
    const ZOfRun<T> z = z_of<T, Pass::backward>(run);
    const bool residual = by.fused.residual;
    alignas(64) C g[kPiece];
    for (Index begin = 0; begin < run.n; begin += kPiece) {
        const Index end = run.n - begin < kPiece ? run.n : begin + kPiece;
        gradient_of_piece(run, z, begin, end, by, g);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            const int some = run.step == 0 ? 0 : columns;
            F formula;
            unrolled<4>([&](auto r) BNEXT_INLINE_LAMBDA {
                formula.row[r] = load_columns(run.row[r] + j * run.step, some);
            });
            const Pack<C> of_g = load(g + (j - begin));
            const Pack<C> x = deviating(by.fused, load_columns(run.in[0] + j, columns));
            write_pack_of_run(run.out[0] + j, columns, run.streams, formula.from_gradient(x, of_g));
            if (residual) write_pack_of_run(run.out[1] + j, columns, run.streams, of_g);
        });
    }
}

template <class Formula, class T>
BNEXT_FORCE_INLINE void write_run(const ActivatedRun<T>& run, const Activated& by) {
    if constexpr (Formula::kFlags == Flags::written) {
        write_forward_run(run, by);
    } else {
        write_backward_run(run, by);
    }
}
