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
    const C* row[kMostRows];  // coefficients, of every value, where a RunWalk reads them
    Index flag;               // of the first value, where flags are kept
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

// Where activations of a few instructions and gradients by flags are made in registers. The other
// data and instruction sets go by the loops alone, so that less is compiled.
template <class T>
inline constexpr bool kHasWalks = kNativeBytes > 16 && DTypeOf<T>::value == DType::float32;

// Calls f with one of these activations as a constant. Returns whether it is one.
template <class F>
BNEXT_FORCE_INLINE bool with_quick_activation(Activation activation, F&& f) {
    const auto is = [&](auto quick) BNEXT_INLINE_LAMBDA {
        if (activation != quick) return false;
        f(quick);
        return true;
    };
    using enum Activation;
    return is(std::integral_constant<Activation, relu>{}) ||
           is(std::integral_constant<Activation, relu6>{}) ||
           is(std::integral_constant<Activation, leaky_relu>{}) ||
           is(std::integral_constant<Activation, hardswish>{});
}

// --- formulas along a run
// -------------------------------------------------------------------------
// A walk goes through the packs of a run. go(at, stop, f) calls f(j, columns, formula) for those
// from `at` on to value `stop`, of which `columns` values exist (0: all), with the formula of these
// values; `at` is then where to go on. piece_end(j) is where a piece that begins at j ends: up to
// there all packs are stored alike, streams(j).

// The values [begin, end) of a run, by its coefficients.
template <class F, class T>
struct RunWalk {
    using Formula = F;
    struct Place {
        Index j;
    };
    const ActivatedRun<T>& run;
    Index begin, end;
    bool streamed;

    [[nodiscard]] BNEXT_FORCE_INLINE Place start() const { return {begin}; }
    [[nodiscard]] BNEXT_FORCE_INLINE Index piece_end(Index j) const {
        return end - j < kPiece ? end : j + kPiece;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool streams(Index) const { return streamed; }
    template <class Call>
    BNEXT_FORCE_INLINE void go(Place& at, Index stop, Call&& f) const {
        const Compute<T>* row[Formula::kRows];
        for (int r = 0; r < Formula::kRows; ++r) row[r] = run.row[r];
        for_each_pack_of(at.j, stop, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            Formula formula;
            unrolled<Formula::kRows>([&](auto r) BNEXT_INLINE_LAMBDA {
                formula.row[r] = load_columns(row[r] + j, columns);
            });
            f(j, columns, formula);
        });
        at.j = stop;
    }
};

// Planes of n values each, of channels k, k + 1, ..., that follow each other without a gap. Where
// there are several, n is at least two units. A pack ends at `head`, and those behind it are
// streamed; one in which a plane ends and the next begins has a formula blended of both.
template <class F, class T>
struct PlaneWalk {
    using Formula = F;
    struct Place {
        Index j, channel, end;  // of the channel's plane
        Formula formula;
    };
    const CoefficientsIn<Compute<T>>& all;
    Index k, n, end, head;  // end: of all planes
    bool streamed;

    [[nodiscard]] BNEXT_FORCE_INLINE Place start() const {
        return {0, k, n, formula_of_channel<Formula>(all, k)};
    }
    [[nodiscard]] BNEXT_FORCE_INLINE Index piece_end(Index j) const {
        if (j < head) return head - j < kPiece ? head : j + kPiece;
        return end - j < kPiece ? end : j + kPiece;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool streams(Index j) const { return streamed && j >= head; }
    template <class Call>
    BNEXT_FORCE_INLINE void go(Place& at, Index stop, Call&& f) const {
        while (at.j < stop) {
            const Index left = (at.j < head && head < stop ? head : stop) - at.j;
            const int columns = left < kLanes ? static_cast<int>(left) : 0;
            const bool ends = at.j >= head && at.end < end && at.j + kLanes > at.end;
            if (ends) {
                const Formula next = formula_of_channel<Formula>(all, at.channel + 1);
                at.formula = across(static_cast<int>(at.end - at.j), at.formula, next);
            }
            f(at.j, columns, at.formula);
            if (ends) {
                at.formula = formula_of_channel<Formula>(all, ++at.channel);
                at.end += n;
            }
            at.j += lanes_in(columns);
        }
    }
};

// --- forward
// --------------------------------------------------------------------------------------

template <Activation A, bool kResidual, class T, class Walk>
BNEXT_NO_INLINE void write_in_registers(const ActivatedRun<T>& run, const Walk& walk, double slope,
                                        FlagWriter& flags) {
    using C = Compute<T>;
    const Fused fused{A, slope, kResidual};
    const T *const x = run.in[0], *const residual = run.in[1];
    const T *const next_x = ahead_of(run, 0), *const next_residual = ahead_of(run, 1);
    T* const y = run.out[0];
    FlagWriter writer = flags;
    const bool keeps = fused.keeps_flags() && writer.are_kept();
    auto at = walk.start();
    walk.go(at, walk.end, [&](Index j, int columns, const auto& formula) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(next_x + j);
        if constexpr (kResidual) prefetch_packs<1>(next_residual + j);
        const Pack<C> of_x = load_columns(x + j, columns);
        const Pack<C> z = kResidual ? formula.normalized(of_x) + load_columns(residual + j, columns)
                                    : formula.normalized(of_x);
        write_pack_of_run(y + j, columns, walk.streams(j), activate<true>(fused, z));
        if (keeps) {
            const unsigned bits = bits_of(passes(fused, z));
            writer.put(bits & ((1U << lanes_in(columns)) - 1U), lanes_in(columns));
        }
    });
    if (keeps) flags = writer;
}

