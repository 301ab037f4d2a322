// Activated passes (core/formulas.hpp) over a run: values that follow each other, with their
// coefficients and flags. Layouts differ only in the runs that they are cut into.
//
// A run goes by pieces that stay in the first-level cache: z of a piece is made, then a loop of the
// activation goes over it, then it is written. So there is one loop for each activation and compute
// type, and not one for each dtype, layout and pass besides. ReLU, the one that costs less than
// this, has loops of its own.

inline constexpr int kPiece = 256;

// What writes runs reads members one by one and keeps them in registers: a copy of all of them
// would be moved as vectors, whose loads wait until the stores before them, streamed ones too, have
// left the processor.
template <class T>
struct ActivatedRun {
    using C = Compute<T>;
    const T* in[3];     // x, residual; backward: x, dy, residual
    const T* ahead[3];  // of each input, what the caller reads next; null where nothing is known
    T* out[2];          // y; backward: dx, dresidual
    const C* row[kMostRows];
    Index
        step;  // from the coefficients of one value to the next one's: 1, or 0 (then 16 are alike)
    Index flag;  // of the first value, where flags are kept
};

// z of the packs of a run.
template <class T>
struct ZOfRun {
    using C = Compute<T>;
    using Formula = Normalize<Pack<C>>;
    const C *center, *scale, *shift;
    Index step;

    // The coefficients at j, of which `columns` exist (0: all).
    [[nodiscard]] BNEXT_FORCE_INLINE Formula at(Index j, int columns) const {
        return {load_columns(center + j, columns), load_columns(scale + j, columns),
                load_columns(shift + j, columns)};
    }
    BNEXT_FORCE_INLINE static Pack<C> z(const Formula& formula, const Pack<C>& x) {
        const Pack<C> in[] = {x};
        Pack<C> out[1];
        formula(in, out);
        return out[0];
    }
    BNEXT_FORCE_INLINE Pack<C> operator()(Index j, int columns, const Pack<C>& x) const {
        return z(step == 0 ? at(0, 0) : at(j, columns), x);
    }
    // Calls f(formula_at) with formula_at(j, columns): where coefficients are alike, they are in
    // registers.
    template <class F>
    BNEXT_FORCE_INLINE void with_formulas(F&& f) const {
        if (step == 0) {
            const Formula alike = at(0, 0);
            f([&](Index, int) BNEXT_INLINE_LAMBDA -> const Formula& { return alike; });
        } else {
            f([&](Index j, int columns) BNEXT_INLINE_LAMBDA { return at(j, columns); });
        }
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

// Calls f(j, columns) for the packs of [begin, end), of which `columns` values exist (0: all). f is
// compiled once, whole packs or not: there are many of these loops.
template <class F>
BNEXT_FORCE_INLINE void for_each_pack_of(Index begin, Index end, F&& f) {
    for (Index j = begin; j < end; j += kLanes) {
        f(j, end - j < kLanes ? static_cast<int>(end - j) : 0);
    }
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

// What is to be read next of input i, from value j on.
template <class T>
BNEXT_FORCE_INLINE const T* ahead_of(const ActivatedRun<T>& run, int i) {
    return run.ahead[i] != nullptr ? run.ahead[i] : run.in[i] + 2 * kPiece;
}

// Where ReLU and gradients by flags are made in registers, along walks. The other data and
// instruction sets go by the loops alone, so that less is compiled.
template <class T>
inline constexpr bool kHasWalks = kNativeBytes > 16 && DTypeOf<T>::value == DType::float32;

// --- formulas along a run
// -------------------------------------------------------------------------
// A walk calls f(j, columns, formula) for the packs of a run, of which `columns` values exist (0:
// all), with the formula of these values.

// The values [begin, end) of a run, by its coefficients.
template <class Formula, class T>
struct RunWalk {
    const ActivatedRun<T>& run;
    Index begin, end;
    bool streams;

    template <class F>
    BNEXT_FORCE_INLINE void for_each(F&& f) const {
        const Compute<T>* row[Formula::kRows];
        for (int r = 0; r < Formula::kRows; ++r) row[r] = run.row[r];
        const Index step = run.step;
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            Formula formula;
            unrolled<Formula::kRows>([&](auto r) BNEXT_INLINE_LAMBDA {
                formula.row[r] = load_columns(row[r] + j * step, step == 0 ? 0 : columns);
            });
            f(j, columns, formula, streams);
        });
    }
};

// Planes of n values each, of channels k, k + 1, ..., that follow each other without a gap. Where
// there are several, n is at least two units. Packs that begin at `head` or behind are streamed;
// one in which a plane ends and the next begins has a formula blended of both.
template <class Formula, class T>
struct PlaneWalk {
    const CoefficientsIn<Compute<T>>& all;
    Index k, planes, n, head;
    bool streams;

