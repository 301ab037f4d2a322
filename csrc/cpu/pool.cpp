#include "cpu/pool.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>

#include "cpu/control_group.hpp"
#include "cpu/small_blocks.hpp"

namespace bnext::cpu {
namespace {

// --- classes of sizes ----------------------------------------------------------------------------

constexpr std::size_t kSmallestBits = 16;
constexpr std::size_t kSmallestClass = std::size_t{1} << kSmallestBits;
constexpr std::size_t kLargestSize = std::numeric_limits<std::size_t>::max() / 4;

// Sizes are rounded up to eighths of a power of two, so that arrays of nearly the same size share
// blocks. That takes up to an eighth more address space; untouched pages have no memory behind
// them. 0 where no size is large enough.
std::size_t class_of(std::size_t bytes) {
    if (bytes <= kSmallestClass) return kSmallestClass;
    if (bytes > kLargestSize) return 0;
    const std::size_t step = std::bit_floor(bytes - 1) / 8;
    return (bytes + step - 1) / step * step;
}

// The index of a class, from its size.
constexpr std::size_t index_of(std::size_t size) {
    const auto power = static_cast<std::size_t>(std::bit_width(size) - 1);
    const std::size_t eighths = (size >> (power - 3)) & 7;
    return (power - kSmallestBits) * 8 + eighths;
}
constexpr std::size_t kClasses = index_of(std::bit_floor(kLargestSize) * 2) + 1;

// --- blocks, and the mappings that contain them --------------------------------------------------

template <class T>
struct Links {
    T* before = nullptr;
    T* after = nullptr;
};

// A list whose links are members of its items.
template <class T, Links<T> T::* kLinks>
class List {
public:
    void push(T& item) {
        item.*kLinks = {nullptr, first_};
        (first_ != nullptr ? (first_->*kLinks).before : last_) = &item;
        first_ = &item;
    }
    void remove(T& item) {
        const Links<T> links = item.*kLinks;
        (links.before != nullptr ? (links.before->*kLinks).after : first_) = links.after;
        (links.after != nullptr ? (links.after->*kLinks).before : last_) = links.before;
    }
    [[nodiscard]] T* first() const { return first_; }  // pushed last
    [[nodiscard]] T* last() const { return last_; }

private:
    T* first_ = nullptr;
    T* last_ = nullptr;
};

struct Mapping;

// A block is in use, kept, or empty: without memory until it is used again.
struct Block {
    char* data = nullptr;
    Mapping* mapping = nullptr;
    bool has_memory = true;  // in an empty block: the system refused it
    Links<Block> by_age;     // among kept blocks, or blocks about to be emptied
    Links<Block> in_class;   // among kept blocks, or empty ones
};

// Memory for blocks of one size side by side, cut off as they are needed.
struct Mapping {
    Pages pages;
    std::size_t size = 0;    // of a block
    std::size_t stride = 0;  // the size in whole pages
    std::size_t room = 0;    // for so many blocks
    std::size_t cut = 0;     // blocks that exist
    std::size_t busy = 0;    // blocks that are not empty
    Links<Mapping> with_room;
};

struct Class {
    List<Block, &Block::in_class> kept, empty;
    List<Mapping, &Mapping::with_room> mappings;  // that have room
    std::size_t blocks = 0;
};

// Small blocks share mappings. A new mapping has room for as many blocks as exist already, so that
// few blocks take few addresses and many blocks take few mappings.
constexpr std::size_t kFewestBlocks = 4;
constexpr std::size_t kLargestMapping = std::size_t{16} << 20;

std::size_t blocks_of_mapping(std::size_t stride, std::size_t blocks) {
    if (stride >= kHugePage) return 1;  // so that it begins on a huge page
    return std::clamp(blocks, kFewestBlocks, kLargestMapping / stride);
}

class Pool {
public:
    Pool() : limit_(pool_default_limit()) {}

