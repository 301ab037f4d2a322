// Arrays of one call, such as a number for each channel. Large ones come from the pool, since
// malloc may map them anew in each call, page by page: (7, 20000) took three times as long. Small
// ones are kept, too: memory on a line is a twentieth of a call of (64, 20) otherwise. All
// begin where a line of the cache does: vectors that reach into two lines are read at half the
// speed, and whether they do must not depend on where a process happens to have its memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/pool.hpp"
#include "cpu/small_blocks.hpp"

namespace bnext::cpu {

inline constexpr std::size_t kLine = 64;  // bytes of a line of the cache

// n values, not initialised. Throws std::bad_alloc.
template <class T>
class PoolArray {
    static_assert(std::is_trivial_v<T>);

public:
    PoolArray() = default;
    explicit PoolArray(std::size_t n) : size_(n), data_(allocate(n * sizeof(T))) {}
    PoolArray(std::size_t n, T value) : PoolArray(n) { std::fill_n(data(), n, value); }

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] T* data() const { return data_.get(); }
    [[nodiscard]] T* begin() const { return data(); }
    [[nodiscard]] T* end() const { return data() + size_; }

private:
    struct Release {
        bool pooled = false;
        void operator()(T* data) const { pooled ? pool_release(data) : small_release(data); }
    };
    using Memory = std::unique_ptr<T, Release>;

    static Memory allocate(std::size_t bytes) {
        const bool pooled = bytes >= kWorthPooling;
        void* const data = pooled ? pool_allocate(bytes) : small_allocate(bytes);
        if (data == nullptr) throw std::bad_alloc();
        return Memory(static_cast<T*>(data), Release{pooled});
    }

    std::size_t size_ = 0;
    Memory data_;
};

}  // namespace bnext::cpu