    template <class F>
    BNEXT_FORCE_INLINE void for_each(F&& f) const {
        const Index total = planes * n;
        Index channel = k, end = n;  // of the channel's plane
        Formula formula = formula_of_channel<Formula>(all, channel);
        for (Index j = 0; j < total;) {
            const Index stop = j < head ? head : total;
            const int columns = stop - j < kLanes ? static_cast<int>(stop - j) : 0;
            const bool ends = j >= head && end < total && j + kLanes > end;
            if (ends) {
                const Formula next = formula_of_channel<Formula>(all, channel + 1);
                formula = across(static_cast<int>(end - j), formula, next);
            }
            f(j, columns, formula, streams && j >= head);
            if (ends) {
                formula = formula_of_channel<Formula>(all, ++channel);
                end += n;
            }
            j += lanes_in(columns);
        }
    }
};

// --- forward
// --------------------------------------------------------------------------------------

template <bool kResidual, class T, class Walk>
BNEXT_NO_INLINE void write_relu(const ActivatedRun<T>& run, const Walk& walk, FlagWriter& flags) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const residual = run.in[1];
    const T *const next_x = ahead_of(run, 0), *const next_residual = ahead_of(run, 1);
    T* const y = run.out[0];
    FlagWriter writer = flags;
    const bool keeps = kResidual && writer.are_kept();
    walk.for_each([&](Index j, int columns, const auto& formula, bool streams) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(next_x + j);
        if constexpr (kResidual) prefetch_packs<1>(next_residual + j);
        const Pack<C> of_x = load_columns(x + j, columns);
        const Pack<C> z = kResidual ? formula.normalized(of_x) + load_columns(residual + j, columns)
                                    : formula.normalized(of_x);
        write_pack_of_run(y + j, columns, streams, relu(z));
        if (keeps) {
            const unsigned bits = bits_of(passes(Fused{Activation::relu, 0.0, true}, z));
            writer.put(bits & ((1U << lanes_in(columns)) - 1U), lanes_in(columns));
        }
    });
    if (keeps) flags = writer;
}

template <class T>
BNEXT_NO_INLINE void write_by_loops(const ActivatedRun<T>& run, Index first, Index last,
                                    bool streams, const Fused& fused, FlagWriter& flags) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const residual = fused.residual ? run.in[1] : nullptr;
    const T* const next_x = ahead_of(run, 0);
    T* const y = run.out[0];
    const ZOfRun<T> normalized = z_of<T, Pass::forward>(run);
    const auto activate = loops_of<C>(fused.activation).activate;
    FlagWriter* const kept = flags.are_kept() ? &flags : nullptr;
    alignas(64) C values[kPiece];
    for (Index begin = first; begin < last; begin += kPiece) {
        const Index end = last - begin < kPiece ? last : begin + kPiece;
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(next_x + j);
            Pack<C> z = normalized(j, columns, load_columns(x + j, columns));
            if (residual != nullptr) z = z + load_columns(residual + j, columns);
            store(values + (j - begin), z);
        });
        activate(fused.negative_slope, values, static_cast<int>(end - begin), kept);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            write_pack_of_run(y + j, columns, streams, load(values + (j - begin)));
        });
    }
}

// --- backward
// -------------------------------------------------------------------------------------

// g of a pack by its flags: dy, or dy times the other derivative.
template <class C>
struct GradientByFlags {
    FlagBits flags;
    Index first;
    Pack<C> other;
    bool is_zero;

    BNEXT_FORCE_INLINE GradientByFlags(const Activated& by, Index flag)
        : flags(by.flags),
          first(flag),
          other(broadcast(static_cast<C>(by.fused.other_derivative()))),
          is_zero(by.fused.other_derivative() == 0) {}
    BNEXT_FORCE_INLINE Pack<C> operator()(Index j, const Pack<C>& dy) const {
        const Pack<C> off = is_zero ? broadcast(C{0}) : dy * other;
        return where_set(flags_from(flags, first + j), dy, off);
    }
};

// What deviations are taken of: x, or in place z.
template <class S>
BNEXT_FORCE_INLINE Pack<S> deviating(const Fused& fused, const Pack<S>& x) {
    return fused.in_place ? argument_of(fused, x) : x;
}

// g = dy * act'(z) of the values [begin, end) of a run, at most a piece. In place, y has the sign
// of z.
template <class T>
BNEXT_NO_INLINE void gradient_of_piece(const ActivatedRun<T>& run, const ZOfRun<T>& z_of_run,
                                       Index begin, Index end, const Activated& by, Compute<T>* g) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const dy = run.in[1];
    const bool prefetches = run.ahead[0] != nullptr;
    const T *const next_x = run.ahead[0], *const next_dy = run.ahead[1];
    const auto prefetch = [&](Index j) BNEXT_INLINE_LAMBDA {
        if (!prefetches) return;
        prefetch_packs<1>(next_x + j);
        prefetch_packs<1>(next_dy + j);
    };
    if (by.flags.are_kept()) {
        const GradientByFlags<C> by_flags(by, run.flag);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch(j);
            store(g + (j - begin), by_flags(j, load_columns(dy + j, columns)));
        });
        return;
    }
    if (by.fused.activation == Activation::relu) {
        z_of_run.with_formulas([&](auto&& formula_at) BNEXT_INLINE_LAMBDA {
            for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
                prefetch(j);
                const Pack<C> z =
                    ZOfRun<T>::z(formula_at(j, columns), load_columns(x + j, columns));
                store(g + (j - begin), relu_gradient(z, load_columns(dy + j, columns)));
            });
        });
        return;
    }
    const T* const residual = by.fused.residual ? run.in[2] : nullptr;
    const ZOfRun<T> normalized = z_of_run;
    alignas(64) C of_dy[kPiece];
    for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        prefetch(j);
        Pack<C> z = load_columns(x + j, columns);
        if (!by.fused.in_place) z = normalized(j, columns, z);
        if (residual != nullptr) z = z + load_columns(residual + j, columns);
        store(g + (j - begin), z);
        store(of_dy + (j - begin), load_columns(dy + j, columns));
    });
    loops_of<C>(by.fused.activation)
        .derive(by.fused.negative_slope, g, of_dy, static_cast<int>(end - begin));
}