template <class T, class Walk>
BNEXT_NO_INLINE void write_by_loops(const ActivatedRun<T>& run, const Walk& walk,
                                    const Fused& fused, FlagWriter& flags) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const residual = fused.residual ? run.in[1] : nullptr;
    const T* const next_x = ahead_of(run, 0);
    T* const y = run.out[0];
    const auto activate = loops_of<C>(fused.activation).activate;
    FlagWriter* const kept = flags.are_kept() ? &flags : nullptr;
    alignas(64) C values[kPiece];
    auto at = walk.start();
    while (at.j < walk.end) {
        const Index begin = at.j, end = walk.piece_end(begin);
        walk.go(at, end, [&](Index j, int columns, const auto& formula) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(next_x + j);
            Pack<C> z = formula.normalized(load_columns(x + j, columns));
            if (residual != nullptr) z = z + load_columns(residual + j, columns);
            store(values + (j - begin), z);
        });
        activate(fused.negative_slope, values, static_cast<int>(end - begin), kept);
        const bool streams = walk.streams(begin);
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
    const auto quickly = [&](auto activation) BNEXT_INLINE_LAMBDA {
        const Fused fused{decltype(activation)::value, by.fused.negative_slope, false};
        z_of_run.with_formulas([&](auto&& formula_at) BNEXT_INLINE_LAMBDA {
            for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
                prefetch(j);
                const Pack<C> z =
                    ZOfRun<T>::z(formula_at(j, columns), load_columns(x + j, columns));
                store(g + (j - begin),
                      gradient_through<true>(fused, z, load_columns(dy + j, columns)));
            });
        });
    };
    if (!by.fused.residual && !by.fused.in_place) {
        if constexpr (kHasWalks<T>) {
            if (with_quick_activation(by.fused.activation, quickly)) return;
        } else if (by.fused.activation == Activation::relu) {
            return quickly(std::integral_constant<Activation, Activation::relu>{});
        }
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

// A is none: by flags.
template <Activation A, class T, class Walk>
BNEXT_NO_INLINE void write_gradients_in_registers(const ActivatedRun<T>& run, const Walk& walk,
                                                  const Activated& by) {
    using C = Compute<T>;
    constexpr bool kByFlags = A == Activation::none;
    const Fused fused{A, by.fused.negative_slope, false};
    const T *const x = run.in[0], *const dy = run.in[1];
    const T *const next_x = ahead_of(run, 0), *const next_dy = ahead_of(run, 1);
    T *const dx = run.out[0], *const dresidual = by.fused.residual ? run.out[1] : nullptr;
    const GradientByFlags<C> by_flags(by, run.flag);
    auto at = walk.start();
    walk.go(at, walk.end, [&](Index j, int columns, const auto& formula) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(next_x + j);
        prefetch_packs<1>(next_dy + j);
        const Pack<C> of_x = load_columns(x + j, columns), of_dy = load_columns(dy + j, columns);
        const Pack<C> g =
            kByFlags ? by_flags(j, of_dy) : gradient_through<true>(fused, formula.z(of_x), of_dy);
        write_pack_of_run(dx + j, columns, walk.streams(j), formula.from_gradient(of_x, g));
        if (kByFlags && dresidual != nullptr) {
            write_pack_of_run(dresidual + j, columns, walk.streams(j), g);
        }
    });
}

