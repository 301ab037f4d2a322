// Compiled without instruction-set flags: it runs before the machine's instruction sets are known.
#include "cpu/dispatch.hpp"

#include <atomic>

#include "cpu/double_backward_kernels.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/row_kernels.hpp"
#include "cpu/x86_features.hpp"

namespace bnext::cpu {

#define BNEXT_DECLARE_ISA(isa)                              \
    namespace isa {                                         \
    extern const KernelTable table;                         \
    extern const RowTable row_table;                        \
    extern const WeightedTable weighted_table;              \
    extern const DoubleBackwardTable double_backward_table; \
    }
BNEXT_DECLARE_ISA(baseline)
#if defined(__x86_64__)
BNEXT_DECLARE_ISA(avx2)
BNEXT_DECLARE_ISA(avx512)
#endif
#undef BNEXT_DECLARE_ISA

namespace {

std::atomic<const KernelTable*> active{nullptr};
std::atomic<const char*> used{""};

}  // namespace

Tables compiled_tables() {
#if defined(__x86_64__)
    return {&avx512::table, &avx2::table, &baseline::table};
#else
    return {&baseline::table};
#endif
}

Tables available_tables() {
    Tables tables = compiled_tables();
#if defined(__x86_64__)
    if (!has_avx512()) std::erase(tables, &avx512::table);
    if (!has_avx2()) std::erase(tables, &avx2::table);
#endif
    return tables;
}

const KernelTable& active_table() {
    const KernelTable* table = active.load(std::memory_order_relaxed);
    if (table == nullptr) {
        table = available_tables().front();
        active.store(table, std::memory_order_relaxed);
    }
    return *table;
}

void set_active_table(const KernelTable& table) { active.store(&table, std::memory_order_relaxed); }

const RowTable& row_table_of([[maybe_unused]] const KernelTable& table) {
#if defined(__x86_64__)
    if (&table == &avx512::table) return avx512::row_table;
    if (&table == &avx2::table) return avx2::row_table;
#endif
    return baseline::row_table;
}

const WeightedTable& weighted_table_of([[maybe_unused]] const KernelTable& table) {
#if defined(__x86_64__)
    if (&table == &avx512::table) return avx512::weighted_table;
    if (&table == &avx2::table) return avx2::weighted_table;
#endif
    return baseline::weighted_table;
}

const DoubleBackwardTable& double_backward_table_of([[maybe_unused]] const KernelTable& table) {
#if defined(__x86_64__)
    if (&table == &avx512::table) return avx512::double_backward_table;
    if (&table == &avx2::table) return avx2::double_backward_table;
#endif
    return baseline::double_backward_table;
}

const KernelTable* find_available(std::string_view name) {
    for (const KernelTable* table : available_tables()) {
        if (table->name == name) return table;
    }
    return nullptr;
}

void note_used(const char* table_name) { used.store(table_name, std::memory_order_relaxed); }
const char* last_used() { return used.load(std::memory_order_relaxed); }

}  // namespace bnext::cpu
