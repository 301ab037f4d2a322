#include "cpu/pool.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <unordered_map>

namespace bnext::cpu {
namespace {

constexpr std::size_t kSmallestClass = std::size_t{64} << 10;

// Sizes are rounded up to eighths of a power of two, so that arrays of nearly the same size share
// blocks: up to an eighth more address space, of which the system backs with memory what is
// touched. 0 where no size is large enough.
std::size_t class_of(std::size_t bytes) {
    if (bytes <= kSmallestClass) return kSmallestClass;
    if (bytes > std::numeric_limits<std::size_t>::max() / 4) return 0;
    const std::size_t step = std::bit_floor(bytes - 1) / 8;
    return (bytes + step - 1) / step * step;
}

char* map(std::size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

// A multiple of kSmallestClass / 8, which is a multiple of every usual page size but one; where
// pages are larger (64 KiB, on some Arm systems) the system rounds up by itself.
void* map_block(std::size_t bytes) {
    if (bytes < kHugePage) return map(bytes);
    char* whole = map(bytes + kHugePage);
    if (whole == nullptr) return nullptr;
    const auto misaligned = reinterpret_cast<std::uintptr_t>(whole) % kHugePage;
    const std::size_t before = misaligned == 0 ? 0 : kHugePage - misaligned;
    if (before > 0) munmap(whole, before);
    char* block = whole + before;
    munmap(block + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
    madvise(block, bytes, MADV_HUGEPAGE);  // where it is refused, pages are small
#endif
    return block;
}

struct Block {
    void* data = nullptr;
    std::size_t bytes = 0;
    // Its neighbours in the list of kept blocks.
    Block* older = nullptr;
    Block* newer = nullptr;
};

// Kept blocks in the order in which they were released. They are few: the limit over the smallest
// class at most, and in practice as many as a network has results alive at a time.
class Kept {
public:
    void push(Block& block) {
        block.older = newest_;
        block.newer = nullptr;
        (newest_ != nullptr ? newest_->newer : oldest_) = &block;
        newest_ = &block;
        bytes_ += block.bytes;
    }
    void remove(Block& block) {
        (block.older != nullptr ? block.older->newer : oldest_) = block.newer;
        (block.newer != nullptr ? block.newer->older : newest_) = block.older;
        bytes_ -= block.bytes;
    }
    // The one that was released last is the likeliest to be in a cache.
    [[nodiscard]] Block* newest_of(std::size_t bytes) const {
        Block* block = newest_;
        while (block != nullptr && block->bytes != bytes) block = block->older;
        return block;
    }
    [[nodiscard]] Block* oldest() const { return oldest_; }
    [[nodiscard]] std::size_t bytes() const { return bytes_; }

private:
    Block* oldest_ = nullptr;
    Block* newest_ = nullptr;
    std::size_t bytes_ = 0;
};

class Pool {
public:
    Pool() : limit_(pool_default_limit()) {}

    void* allocate(std::size_t bytes) {
        const std::size_t size = class_of(bytes);
        if (size == 0) return nullptr;
        {
            const std::lock_guard lock(mutex_);
            if (Block* block = kept_.newest_of(size)) {
                kept_.remove(*block);
                ++hits_;
                in_use_ += size;
                return block->data;
            }
        }
        void* data = map_block(size);
        if (data == nullptr) {
            empty_cache();
            data = map_block(size);
        }
        if (data != nullptr && !enter(data, size)) {
            munmap(data, size);
            data = nullptr;
        }
        return data;
    }

    void release(void* data) {
        Range released;
        {
            const std::lock_guard lock(mutex_);
            const auto found = blocks_.find(data);
            if (found == blocks_.end()) return;
            Block& block = found->second;
            in_use_ -= block.bytes;
            if (block.bytes > limit_) {  // it would push out all the others, and go itself
                released = forget(block);
            } else {
                kept_.push(block);
            }
        }
        if (released.data != nullptr) munmap(released.data, released.bytes);
        shrink_to_limit();
    }

    std::size_t size_of(void* data) {
        const std::lock_guard lock(mutex_);
        const auto found = blocks_.find(data);
        return found == blocks_.end() ? 0 : found->second.bytes;
    }

    void empty_cache() {
        shrink_to([] { return std::size_t{0}; });
    }

    void set_limit(std::size_t bytes) {
        {
            const std::lock_guard lock(mutex_);
            limit_ = bytes;
        }
        shrink_to_limit();
    }

    PoolFigures figures() {
        const std::lock_guard lock(mutex_);
        return {limit_, kept_.bytes(), in_use_, hits_, misses_};
    }

    // A fork copies the mutex and the lists; nobody may be changing them meanwhile.
    void before_fork() { mutex_.lock(); }
    void after_fork_in_parent() { mutex_.unlock(); }
    // The child gives back what is kept: its contents are of no use, and as long as both processes
    // have it, the first write to each page copies it, in either of them.
    void after_fork_in_child() {
        while (kept_.bytes() > 0) {
            const Range range = forget_oldest();
            munmap(range.data, range.bytes);
        }
        mutex_.unlock();
    }

private:
    struct Range {
        void* data = nullptr;
        std::size_t bytes = 0;
    };

    bool enter(void* data, std::size_t size) {
        const std::lock_guard lock(mutex_);
        try {
            blocks_[data] = {data, size, nullptr, nullptr};
        } catch (const std::bad_alloc&) {
            return false;
        }
        ++misses_;
        in_use_ += size;
        return true;
    }

    // Unmapping takes time, and is done without the mutex: once a block is forgotten it is nobody's
    // but the caller's.
    template <class Most>
    void shrink_to(const Most& most) {
        for (;;) {
            Range range;
            {
                const std::lock_guard lock(mutex_);
                if (kept_.bytes() <= most()) return;
                range = forget_oldest();
            }
            munmap(range.data, range.bytes);
        }
    }

    void shrink_to_limit() {
        shrink_to([this] { return limit_; });
    }

    // With the mutex held.
    Range forget_oldest() {
        Block& block = *kept_.oldest();
        kept_.remove(block);
        return forget(block);
    }
    Range forget(const Block& block) {
        const Range range{block.data, block.bytes};
        blocks_.erase(range.data);
        return range;
    }

    std::mutex mutex_;
    std::unordered_map<void*, Block> blocks_;  // in use and kept; addresses of values are stable
    Kept kept_;
    std::size_t limit_;
    std::size_t in_use_ = 0;
    std::uint64_t hits_ = 0;
    std::uint64_t misses_ = 0;
};

// Never destroyed: arrays may die after static objects do.
Pool& pool() {
    static Pool* const instance = [] {
        static Pool* created = new Pool;
        pthread_atfork([] { created->before_fork(); }, [] { created->after_fork_in_parent(); },
                       [] { created->after_fork_in_child(); });
        return created;
    }();
    return *instance;
}

// What the control group (of a container, say) lets the process have; the largest number if there
// is no limit.
std::size_t group_limit() {
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (const char* path :
         {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
        std::ifstream file(path);
        std::size_t bytes = 0;
        if (file >> bytes) least = std::min(least, bytes);
    }
    return least;
}

}  // namespace

void* pool_allocate(std::size_t bytes) { return pool().allocate(bytes); }

void pool_release(void* block) {
    if (block != nullptr) pool().release(block);
}

void* pool_resize(void* block, std::size_t bytes) {
    const std::size_t before = block == nullptr ? 0 : pool().size_of(block);
    if (before != 0 && class_of(bytes) == before) return block;
    void* other = pool().allocate(bytes);
    if (other == nullptr || block == nullptr) return other;
    std::memcpy(other, block, std::min(before, bytes));
    pool().release(block);
    return other;
}

void pool_empty_cache() { pool().empty_cache(); }
void pool_set_limit(std::size_t bytes) { pool().set_limit(bytes); }
PoolFigures pool_figures() { return pool().figures(); }

std::size_t pool_default_limit() {
    constexpr std::size_t most = std::size_t{1} << 30;
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0) return most;
    const std::size_t physical = static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
    return std::min(most, std::min(physical, group_limit()) / 8);
}

}  // namespace bnext::cpu
