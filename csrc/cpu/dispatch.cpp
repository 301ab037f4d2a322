// Compiled without instruction-set flags: it runs before the machine's instruction sets are known.
#include "cpu/dispatch.hpp"

#include <atomic>
#include <cstring>

#include "cpu/kernel_table.hpp"
#include "cpu/x86_features.hpp"

namespace bnext::cpu {

#define BNEXT_DECLARE_ISA(isa)      \
    namespace isa {                 \
    extern const KernelTable table; \
    }
BNEXT_DECLARE_ISA(baseline)
#if defined(__x86_64__)
BNEXT_DECLARE_ISA(avx2)
BNEXT_DECLARE_ISA(avx512)
#endif
#undef BNEXT_DECLARE_ISA

namespace {

bool always() { return true; }

struct Candidate {
    const KernelTable* table;
    bool (*supported)();
};

constexpr Candidate kBestFirst[] = {
#if defined(__x86_64__)
    {&avx512::table, has_avx512},
    {&avx2::table, has_avx2},
#endif
    {&baseline::table, always},
};

std::atomic<const KernelTable*> active{nullptr};
std::atomic<const char*> used{""};

}  // namespace

TableList compiled_tables() {
    TableList list{};
    int n = 0;
    for (const Candidate& candidate : kBestFirst) list.table[n++] = candidate.table;
    return list;
}

TableList available_tables() {
    TableList list{};
    int n = 0;
    for (const Candidate& candidate : kBestFirst) {
        if (candidate.supported()) list.table[n++] = candidate.table;
    }
    return list;
}

const KernelTable& active_table() {
    const KernelTable* table = active.load(std::memory_order_relaxed);
    if (table == nullptr) {
        table = available_tables().table[0];
        active.store(table, std::memory_order_relaxed);
    }
    return *table;
}

void set_active_table(const KernelTable& table) { active.store(&table, std::memory_order_relaxed); }

const KernelTable* find_available(const char* name) {
    const TableList list = available_tables();
    for (int i = 0; list.table[i] != nullptr; ++i) {
        if (std::strcmp(list.table[i]->name, name) == 0) return list.table[i];
    }
    return nullptr;
}

void note_used(const char* table_name) { used.store(table_name, std::memory_order_relaxed); }
const char* last_used() { return used.load(std::memory_order_relaxed); }

}  // namespace bnext::cpu
