// Sums of a channel, and how those of threads, warps, blocks and parts become one: always in the
// same order, so that a launch gives the same bits every time.
//
// Forward, with a pilot p near the channel's values,
//     first = sum (x - p),  second = sum (x - p)^2,  n values
// and sums about another pilot q follow from them, with d = p - q:
//     first' = first + n d,  second' = second + d (2 first + n d)
// so that merging needs no division. At the end
//     mean = p + first / n,  m2 = second - first^2 / n
// What cancels there is n (mean - p)^2. A pilot is the mean of k values side by side that are in
// the sums, of three such units the middle one: so 2 k (mean - p)^2 is at most about m2, whatever
// the data, and of 53 bits log2(n / 2k) are lost at worst. Of ordinary data nothing is lost, nor by
// one outlier.
//
// Backward, first = sum dy and second = sum dy (x - center), and all pilots are 0.
#pragma once

#include "cuda/values.hpp"

namespace bnext::cuda {

BNEXT_DEVICE Sums about(Sums s, double pilot) {
    const double d = s.pilot - pilot;
    const double nd = s.n * d;
    s.second += d * (2.0 * s.first + nd);
    s.first += nd;
    s.pilot = pilot;
    return s;
}
BNEXT_DEVICE void add(Sums& total, const Sums& more) {
    const Sums s = about(more, total.pilot);
    total.n += s.n;
    total.first += s.first;
    total.second += s.second;
}

// What a block's threads share, behind the data.
template <class K>
struct SharedPlaces {
    using C = typename K::C;

    Sums* of_block;   // a row of slab_channels
    Sums* scratch;    // such a row for every warp
    C* coefficients;  // kCoefficients a channel

