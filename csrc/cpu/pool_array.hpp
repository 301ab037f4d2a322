// Arrays of one call, such as a number for each channel. Large ones come from the pool, since
// malloc may map them anew in each call, page by page: (7, 20000) took three times as long.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/pool.hpp"

namespace bnext::cpu {

// n values, not initialised. Throws std::bad_alloc.
template <class T>
class PoolArray {
    static_assert(std::is_trivial_v<T>);

public:
    PoolArray() = default;
    explicit PoolArray(std::size_t n) : size_(n), data_(static_cast<T*>(allocate(n * sizeof(T)))) {}
    PoolArray(std::size_t n, T value) : PoolArray(n) { std::fill_n(data_, n, value); }
    ~PoolArray() {
        if (pooled(size_ * sizeof(T))) {
            pool_release(data_);
        } else if (data_ != nullptr) {
            ::operator delete(data_);
        }
    }
    PoolArray(PoolArray&& other) noexcept
        : size_(std::exchange(other.size_, 0)), data_(std::exchange(other.data_, nullptr)) {}
    PoolArray& operator=(PoolArray&& other) noexcept {
        std::swap(size_, other.size_);
        std::swap(data_, other.data_);
        return *this;
    }

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] T* data() const { return data_; }
    [[nodiscard]] T* begin() const { return data_; }
    [[nodiscard]] T* end() const { return data_ + size_; }

private:
    static bool pooled(std::size_t bytes) { return bytes >= kWorthPooling; }
    static void* allocate(std::size_t bytes) {
        if (!pooled(bytes)) return ::operator new(bytes);
        void* block = pool_allocate(bytes);
        if (block == nullptr) throw std::bad_alloc();
        return block;
    }

    std::size_t size_ = 0;
    T* data_ = nullptr;
};

}  // namespace bnext::cpu
