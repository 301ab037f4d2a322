#include "cpu/digest.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/division.hpp"
#include "core/inline.hpp"
#include "cpu/parallel.hpp"

namespace bnext::cpu {
namespace {

constexpr std::size_t kLanes = 8;
constexpr Index kBlock = kLanes * sizeof(std::uint64_t);
constexpr Index kPiece = Index{1} << 18;      // bytes; a multiple of blocks
constexpr Index kWorthTeam = Index{1} << 20;  // bytes

using Words = std::array<std::uint64_t, kLanes>;

// Every bit of both follows into all higher ones, and from there into the lower ones.
std::uint64_t mixed(std::uint64_t hash, std::uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ (hash >> 29);
}

std::uint64_t digest_of_piece(const char* data, Index bytes) {
    Words sums{}, sums_of_sums{};
    const auto take = [&](const Words& words) BNEXT_INLINE_LAMBDA {
        for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[lane];
        for (std::size_t lane = 0; lane < kLanes; ++lane) sums_of_sums[lane] += sums[lane];
    };
    Index place = 0;
    for (; place + kBlock <= bytes; place += kBlock) {
        Words words;
        std::memcpy(words.data(), data + place, sizeof words);
        take(words);
    }
    if (place < bytes) {
        Words words{};
        std::memcpy(words.data(), data + place, static_cast<std::size_t>(bytes - place));
        take(words);
    }
    auto hash = static_cast<std::uint64_t>(bytes);
    for (const std::uint64_t word : sums) hash = mixed(hash, word);
    for (const std::uint64_t word : sums_of_sums) hash = mixed(hash, word);
    return hash;
}

}  // namespace

std::uint64_t digest(const void* data, Index bytes, std::uint64_t seed) {
    const auto* const first = static_cast<const char*>(data);
    if (bytes <= kPiece) return mixed(seed, digest_of_piece(first, bytes));
    const Index pieces = divide_up(bytes, kPiece);
    std::vector<std::uint64_t> found(static_cast<std::size_t>(pieces));
    const int threads = bytes < kWorthTeam ? 1 : free_threads(num_threads(), bytes);
    parallel(threads, bytes, [&](const Team& team) {
        const Index last = team.share_end(pieces);
        for (Index piece = team.share_begin(pieces); piece < last; ++piece) {
            const Index begin = piece * kPiece;
            found[static_cast<std::size_t>(piece)] =
                digest_of_piece(first + begin, std::min(kPiece, bytes - begin));
        }
    });
    for (const std::uint64_t each : found) seed = mixed(seed, each);
    return seed;
}

}  // namespace bnext::cpu