    BNEXT_DEVICE SharedPlaces(const Cut& cut, unsigned char* behind_data)
        : of_block(reinterpret_cast<Sums*>(behind_data)),
          scratch(of_block + cut.slab_channels()),
          coefficients(reinterpret_cast<C*>(behind_data + shared_bytes_of_sums(cut))) {}
};

// Lanes that are `columns` apart (a power of two up to 32) have sums of the same channel: added by
// one tree, about the pilot of the first of them.
BNEXT_DEVICE Sums merge_lanes(const Sums& own, int columns) {
    const int lane = device::thread() % kWarp;
    Sums s = about(own, device::shuffle(own.pilot, lane % columns));
    for (int lanes = kWarp / 2; lanes >= columns; lanes /= 2) {
        s.n += device::shuffle_xor(s.n, lanes);
        s.first += device::shuffle_xor(s.first, lanes);
        s.second += device::shuffle_xor(s.second, lanes);
    }
    return s;
}

// Rows of `width` sums, added in their order.
BNEXT_DEVICE Sums merge_rows(const Sums* sums, int rows, int width) {
    Sums total = sums[0];
    for (int r = 1; r < rows; ++r) add(total, sums[r * width]);
    return total;
}

// Of the threads of a block, each with sums of the unit_channels of its column: to `result`, of
// which thread c has written channel c (and c + threads ...). No barrier at the end.
template <int kChannels>
BNEXT_DEVICE void merge_block(const Cut& cut, const Sums (&own)[kChannels], Sums* scratch,
                              Sums* result) {
    const int lane = device::thread() % kWarp, warp = device::thread() / kWarp;
    const int width = cut.slab_channels();
    for (int c = 0; c < kChannels; ++c) {
        const Sums s = merge_lanes(own[c], cut.columns);
        if (lane < cut.columns) scratch[warp * width + lane * kChannels + c] = s;
    }
    device::block_barrier();
    for (int c = device::thread(); c < width; c += device::threads()) {
        result[c] = merge_rows(scratch + c, device::threads() / kWarp, width);
    }
}

// What other blocks have written.
BNEXT_DEVICE Sums read_sums(const Sums* p) {
    return {device::load_fresh(&p->n), device::load_fresh(&p->first),
            device::load_fresh(&p->second), device::load_fresh(&p->pilot)};
}

BNEXT_DEVICE Sums* partial_of(const Arguments& a, Index slab, int part, int channel) {
    const Index row = slab * a.cut.parts + part;
    return a.partials + row * a.cut.slab_channels() + channel;
}
BNEXT_DEVICE void write_partials(const Arguments& a, Index slab, int part, const Sums* sums) {
    for (int c = device::thread(); c < a.cut.slab_channels(); c += device::threads()) {
        *partial_of(a, slab, part, c) = sums[c];
    }
}

// The sums of a channel over the parts first, first + stride ...
BNEXT_DEVICE Sums merge_some_parts(const Arguments& a, Index slab, int channel, int first,
                                   int stride) {
    Sums total;
    for (int part = first; part < a.cut.parts; part += stride) {
        const Sums next = read_sums(partial_of(a, slab, part, channel));
        if (part == first) total.pilot = next.pilot;
        add(total, next);
    }
    return total;
}

// All parts' sums of a slab, from the workspace, by the whole block: thread t reads channel
// t % width of every (threads / width)-th part. As merge_block, also in what it leaves.
BNEXT_DEVICE void merge_partials(const Arguments& a, Index slab, Sums* scratch, Sums* result) {
    const int width = a.cut.slab_channels();
    const int t = device::thread(), threads = device::threads();
    Sums own = merge_some_parts(a, slab, t % width, t / width, threads / width);
    int rows = threads / width;
    if (width < kWarp) {
        own = merge_lanes(own, width);
        rows = threads / kWarp;
        if (t % kWarp < width) scratch[t / kWarp * width + t % kWarp] = own;
    } else {
        scratch[t] = own;
    }
    device::block_barrier();
    for (int c = t; c < width; c += threads) {
        result[c] = merge_rows(scratch + c, rows, width);
    }
}

// Waits until every part of the slab has come to that counter, and does something else meanwhile.
// All of them must be running.
template <class F>
BNEXT_DEVICE void meet(const Arguments& a, unsigned* counter, F&& meanwhile) {
    device::block_barrier();
    if (device::thread() == 0) device::arrive_and_forget(counter);
    meanwhile();
    if (device::thread() == 0) device::wait_for(counter, static_cast<unsigned>(a.cut.parts));
    device::block_barrier();
}

// The sums of the slab's channels over all its parts, in `of_block`, which had this part's. Every
// block of the slab calls this, and gets the same bits. Where it were much to read all parts' sums
// of all channels in every block, each merges a share of the channels, and reads the results.
template <class F>
BNEXT_DEVICE void exchange_over_grid(const Arguments& a, Index slab, int part, Sums* of_block,
                                     Sums* scratch, F&& meanwhile) {
    write_partials(a, slab, part, of_block);
    meet(a, a.counters + slab, meanwhile);
    if (!a.shares) return merge_partials(a, slab, scratch, of_block);
    const int lane = device::thread() % kWarp, warp = device::thread() / kWarp;
    const int warps = device::threads() / kWarp, width = a.cut.slab_channels();
    Sums* const totals = a.totals + slab * width;
    for (int c = part + a.cut.parts * warp; c < width; c += a.cut.parts * warps) {
        const Sums total = merge_lanes(merge_some_parts(a, slab, c, lane, kWarp), 1);
        if (lane == 0) totals[c] = total;
    }
    meet(a, a.counters + a.cut.slabs + slab, [] {});
    for (int c = device::thread(); c < width; c += device::threads()) {
        of_block[c] = read_sums(totals + c);
    }
}

// Whether all other parts of the slab have written their sums: true in one block of them.
template <class C>
BNEXT_DEVICE bool is_last_of(const Arguments& a, Index slab, C* shared_flag) {
    device::block_barrier();
    if (device::thread() == 0) {
        const unsigned before = device::arrive(a.counters + slab);
        *shared_flag = before + 1 == static_cast<unsigned>(a.cut.parts) ? C{1} : C{0};
    }
    device::block_barrier();
    return *shared_flag != C{0};
}

}  // namespace bnext::cuda
