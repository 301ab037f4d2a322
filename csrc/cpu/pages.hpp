// Memory from the system, in pages: mapped, emptied, unmapped.
//
// A process may have some 65,000 mappings (Linux: vm.max_map_count), and a hole in a mapping makes
// two of it, so unmapping can fail. Emptying pages makes no mapping: it gives back the memory and
// keeps the addresses.
#pragma once

#include <cstddef>

namespace bnext::cpu {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Pages {
    char* begin = nullptr;   // null: there is no memory
    std::size_t bytes = 0;   // of the whole mapping, which is unmapped at once
    char* usable = nullptr;  // where the requested bytes begin
};

// Cleared pages. From kHugePage on they begin on a huge page, and ask for huge pages.
Pages map_pages(std::size_t bytes);

// Asks for huge pages for the whole ones among these bytes, whosever they are. Where they were not
// touched before, there are 512 times fewer faults.
void advise_huge_pages(void* begin, std::size_t bytes);

// False, without effect, where the system refuses: at the limit of mappings.
bool unmap_pages(const Pages& pages);

// Gives back the memory; the addresses stay, and read as zeros. False where the system refuses
// (locked memory, before Linux 5.18).
bool empty_pages(char* begin, std::size_t bytes);

std::size_t bytes_of_page();

}  // namespace bnext::cpu
