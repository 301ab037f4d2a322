// The digest of memory: whether arrays still have the values that they had.
//
// Bytes count as 64-bit words. Each of a few lanes has two sums modulo 2^64, of its words and of
// these sums (as Fletcher's checksum of 1982 has them), so that the digest tells another value, and
// values at other places, from the same. It is no cryptographic one.
//
// Traffic: each byte once.
// Order:   fixed by pieces of a fixed size, never by thread arrival: any team has the same digest.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"

namespace bnext::cpu {

// The digest of so many bytes, which follow on what `seed` is the digest of.
std::uint64_t digest(const void* data, Index bytes, std::uint64_t seed);

}  // namespace bnext::cpu
