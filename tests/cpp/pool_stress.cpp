// The pool, and the blocks for small results, under load: threads that take, resize and release
// blocks, hand them to each other, empty the pool and change its limit, and forks meanwhile. No
// block may be another's, and in the end nothing may be in use. A plain program, so that sanitizers
// can watch it (preset "tsan").
//   pool_stress [steps] [forks]
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/pool.hpp"
#include "cpu/small_blocks.hpp"
#include "require.hpp"

namespace {

using namespace bnext::cpu;

struct Source {
    void* (*allocate)(std::size_t bytes);
    void* (*resize)(void* block, std::size_t bytes);
    void (*release)(void* block);
    std::size_t alignment;
    std::array<std::size_t, 8> sizes;
};
constexpr Source kSources[] = {
    {&pool_allocate,
     &pool_resize,
     &pool_release,
     4096,
     {1, 70'000, 100'000, 500'000, 900'000, 1'900'000, 2'100'000, 5'000'000}},
    {&small_allocate,
     &small_resize,
     &small_release,
     64,
     {1, 1'023, 1'024, 5'120, 20'000, 60'000, 66'000, 100'000}},
};

// A block with its mark at both ends.
struct Marked {
    const Source* source = nullptr;
    char* data = nullptr;
    std::size_t bytes = 0;
    char mark = 0;

    void write() const { data[0] = data[bytes - 1] = mark; }
    [[nodiscard]] bool is_whole() const { return data[0] == mark && data[bytes - 1] == mark; }
};

Marked take(const Source& source, std::size_t bytes, char mark) {
    const Marked block{&source, static_cast<char*>(source.allocate(bytes)), bytes, mark};
    REQUIRE(block.data != nullptr);
    REQUIRE(reinterpret_cast<std::uintptr_t>(block.data) % source.alignment == 0);
    block.write();
    return block;
}
void give_back(const Marked& block) {
    REQUIRE(block.is_whole());
    block.source->release(block.data);
}

std::mutex shared_mutex;
std::vector<Marked> shared;  // released by whatever thread takes it out

void work(unsigned seed, int steps) {
    std::mt19937 random(seed);
    std::vector<Marked> own;
    for (int step = 0; step < steps; ++step) {
        const Source& source = kSources[random() % 2];
        const std::size_t bytes = source.sizes[random() % 8];
        own.push_back(take(source, bytes, static_cast<char>(random())));
        if (random() % 4 == 0) {
            Marked& last = own.back();
            const std::size_t other = source.sizes[random() % 8];
            last.data = static_cast<char*>(source.resize(last.data, other));
            REQUIRE(last.data != nullptr);
            REQUIRE(last.data[0] == last.mark);
            last.bytes = other;
            last.write();
        }
        if (random() % 3 == 0) {
            const std::lock_guard lock(shared_mutex);
            shared.push_back(own.back());
            own.pop_back();
            if (shared.size() > 20) {
                const std::size_t place = random() % shared.size();
                std::swap(shared[place], shared.back());
                give_back(shared.back());
                shared.pop_back();
            }
        }
        while (own.size() > random() % 12) {
            std::swap(own[random() % own.size()], own.back());
            give_back(own.back());
            own.pop_back();
        }
        if (random() % 200 == 0) pool_empty_cache();
        if (random() % 100 == 0) pool_set_limit((random() % 5) << 21);
    }
    for (const Marked& block : own) give_back(block);
}

void in_child() {
    REQUIRE(pool_figures().cached_bytes == 0);
    for (const Source& source : kSources) {
        for (const std::size_t bytes : source.sizes) give_back(take(source, bytes, 'c'));
    }
    _exit(0);
}

int number(int argc, char** argv, int place, int otherwise) {
    return argc > place ? std::atoi(argv[place]) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
    const int steps = number(argc, argv, 1, 4000), forks = number(argc, argv, 2, 0);
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed, steps);
    for (int k = 0; k < forks; ++k) {
        const pid_t child = fork();
        if (child == 0) in_child();
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    for (std::thread& thread : threads) thread.join();
    for (const Marked& block : shared) give_back(block);
    const PoolFigures figures = pool_figures();
    REQUIRE(figures.in_use_bytes == 0);
    REQUIRE(figures.cached_bytes <= figures.limit_bytes);
    REQUIRE(figures.hits > 0 && figures.misses > 0);
    pool_empty_cache();
    REQUIRE(pool_figures().cached_bytes == 0);
    std::puts("pool: as it should be");
}
