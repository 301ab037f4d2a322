// The choice of the kernel table: the best that the machine can run, chosen once, or a forced one.
#pragma once

#include <string_view>
#include <vector>

namespace bnext::cpu {

struct KernelTable;

using Tables = std::vector<const KernelTable*>;  // best first

Tables compiled_tables();
Tables available_tables();  // the compiled tables that this machine can run

const KernelTable& active_table();
void set_active_table(const KernelTable& table);
const KernelTable* find_available(std::string_view name);  // null if there is none

// Kernels report their table from their own translation unit, for tests.
void note_used(const char* table_name);
const char* last_used();  // "" before the first call

}  // namespace bnext::cpu