    void* allocate(std::size_t bytes) {
        const std::size_t size = class_of(bytes);
        if (size == 0) return nullptr;
        std::unique_lock lock(mutex_);
        Block* block = take_or_map(lock, size);
        if (block == nullptr) {
            shrink_to(lock, kNothing);
            block = take_or_map(lock, size);
        }
        if (block == nullptr) return nullptr;
        in_use_ += size;
        return block->data;
    }

    void release(void* data) {
        std::unique_lock lock(mutex_);
        Block* const block = block_at(data);
        if (block == nullptr) return;
        const std::size_t size = block->mapping->size;
        in_use_ -= size;
        if (size > limit_) {  // it would push out all other blocks, and itself
            empty(lock, *block);
        } else {
            keep(*block);
            shrink_to(lock, limit_);
        }
    }

    std::size_t size_of(void* data) {
        const std::lock_guard lock(mutex_);
        const Block* const block = block_at(data);
        return block == nullptr ? 0 : block->mapping->size;
    }

    void empty_cache() {
        std::unique_lock lock(mutex_);
        shrink_to(lock, kNothing);
    }

    void set_limit(std::size_t bytes) {
        std::unique_lock lock(mutex_);
        limit_ = bytes;
        shrink_to(lock, limit_);
    }

    PoolFigures figures() {
        const std::lock_guard lock(mutex_);
        return {limit_, kept_bytes_ + stuck_bytes_, in_use_, hits_, misses_};
    }

    // A fork copies the mutex and the lists, so no thread may change them meanwhile.
    void before_fork() { mutex_.lock(); }
    void after_fork_in_parent() { mutex_.unlock(); }
    // The child gives back the kept blocks: their contents are useless, and while both processes
    // share them, the first write to a page copies it, in either process. It also empties the
    // blocks that other threads, which it lacks, were about to empty.
    void after_fork_in_child() {
        while (Block* block = by_age_.last()) {
            unkeep(*block);
            leaving_.push(*block);
        }
        while (Block* block = leaving_.first()) {
            leaving_.remove(*block);
            set_empty(*block, empty_pages(block->data, block->mapping->stride));
        }
        mutex_.unlock();
    }

private:
    Class& class_with(std::size_t size) { return classes_[index_of(size)]; }

    // --- all with the mutex held ---

    Block* block_at(void* data) {
        const auto found = blocks_.find(data);
        return found == blocks_.end() ? nullptr : &found->second;
    }

    // The kept block that was released last, since it is the likeliest to be in a cache; else an
    // empty block, else a new one from a mapping with room.
    Block* take(std::size_t size) {
        Class& sizes = class_with(size);
        if (Block* block = sizes.kept.first()) {
            unkeep(*block);
            ++hits_;
            return block;
        }
        if (Block* block = sizes.empty.first()) {
            sizes.empty.remove(*block);
            ++block->mapping->busy;
            if (block->has_memory) stuck_bytes_ -= size;
            ++(block->has_memory ? hits_ : misses_);
            block->has_memory = true;
            return block;
        }
        Mapping* mapping = sizes.mappings.first();
        return mapping != nullptr ? cut(sizes, *mapping) : nullptr;
    }

    Block* cut(Class& sizes, Mapping& mapping) {
        char* const data = mapping.pages.usable + mapping.cut * mapping.stride;
        Block* block = nullptr;
        try {
            block = &blocks_[data];
        } catch (const std::bad_alloc&) {
            return nullptr;
        }
        block->data = data;
        block->mapping = &mapping;
        ++mapping.busy;
        if (++mapping.cut == mapping.room) sizes.mappings.remove(mapping);
        ++sizes.blocks;
        ++misses_;
        return block;
    }

    void keep(Block& block) {
        class_with(block.mapping->size).kept.push(block);
        by_age_.push(block);
        kept_bytes_ += block.mapping->size;
    }
    void unkeep(Block& block) {
        class_with(block.mapping->size).kept.remove(block);
        by_age_.remove(block);
        kept_bytes_ -= block.mapping->size;
    }

