// Memory from the system, in pages: mapped, emptied, unmapped.
//
// A process may have some 65,000 mappings (Linux: vm.max_map_count), and cutting a hole into one
// makes two of it. So unmapping can fail; emptying pages cannot, and gives back the memory, if not
// the addresses.
#pragma once

#include <cstddef>

namespace bnext::cpu {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Pages {
    char* begin = nullptr;   // null: there is no memory
    std::size_t bytes = 0;   // of all that was mapped, to be unmapped at once
    char* usable = nullptr;  // from here on there are as many as asked for
};

// Cleared pages. From kHugePage on they begin on a huge page, and ask for such pages.
Pages map_pages(std::size_t bytes);

// False, and nothing changes, where the system refuses: at the limit of mappings.
bool unmap_pages(const Pages& pages);

// Gives back the memory and keeps the addresses, whose next contents are zeros. False where the
// system refuses (of locked memory, before Linux 5.18).
bool empty_pages(char* begin, std::size_t bytes);

std::size_t bytes_of_page();

}  // namespace bnext::cpu
