// Which kernel table runs: the best that the machine has, chosen once, or the one forced.
#pragma once

namespace bnext::cpu {

struct KernelTable;

constexpr int kMaxTables = 8;

struct TableList {  // null-terminated, best first
    const KernelTable* table[kMaxTables + 1];
};

TableList compiled_tables();
TableList available_tables();  // of the compiled ones, those this machine can run

const KernelTable& active_table();
void set_active_table(const KernelTable& table);
const KernelTable* find_available(const char* name);  // null if there is none

// Kernels say who they are, from their own translation unit; tests ask.
void note_used(const char* table_name);
const char* last_used();  // "" before the first call

}  // namespace bnext::cpu