    // Files a block without contents. Its mapping goes with the last busy block; where the system
    // refuses, the blocks stay, empty, for later.
    void set_empty(Block& block, bool emptied) {
        Mapping& mapping = *block.mapping;
        block.has_memory = !emptied;
        if (!emptied) stuck_bytes_ += mapping.size;
        class_with(mapping.size).empty.push(block);
        if (--mapping.busy == 0 && unmap_pages(mapping.pages)) forget(mapping);
    }

    void forget(Mapping& mapping) {
        Class& sizes = class_with(mapping.size);
        for (std::size_t i = 0; i < mapping.cut; ++i) {
            const auto found = blocks_.find(mapping.pages.usable + i * mapping.stride);
            sizes.empty.remove(found->second);
            if (found->second.has_memory) stuck_bytes_ -= mapping.size;
            blocks_.erase(found);
        }
        sizes.blocks -= mapping.cut;
        if (mapping.cut < mapping.room) sizes.mappings.remove(mapping);
        delete &mapping;
    }

    // --- the mutex is released for slow calls: a block in no list belongs to one thread ---

    void empty(std::unique_lock<std::mutex>& lock, Block& block) {
        leaving_.push(block);
        lock.unlock();
        const bool emptied = empty_pages(block.data, block.mapping->stride);
        lock.lock();
        leaving_.remove(block);
        set_empty(block, emptied);
    }

    // The oldest blocks go first. `most` may be another number when the mutex is held again.
    void shrink_to(std::unique_lock<std::mutex>& lock, const std::size_t& most) {
        while (kept_bytes_ > most) {
            Block& oldest = *by_age_.last();
            unkeep(oldest);
            empty(lock, oldest);
        }
    }

    Block* take_or_map(std::unique_lock<std::mutex>& lock, std::size_t size) {
        Block* const block = take(size);
        return block == nullptr && grow(lock, size) ? take(size) : block;
    }

    // Adds a mapping with room for blocks of that size; for one, if there is no memory for more.
    bool grow(std::unique_lock<std::mutex>& lock, std::size_t size) {
        const std::size_t stride = (size + page_ - 1) / page_ * page_;
        std::size_t room = blocks_of_mapping(stride, class_with(size).blocks);
        std::unique_ptr<Mapping> mapping(new (std::nothrow) Mapping);
        if (mapping == nullptr) return false;
        lock.unlock();
        Pages pages = map_pages(room * stride);
        if (pages.begin == nullptr && room > 1) {
            room = 1;
            pages = map_pages(stride);
        }
        lock.lock();
        if (pages.begin == nullptr) return false;
        mapping->pages = pages;
        mapping->size = size;
        mapping->stride = stride;
        mapping->room = room;
        class_with(size).mappings.push(*mapping.release());
        return true;
    }

    static constexpr std::size_t kNothing = 0;

    const std::size_t page_ = bytes_of_page();
    std::mutex mutex_;
    std::unordered_map<void*, Block> blocks_;  // in all states; addresses of values are stable
    std::array<Class, kClasses> classes_;
    List<Block, &Block::by_age> by_age_;   // kept blocks
    List<Block, &Block::by_age> leaving_;  // blocks that a thread is emptying
    std::size_t limit_;
    std::size_t kept_bytes_ = 0;
    std::size_t stuck_bytes_ = 0;  // of empty blocks whose memory the system refused
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

void pool_empty_cache() {
    pool().empty_cache();
    small_empty_cache();
}
void pool_set_limit(std::size_t bytes) { pool().set_limit(bytes); }
PoolFigures pool_figures() { return pool().figures(); }

std::size_t pool_default_limit() {
    constexpr std::size_t most = std::size_t{1} << 30;
    std::size_t memory = control_limits().memory_bytes;
    if (const long pages = sysconf(_SC_PHYS_PAGES); pages > 0) {
        memory = std::min(memory, static_cast<std::size_t>(pages) * bytes_of_page());
    }
    return std::min(most, memory / 8);
}

}  // namespace bnext::cpu
