#include "cpu/small_blocks.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/pool.hpp"

namespace bnext::cpu {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStep = 1024;
constexpr std::size_t kClasses = kWorthPooling / kStep + 2;  // also with the head of a result
constexpr std::size_t kMostKept = std::size_t{1} << 20;

// In front of each block.
struct alignas(kLine) Head {
    std::size_t steps;  // the size of the block
    Head* next;         // of the kept ones

    [[nodiscard]] std::size_t bytes() const { return steps * kStep; }
};

Head* head_of(void* block) { return static_cast<Head*>(block) - 1; }

// With lists in use, the functions of Kept do nothing. In a child of a fork in the middle of one of
// them, they remain so.
class Kept {
public:
    Head* take(std::size_t steps) {
        Head* head = nullptr;
        if (steps < kClasses && begin()) {
            head = lists_[steps];
            if (head != nullptr) {
                lists_[steps] = head->next;
                bytes_ -= head->bytes();
            }
            end();
        }
        return head;
    }

    bool keep(Head* head) {
        if (head->steps >= kClasses || !begin()) return false;
        if (bytes_ + head->bytes() > kMostKept) empty();  // of sizes that are not used any more
        bytes_ += head->bytes();
        head->next = lists_[head->steps];
        lists_[head->steps] = head;
        end();
        return true;
    }

    void clear() {
        if (!begin()) return;
        empty();
        end();
    }

private:
    bool begin() { return !in_use_.test_and_set(std::memory_order_acquire); }
    void end() { in_use_.clear(std::memory_order_release); }

    void empty() {
        for (Head*& first : lists_) {
            while (Head* const head = first) {
                first = head->next;
                std::free(head);  // NOLINT: as it was allocated
            }
        }
        bytes_ = 0;
    }

    std::atomic_flag in_use_;
    std::size_t bytes_ = 0;
    std::array<Head*, kClasses> lists_{};
};

constinit Kept kept;  // trivially destroyed: arrays may die after static objects do

}  // namespace

void* small_allocate(std::size_t bytes) {
    const std::size_t steps = bytes / kStep + 1;
    Head* head = kept.take(steps);
    if (head == nullptr) {
        head = static_cast<Head*>(std::aligned_alloc(kLine, sizeof(Head) + steps * kStep));
        if (head == nullptr) return nullptr;
        head->steps = steps;
    }
    return head + 1;
}

void small_release(void* block) {
    if (block != nullptr && !kept.keep(head_of(block))) std::free(head_of(block));  // NOLINT
}

void* small_resize(void* block, std::size_t bytes) {
    void* const other = small_allocate(bytes);
    if (other == nullptr || block == nullptr) return other;
    std::memcpy(other, block, std::min(head_of(block)->bytes(), bytes));
    small_release(block);
    return other;
}

void small_empty_cache() { kept.clear(); }

}  // namespace bnext::cpu
