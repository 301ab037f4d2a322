#include "cpu/own_weights.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace bnext::cpu {
namespace {

// The lowest bits of 8 bytes, each of which is 0 or 1.
unsigned bits_of_bytes(const std::uint8_t* bytes) {
    std::uint64_t all = 0;
    std::memcpy(&all, bytes, sizeof all);
    return static_cast<unsigned>((all * 0x0102040810204080U) >> 56U);
}

// Sets bits, and writes down the numbers of those that are set. Returns how many there are.
Index pack_bits(std::span<const std::uint8_t> counts, std::uint16_t* words, Index* counted) {
    Index found = 0;
    for (std::size_t begin = 0; begin < counts.size(); begin += 16) {
        const std::size_t size = std::min<std::size_t>(16, counts.size() - begin);
        unsigned word = 0;
        if (size == 16) {
            word = bits_of_bytes(&counts[begin]) | bits_of_bytes(&counts[begin + 8]) << 8U;
        } else {
            for (std::size_t k = 0; k < size; ++k) word |= unsigned{counts[begin + k]} << k;
        }
        words[begin / 16] = static_cast<std::uint16_t>(word);
        for (; word != 0; word &= word - 1) {
            counted[found++] = static_cast<Index>(begin) + std::countr_zero(word);
        }
    }
    return found;
}

}  // namespace

template <class C>
OwnWeights<C>::OwnWeights(const Problem& problem, std::span<const std::uint8_t> counts,
                          std::span<const C> weights, Outside outside)
    : words_(flag_words(counts.size())), each_(weights.size()), counted_(counts.size()) {
    const Tiling tiling(problem_of_positions(problem));
    std::fill_n(words_.data(), flag_words(counts.size()), std::uint16_t{0});
    const Index found = pack_bits(counts, words_.data(), counted_.data());
    std::ranges::copy(weights, each_.data());

    const Index inner = std::max<Index>(problem.inner, 1);
    const auto usual_of = [&](Index begin, Index end) {
        const auto place = [&](Index k) {
            const Index number = counted_.data()[k];
            return Place{number / inner, number % inner};
        };
        if (begin == end) return UsualPlaces{};
        return UsualPlaces{place(begin), place((begin + end) / 2), place(end - 1)};
    };
    tiles_ = PoolArray<TileOfWeights>(static_cast<std::size_t>(tiling.tiles()) + 1);
    double total = 0;
    Index end = 0;
    for (Index t = 0; t < tiling.tiles(); ++t) {
        const Tile tile = tiling.tile(t);
        const Index behind = (tile.outer_end - 1) * inner + tile.inner_end;
        TileOfWeights of_tile{0.0, end, {}};
        end = std::lower_bound(counted_.data() + end, counted_.data() + found, behind) -
              counted_.data();
        for (Index k = of_tile.begin; k < end && !weights.empty(); ++k) {
            of_tile.weight += static_cast<double>(each_.data()[counted_.data()[k]]);
        }
        if (weights.empty()) of_tile.weight = static_cast<double>(end - of_tile.begin);
        of_tile.usual = usual_of(of_tile.begin, end);
        total += of_tile.weight;
        tiles_.data()[t] = of_tile;
    }
    tiles_.data()[tiling.tiles()] = {0.0, end, {}};
    weights_ = {{words_.data(), {inner, 0, 1}},
                weights.empty() ? nullptr : each_.data(),
                counted_.data(),
                tiles_.data(),
                usual_of(0, found),
                total,
                outside,
                inner};
}

template class OwnWeights<float>;
template class OwnWeights<double>;

}  // namespace bnext::cpu
