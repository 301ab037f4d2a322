// Activated passes (core/formulas.hpp) over a run: values that follow each other, with their
// coefficients and flags. Layouts differ only in the runs that they are cut into.
//
// A run goes by pieces that stay in the first-level cache: z of a piece is made, then a loop of the
// activation goes over it, then it is written. So there is one loop for each activation and compute
// type, and not one for each dtype, layout and pass besides. Activations of a few instructions,
// which cost less than this, stay in registers where there are walks for them, and so do the smooth
// ones of with_frequent_activation: their arithmetic then goes on while memory is waited for.

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
    walk.go_storing([&](Index j, int columns, bool streams,
                        const auto& formula) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(next_x + j);
        if constexpr (kResidual) prefetch_packs<1>(next_residual + j);
        const Pack<C> of_x = load_columns(x + j, columns);
        const Pack<C> z = kResidual ? formula.normalized(of_x) + load_columns(residual + j, columns)
                                    : formula.normalized(of_x);
        write_pack_of_run(y + j, columns, streams, activate<true>(fused, z));
        if (!keeps) return;
        const unsigned bits = bits_of(passes(fused, z));
        columns == 0 ? writer.put_pack(bits) : writer.put(bits & ((1U << columns) - 1U), columns);
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

    GradientByFlags() = default;
    BNEXT_FORCE_INLINE GradientByFlags(const Activated& by, Index flag)
        : flags(by.flags),
          first(flag),
          other(broadcast(static_cast<C>(by.fused.other_derivative()))),
          is_zero(by.fused.other_derivative() == 0) {}
    BNEXT_FORCE_INLINE Pack<C> operator()(Index j, const Pack<C>& dy) const {
        return is_zero ? at<true>(j, dy) : at<false>(j, dy);
    }
    template <bool kZero>
    BNEXT_FORCE_INLINE Pack<C> at(Index j, const Pack<C>& dy) const {
        const Pack<C> off = kZero ? broadcast(C{0}) : dy * other;
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
    if (!by.fused.residual && !by.fused.in_place && by.fused.activation == Activation::relu) {
        return quickly(std::integral_constant<Activation, Activation::relu>{});
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

// dresidual by flags, n values that follow each other, past the caches by lines of its own.
template <class T>
BNEXT_NO_INLINE void stream_dresidual(const T* dy, T* dresidual, Index flag, Index n,
                                      const Activated& by) {
    const GradientByFlags<Compute<T>> by_flags(by, flag);
    const int head = values_to_boundary(dresidual, n);
    const auto some = [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        store_columns(dresidual + j, columns, by_flags(j, load_columns(dy + j, columns)));
    };
    if (head > 0) some(0, head);
    Index j = head;
    for (; j + kLanes <= n; j += kLanes) stream(dresidual + j, by_flags(j, load(dy + j)));
    if (j < n) some(j, static_cast<int>(n - j));
}

// Whether a pass by flags streams dx and dresidual one after the other, since their lines begin at
// other places. dresidual comes first: dx may be written over dy.
template <class Formula, class T>
BNEXT_FORCE_INLINE bool streams_apart(T* const (&out)[Formula::kWrites], const T* dy,
                                      const FlagBits& flags) {
    if constexpr (kHasWalks<T> && Formula::kFlags == Flags::read) {
        return flags.are_kept() && !begin_alike(out) && out[1] != dy;
    } else {
        return false;
    }
}

// By flags, there is a dresidual, null where it has been written; without flags, no residual.
template <Activation A, bool kByFlags, class T, class Walk>
BNEXT_NO_INLINE void write_gradients_in_registers(const ActivatedRun<T>& run, const Walk& walk,
                                                  const Activated& by) {
    using C = Compute<T>;
    constexpr bool kZero = A != Activation::leaky_relu;  // the other derivative
    const Fused fused{A, by.fused.negative_slope, false};
    const T *const x = run.in[0], *const dy = run.in[1];
    const T *const next_x = ahead_of(run, 0), *const next_dy = ahead_of(run, 1);
    T *const dx = run.out[0], *const dresidual = run.out[1];
    const GradientByFlags<C> by_flags(by, run.flag);
    walk.go_storing(
        [&](Index j, int columns, bool streams, const auto& formula) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(next_x + j);
            prefetch_packs<1>(next_dy + j);
            const Pack<C> of_x = load_columns(x + j, columns);
            const Pack<C> of_dy = loaded(load_columns(dy + j, columns));
            const Pack<C> g = kByFlags ? by_flags.template at<kZero>(j, of_dy)
                                       : gradient_through<true>(fused, formula.z(of_x), of_dy);
            write_pack_of_run(dx + j, columns, streams, formula.from_gradient(of_x, g));
            if (kByFlags && dresidual != nullptr) {
                write_pack_of_run(dresidual + j, columns, streams, g);
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
            if (residual != nullptr) z = z + load_columns(residual + j, columns);
            if (is_relu) return store(g + (j - begin), relu_gradient(z, dy_here));
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
            const auto write_alone = [&](auto activation) BNEXT_INLINE_LAMBDA {
                constexpr Activation A = decltype(activation)::value;
                write_in_registers<A, false>(run, walk, fused.negative_slope, flags);
            };
            if (!fused.residual && with_frequent_activation(fused.activation, write_alone)) return;
        }
        write_by_loops(run, walk, fused, flags);
    } else {
        if constexpr (kHasWalks<T>) {
            if (by.flags.are_kept()) {
                using enum Activation;
                return fused.activation == leaky_relu
                           ? write_gradients_in_registers<leaky_relu, true>(run, walk, by)
                           : write_gradients_in_registers<relu, true>(run, walk, by);
            }
            const auto write = [&](auto activation) BNEXT_INLINE_LAMBDA {
                write_gradients_in_registers<decltype(activation)::value, false>(run, walk, by);
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
