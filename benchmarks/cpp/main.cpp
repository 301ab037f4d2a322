// bnext_benchmarks [--isa=NAME[,NAME...] | --isa=all] [--threads=N[,N...]]
//                  [Google Benchmark's own options]
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

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> words;
    std::istringstream stream(text);
    for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
    return words;
}

// The tables named by `text`: some or all of this machine's; the best if it is empty.
cpu::Tables parse_isas(const std::string& text) {
    if (text.empty()) return {&cpu::active_table()};
    const cpu::Tables all = cpu::available_tables();
    if (text == "all") return all;
    std::string known;
    for (const cpu::KernelTable* table : all) {
        known += std::string(known.empty() ? "" : ", ") + table->name;
    }
    cpu::Tables found;
    for (const std::string& name : split(text)) {
        found.push_back(cpu::find_available(name));
        if (found.back() == nullptr)
            refuse("--isa: expected all or some of " + known + ", got " + name);
    }
    return found;
}

std::vector<int> parse_threads(const std::string& text) {
    if (text.empty()) {
        const int all = cpu::num_threads();
        return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
    }
    std::vector<int> numbers;
    for (const std::string& word : split(text)) {
        char* end = nullptr;
        const long n = std::strtol(word.c_str(), &end, 10);
        if (*end != '\0' || n < 1 || n > 4096) {
            refuse("--threads: expected integers >= 1, got " + text);
        }
        numbers.push_back(static_cast<int>(n));
    }
    return numbers;
}

// Removes `--name=value` from the arguments and returns the value; empty without it.
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
    const auto tables = parse_isas(take_option("isa", argc, argv));
    const auto threads = parse_threads(take_option("threads", argc, argv));
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    std::vector<benchmarks::Runtime> runtimes;
    for (const int n : threads) {
        for (const auto* table : tables) runtimes.push_back({table, n, table == tables.front()});
    }
    benchmarks::register_operations(runtimes);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
