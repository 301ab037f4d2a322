#include "cpu/pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace bnext::cpu {
namespace {

constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS;

char* map(std::size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kPrivate, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

}  // namespace

Pages map_pages(std::size_t bytes) {
    if (bytes < kHugePage) {
        char* const begin = map(bytes);
        return {begin, bytes, begin};
    }
    char* begin = map(bytes + kHugePage);
    if (begin == nullptr) return {};
    const auto misaligned = reinterpret_cast<std::uintptr_t>(begin) % kHugePage;
    const std::size_t before = misaligned == 0 ? 0 : kHugePage - misaligned;
    char* const usable = begin + before;
    char* end = usable + bytes + (kHugePage - before);
    // Pages that the system does not unmap are never touched, and stay a part of the mapping.
    if (before > 0 && munmap(begin, before) == 0) begin = usable;
    if (munmap(usable + bytes, kHugePage - before) == 0) end = usable + bytes;
#ifdef MADV_HUGEPAGE
    madvise(usable, bytes, MADV_HUGEPAGE);  // where the system refuses, pages are small
#endif
    return {begin, static_cast<std::size_t>(end - begin), usable};
}

void advise_huge_pages(void* begin, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
    const auto place = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t first = (place + kHugePage - 1) & ~(kHugePage - 1);
    const std::uintptr_t end = (place + bytes) & ~(kHugePage - 1);
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)begin;
    (void)bytes;
#endif
}

bool unmap_pages(const Pages& pages) { return munmap(pages.begin, pages.bytes) == 0; }

bool empty_pages(char* begin, std::size_t bytes) {
#ifdef __linux__
    if (madvise(begin, bytes, MADV_DONTNEED) == 0) return true;
    constexpr int dont_need_locked = 24;  // MADV_DONTNEED_LOCKED
    return madvise(begin, bytes, dont_need_locked) == 0;
#else  // other systems may ignore the advice, but must map new pages in place of the old ones
    return mmap(begin, bytes, PROT_READ | PROT_WRITE, kPrivate | MAP_FIXED, -1, 0) != MAP_FAILED;
#endif
}

std::size_t bytes_of_page() {
    const long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? static_cast<std::size_t>(bytes) : 4096;
}

}  // namespace bnext::cpu
