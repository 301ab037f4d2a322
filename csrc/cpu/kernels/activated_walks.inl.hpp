// What activated passes go along: runs of values that follow each other, the loops of activations
// over a piece of a run, and walks through the packs of a run with the formula of each.

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
struct LoopsByNumber {
    ActivationLoops<C> of[kActivations];
};
template <class C, int... A>
constexpr LoopsByNumber<C> loops_by_number(std::integer_sequence<int, A...>) {
    return {{{activate_piece<static_cast<Activation>(A), C>,
              derive_piece<static_cast<Activation>(A), C>}...}};
}
template <class C>
constexpr LoopsByNumber<C> kActivationLoops =
    loops_by_number<C>(std::make_integer_sequence<int, kActivations>{});

template <class C>
BNEXT_FORCE_INLINE const ActivationLoops<C>& loops_of(Activation activation) {
    return kActivationLoops<C>.of[static_cast<int>(activation)];
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
// Where the sums of such gradients are made in registers: of bfloat16, ReLU's and those by flags.
template <class T>
inline constexpr bool kSumsInRegisters =
    kHasWalks<T> || (kNativeBytes == 64 && DTypeOf<T>::value == DType::bfloat16);

// Calls f with the activation as a constant, if it is one of these. Returns whether it is.
template <Activation... kThese, class F>
BNEXT_FORCE_INLINE bool with_activation_of(Activation activation, F&& f) {
    const auto is = [&](auto one) BNEXT_INLINE_LAMBDA {
        if (activation != one) return false;
        f(one);
        return true;
    };
    return (is(std::integral_constant<Activation, kThese>{}) || ...);
}
template <class F>
BNEXT_FORCE_INLINE bool with_quick_activation(Activation activation, F&& f) {
    using enum Activation;
    return with_activation_of<relu, relu6, leaky_relu, hardswish>(activation, f);
}
// The smooth ones that networks have most often: their forward pass without an addition.
template <class F>
BNEXT_FORCE_INLINE bool with_frequent_activation(Activation activation, F&& f) {
    using enum Activation;
    return with_activation_of<silu, gelu>(activation, f);
}

// --- formulas along a run
// -------------------------------------------------------------------------
// A walk goes through the packs of a run. go(at, stop, f) calls f(j, columns, formula) for those
// from `at` on to value `stop`, of which `columns` values exist (0: all), with the formula of these
// values; `at` is then where to go on. piece_end(j) is where a piece that begins at j ends: up to
// there all packs are stored alike, streams(j). go_storing(f) goes through all packs, and calls
// f(j, columns, streams, formula), of which the two in the middle are constants for whole packs: so
// short are the loops that more of memory is waited for at once.

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
    template <class Call>
    BNEXT_FORCE_INLINE void go_storing(Call&& f) const {
        const Compute<T>* row[Formula::kRows];
        for (int r = 0; r < Formula::kRows; ++r) row[r] = run.row[r];
        const auto formula_at = [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            Formula formula;
            unrolled<Formula::kRows>([&](auto r) BNEXT_INLINE_LAMBDA {
                formula.row[r] = load_columns(row[r] + j, columns);
            });
            return formula;
        };
        Index j = begin;
        if (streamed) {
            for (; j + kLanes <= end; j += kLanes) f(j, 0, true, formula_at(j, 0));
        } else {
            for (; j + kLanes <= end; j += kLanes) f(j, 0, false, formula_at(j, 0));
        }
        const int rest = static_cast<int>(end - j);
        if (rest > 0) f(j, rest, false, formula_at(j, rest));
    }
};

// Planes of n values each, of channels k, k + 1, ..., that follow each other without a gap. Where
// there are several, n is at least a unit. A pack ends at `head`, and those behind it are
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
        go_by_stretches(at, stop,
                        [&](Index j, Index behind, int columns, const Formula& formula)
                            BNEXT_INLINE_LAMBDA {
                                for (; j < behind; j += kLanes) f(j, columns, formula);
                            });
    }
    template <class Call>
    BNEXT_FORCE_INLINE void go_storing(Call&& f) const {
        Place at = start();
        go_by_stretches(at, end,
                        [&](Index j, Index behind, int columns, const Formula& formula)
                            BNEXT_INLINE_LAMBDA {
                                if (columns != 0) return f(j, columns, false, formula);
                                if (streams(j)) {
                                    for (; j < behind; j += kLanes) f(j, 0, true, formula);
                                } else {
                                    for (; j < behind; j += kLanes) f(j, 0, false, formula);
                                }
                            });
    }

private:
    // Calls stretch(j, behind, columns, formula) for packs that begin at j, ... and before
    // `behind`.
    template <class Stretch>
    BNEXT_FORCE_INLINE void go_by_stretches(Place& at, Index stop, Stretch&& stretch) const {
        Index j = at.j;
        while (j < stop) {
            if (j == at.end && j < end) enter_next(at);
            const Index left = (j < head && head < stop ? head : stop) - j;
            const Index of_plane = at.end - j, here = left < of_plane ? left : of_plane;
            // Whole packs of the plane, or one pack that is cut or goes on in the next plane.
            const bool whole = here >= kLanes;
            const int columns = whole || left >= kLanes ? 0 : static_cast<int>(left);
            const bool crosses = !whole && j >= head && at.end < end;
            if (crosses) {
                const Formula next = formula_of_channel<Formula>(all, at.channel + 1);
                at.formula = across(static_cast<int>(of_plane), at.formula, next);
            }
            const Index behind = whole ? j + here / kLanes * kLanes : j + 1;
            stretch(j, behind, columns, at.formula);
            j = columns != 0 ? j + columns : j + (behind - j + kLanes - 1) / kLanes * kLanes;
            if (crosses) enter_next(at);
        }
        at.j = j;
    }
    BNEXT_FORCE_INLINE void enter_next(Place& at) const {
        at.formula = formula_of_channel<Formula>(all, ++at.channel);
        at.end += n;
    }
};