template <class T, class Walk>
BNEXT_NO_INLINE void write_gradients_by_loops(const ActivatedRun<T>& run, const Walk& walk,
                                              const Activated& by) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const dy = run.in[1];
    const T* const residual = by.fused.reads_residual() ? run.in[2] : nullptr;
    const T *const next_x = ahead_of(run, 0), *const next_dy = ahead_of(run, 1);
    T *const dx = run.out[0], *const dresidual = by.fused.residual ? run.out[1] : nullptr;
    const GradientByFlags<C> by_flags(by, run.flag);
    const bool has_flags = by.flags.are_kept(), is_relu = by.fused.activation == Activation::relu;
    const auto derive = loops_of<C>(by.fused.activation).derive;
    alignas(64) C g[kPiece], of_dy[kPiece];
    auto at = walk.start(), again = walk.start();
    while (at.j < walk.end) {
        const Index begin = at.j, end = walk.piece_end(begin);
        walk.go(at, end, [&](Index j, int columns, const auto& formula) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(next_x + j);
            prefetch_packs<1>(next_dy + j);
            const Pack<C> dy_here = load_columns(dy + j, columns);
            if (has_flags) return store(g + (j - begin), by_flags(j, dy_here));
            Pack<C> z = load_columns(x + j, columns);
            if (!by.fused.in_place) z = formula.z(z);
            if (is_relu) return store(g + (j - begin), relu_gradient(z, dy_here));
            if (residual != nullptr) z = z + load_columns(residual + j, columns);
            store(g + (j - begin), z);
            store(of_dy + (j - begin), dy_here);
        });
        if (!has_flags && !is_relu) {
            derive(by.fused.negative_slope, g, of_dy, static_cast<int>(end - begin));
        }
        const bool streams = walk.streams(begin);
        walk.go(again, end, [&](Index j, int columns, const auto& formula) BNEXT_INLINE_LAMBDA {
            const Pack<C> of_g = load(g + (j - begin));
            const Pack<C> of_x = deviating(by.fused, load_columns(x + j, columns));
            write_pack_of_run(dx + j, columns, streams, formula.from_gradient(of_x, of_g));
            if (dresidual != nullptr) write_pack_of_run(dresidual + j, columns, streams, of_g);
        });
    }
}

// --- both
// -----------------------------------------------------------------------------------------

// Writes what a walk goes through.
template <class T, class Walk>
BNEXT_FORCE_INLINE void write_walk(const ActivatedRun<T>& run, const Walk& walk,
                                   const Activated& by, FlagWriter& flags) {
    const Fused& fused = by.fused;
    if constexpr (Walk::Formula::kFlags == Flags::written) {
        if constexpr (kHasWalks<T>) {
            const auto write = [&](auto activation) BNEXT_INLINE_LAMBDA {
                constexpr Activation A = decltype(activation)::value;
                fused.residual
                    ? write_in_registers<A, true>(run, walk, fused.negative_slope, flags)
                    : write_in_registers<A, false>(run, walk, fused.negative_slope, flags);
            };
            if (with_quick_activation(fused.activation, write)) return;
        }
        write_by_loops(run, walk, fused, flags);
    } else {
        if constexpr (kHasWalks<T>) {
            if (by.flags.are_kept()) {
                return write_gradients_in_registers<Activation::none>(run, walk, by);
            }
            const auto write = [&](auto activation) BNEXT_INLINE_LAMBDA {
                write_gradients_in_registers<decltype(activation)::value>(run, walk, by);
            };
            if (!fused.residual && !fused.in_place &&
                with_quick_activation(fused.activation, write)) {
                return;
            }
        }
        write_gradients_by_loops(run, walk, by);
    }
}

// Writes the values [begin, end) of a run.
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_run(const ActivatedRun<T>& run, Index begin, Index end, bool streams,
                                  const Activated& by, FlagWriter& flags) {
    if (begin >= end) return;
    if constexpr (Formula::kFlags == Flags::written) flags.begin_at(run.flag + begin);
    write_walk(run, RunWalk<Formula, T>{run, begin, end, streams}, by, flags);
}