template <bool kByFlags, class T, class Walk>
BNEXT_NO_INLINE void write_plain_gradients(const ActivatedRun<T>& run, const Walk& walk,
                                           const Activated& by) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const dy = run.in[1];
    const T *const next_x = ahead_of(run, 0), *const next_dy = ahead_of(run, 1);
    T *const dx = run.out[0], *const dresidual = by.fused.residual ? run.out[1] : nullptr;
    const GradientByFlags<C> by_flags(by, run.flag);
    walk.for_each([&](Index j, int columns, const auto& formula, bool streams) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(next_x + j);
        prefetch_packs<1>(next_dy + j);
        const Pack<C> of_x = load_columns(x + j, columns), of_dy = load_columns(dy + j, columns);
        const Pack<C> g = kByFlags ? by_flags(j, of_dy) : formula.relu(of_x, of_dy);
        write_pack_of_run(dx + j, columns, streams, formula.from_gradient(of_x, g));
        if (kByFlags && dresidual != nullptr) {
            write_pack_of_run(dresidual + j, columns, streams, g);
        }
    });
}

template <class T>
BNEXT_NO_INLINE void write_gradients_by_loops(const ActivatedRun<T>& run, Index first, Index last,
                                              bool streams, const Activated& by) {
    using C = Compute<T>;
    using F = GradientActivated<Pack<C>>;
    const ZOfRun<T> z = z_of<T, Pass::backward>(run);
    const T* const x = run.in[0];
    T *const dx = run.out[0], *const dresidual = by.fused.residual ? run.out[1] : nullptr;
    const C* row[4];
    for (int r = 0; r < 4; ++r) row[r] = run.row[r];
    const Index step = run.step;
    alignas(64) C g[kPiece];
    for (Index begin = first; begin < last; begin += kPiece) {
        const Index end = last - begin < kPiece ? last : begin + kPiece;
        gradient_of_piece(run, z, begin, end, by, g);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            F formula;
            unrolled<4>([&](auto r) BNEXT_INLINE_LAMBDA {
                formula.row[r] = load_columns(row[r] + j * step, step == 0 ? 0 : columns);
            });
            const Pack<C> of_g = load(g + (j - begin));
            const Pack<C> of_x = deviating(by.fused, load_columns(x + j, columns));
            write_pack_of_run(dx + j, columns, streams, formula.from_gradient(of_x, of_g));
            if (dresidual != nullptr) write_pack_of_run(dresidual + j, columns, streams, of_g);
        });
    }
}

// --- both
// -----------------------------------------------------------------------------------------

// Writes what a walk goes through, if that needs no loop of an activation.
template <class Formula, class T, class Walk>
BNEXT_FORCE_INLINE bool write_plainly(const ActivatedRun<T>& run, const Walk& walk,
                                      const Activated& by, FlagWriter& flags) {
    if constexpr (!kHasWalks<T>) {
        return false;
    } else if constexpr (Formula::kFlags == Flags::written) {
        if (by.fused.activation != Activation::relu) return false;
        by.fused.residual ? write_relu<true>(run, walk, flags)
                          : write_relu<false>(run, walk, flags);
        return true;
    } else {
        if (!by.flags.are_kept() && by.fused.activation != Activation::relu) return false;
        by.flags.are_kept() ? write_plain_gradients<true>(run, walk, by)
                            : write_plain_gradients<false>(run, walk, by);
        return true;
    }
}

// Writes the values [begin, end) of a run.
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_run(const ActivatedRun<T>& run, Index begin, Index end, bool streams,
                                  const Activated& by, FlagWriter& flags) {
    if (begin >= end) return;
    if constexpr (Formula::kFlags == Flags::written) flags.begin_at(run.flag + begin);
    const RunWalk<Formula, T> walk{run, begin, end, streams};
    if (write_plainly<Formula>(run, walk, by, flags)) return;
    if constexpr (Formula::kFlags == Flags::written) {
        write_by_loops(run, begin, end, streams, by.fused, flags);
    } else {
        write_gradients_by_loops(run, begin, end, streams, by);
    }
}
