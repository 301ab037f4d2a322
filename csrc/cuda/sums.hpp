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

// What a block's threads share, behind the kept batches; shared_bytes_of_sums says how large.
struct SharedPlaces {
    Sums* scratch;         // a row of slab_channels for every warp
    Sums* of_block;        // two rows: others of the cluster read one while the next is made
    double* coefficients;  // kCoefficients a channel
};
BNEXT_DEVICE SharedPlaces shared_places(const Cut& cut, unsigned char* after_kept) {
    auto* const sums = reinterpret_cast<Sums*>(after_kept);
    const int row = cut.slab_channels();
    const int warps = cut.threads / kWarp;
    Sums* const of_block = sums + warps * row;
    return {sums, of_block, reinterpret_cast<double*>(of_block + 2 * row)};
}

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

BNEXT_DEVICE double* partial_of(const Arguments& a, Index slab, int part, int channel) {
    const Index row = slab * a.cut.parts + part;
    return a.partials + (row * a.cut.slab_channels() + channel) * kSumsValues;
}
BNEXT_DEVICE void write_partials(const Arguments& a, Index slab, int part, const Sums* sums) {
    for (int c = device::thread(); c < a.cut.slab_channels(); c += device::threads()) {
        double* const p = partial_of(a, slab, part, c);
        p[0] = sums[c].n;
        p[1] = sums[c].first;
        p[2] = sums[c].second;
        p[3] = sums[c].pilot;
    }
}

// All parts' sums of a slab, from the workspace, by the whole block: thread t reads channel
// t % width of every (threads / width)-th part. As merge_block, also in what it leaves.
BNEXT_DEVICE void merge_partials(const Arguments& a, Index slab, Sums* scratch, Sums* result) {
    const int width = a.cut.slab_channels();
    const int t = device::thread(), threads = device::threads();
    Sums own;
    const int stride = threads / width;
    for (int part = t / width; part < a.cut.parts; part += stride) {
        const double* const p = partial_of(a, slab, part, t % width);
        const Sums next{device::load_fresh(p), device::load_fresh(p + 1), device::load_fresh(p + 2),
                        device::load_fresh(p + 3)};
        if (part == t / width) own.pilot = next.pilot;
        add(own, next);
    }
    int rows = threads / width;
    if (width < kWarp) {
        own = merge_lanes(own, width);
        rows = threads / kWarp;
        if (t % kWarp < width) scratch[t / kWarp * width + t % kWarp] = own;
    } else {
        scratch[t] = own;
    }
    device::block_barrier();
    for (int c = t; c < width; c += threads) result[c] = merge_rows(scratch + c, rows, width);
}

// The sums of the slab's channels over all its parts, in `of_block`, which had this part's. Every
// block of the slab calls this, and gets the same bits. All of them must be running.
BNEXT_DEVICE void exchange_over_grid(const Arguments& a, Index slab, int part, Sums* of_block,
                                     Sums* scratch) {
    write_partials(a, slab, part, of_block);
    device::block_barrier();
    if (device::thread() == 0) {
        device::arrive(a.counters + slab);
        device::wait_for(a.counters + slab, static_cast<unsigned>(a.cut.parts));
    }
    device::block_barrier();
    merge_partials(a, slab, scratch, of_block);
}

// Whether all other parts of the slab have written their sums: true in one block of them.
BNEXT_DEVICE bool is_last_of(const Arguments& a, Index slab, double* shared_flag) {
    device::block_barrier();
    if (device::thread() == 0) {
        const unsigned before = device::arrive(a.counters + slab);
        *shared_flag = before + 1 == static_cast<unsigned>(a.cut.parts) ? 1.0 : 0.0;
    }
    device::block_barrier();
    return *shared_flag != 0.0;
}

}  // namespace bnext::cuda
