// bnext_benchmarks [--isa=NAME] [--threads=N[,N...]] [Google Benchmark's own options]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/parallel.hpp"
#include "operations.hpp"

namespace {

using namespace bnext;

[[noreturn]] void refuse(const std::string& message) {
    std::fprintf(stderr, "bnext_benchmarks: %s\n", message.c_str());
    std::exit(2);
}

void force_isa(const std::string& name) {
    if (const cpu::KernelTable* table = cpu::find_available(name.c_str())) {
        return cpu::set_active_table(*table);
    }
    std::string known;
    const cpu::TableList list = cpu::available_tables();
    for (auto table = std::begin(list.table); *table != nullptr; ++table) {
        known += std::string(known.empty() ? "" : ", ") + (*table)->name;
    }
    refuse("--isa: expected one of " + known + ", got " + name);
}

std::vector<int> parse_threads(const std::string& text) {
    std::vector<int> numbers;
    std::istringstream stream(text);
    for (std::string word; std::getline(stream, word, ',');) {
        char* end = nullptr;
        const long n = std::strtol(word.c_str(), &end, 10);
        if (*end != '\0' || n < 1 || n > 4096) {
            refuse("--threads: expected integers >= 1, got " + text);
        }
        numbers.push_back(static_cast<int>(n));
    }
    if (numbers.empty()) refuse("--threads: expected integers >= 1, got nothing");
    return numbers;
}

// Takes `--name=value` out of the arguments; empty where it is not among them.
std::string take_option(const std::string& name, int& argc, char** argv) {
    std::string value;
    const std::string prefix = "--" + name + "=";
    char** const end = std::remove_if(argv + 1, argv + argc, [&](const char* argument) {
        const std::string_view text(argument);
        if (text.substr(0, prefix.size()) != prefix) return false;
        value = text.substr(prefix.size());
        return true;
    });
    argc = static_cast<int>(end - argv);
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    if (const std::string isa = take_option("isa", argc, argv); !isa.empty()) force_isa(isa);
    std::vector<int> threads{1};
    if (cpu::num_threads() > 1) threads.push_back(cpu::num_threads());
    if (const std::string text = take_option("threads", argc, argv); !text.empty()) {
        threads = parse_threads(text);
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::AddCustomContext("isa", cpu::active_table().name);
    benchmarks::register_operations(threads);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
