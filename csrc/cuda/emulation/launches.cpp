// Fibers jump between stacks, which this check of glibc takes for a mistake.
#undef _FORTIFY_SOURCE

#include "cuda/emulation/launches.hpp"

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/kernel_shape.hpp"

namespace bnext::cuda {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kMostValue = 16;  // bytes that lanes exchange

// A barrier: threads arrive and wait until all have arrived, round after round.
struct Meeting {
    unsigned arrived = 0;
    unsigned rounds = 0;
};

struct Block {
    Index index = 0;
    std::vector<unsigned char> shared;
    int running = 0;  // threads that have not ended
    Meeting meeting{};
    std::vector<Meeting> warps;
    // The value that each lane shows; two, since some lanes read one while others show the next.
    std::vector<unsigned char> shown[2];
};

struct Copy {
    void* to;
    const void* from;
    int size;
};

// A stack on which threads run, one after the other. A launch leaves its fibers to the next one.
struct Fiber {
    jmp_buf place{};        // where it goes on
    bool is_ready = false;  // to run a thread: it has ended the one before, and waits in `body`
    std::unique_ptr<unsigned char[]> stack;
    Block* block = nullptr;
    int thread = 0;
    unsigned exchanges = 0;
    unsigned arrivals = 0;                    // at barriers of the cluster
    unsigned waits = 0;                       // at the same barriers
    std::deque<std::vector<Copy>> committed;  // groups of copies
    std::vector<Copy> asked;
    bool done = false;
};

// The blocks that run together.
struct Team {
    Kernel kernel = nullptr;
    const Arguments* arguments = nullptr;
    int threads = 0;
    std::vector<Block> blocks;
    std::size_t members = 0;  // the first of `fibers`
    Meeting meeting{};
    jmp_buf scheduler{};
    Fiber* current = nullptr;
    bool progress = false;
    const char* fault = nullptr;  // a forbidden action of a thread
};

Team* team = nullptr;  // of the running launch; there is one at a time
std::deque<Fiber> fibers;

// Unlike swapcontext, it leaves the mask of signals alone, and makes no system call.
void go(jmp_buf& from, jmp_buf& to) {
    if (_setjmp(from) == 0) _longjmp(to, 1);
}

void yield() { go(team->current->place, team->scheduler); }

template <class Condition>
void wait_until(Condition&& fulfilled) {
    while (!fulfilled()) yield();
    team->progress = true;
}

void come(Meeting& meeting, unsigned size) {
    team->progress = true;
    if (++meeting.arrived < size) return;
    meeting.arrived = 0;
    ++meeting.rounds;
}
void meet(Meeting& meeting, unsigned size) {
    const unsigned round = meeting.rounds;
    come(meeting, size);
    wait_until([&] { return meeting.rounds != round; });
}

// Ends the launch with that error, and does not return.
void refuse(const char* fault) {
    team->fault = fault;
    while (true) yield();
}

void body() {
    Fiber* const self = team->current;
    self->is_ready = true;
    yield();
    while (true) {
        self->is_ready = false;
        team->kernel(*team->arguments);
        if (self->waits != self->arrivals) refuse("a thread left a barrier of its cluster behind");
        self->done = self->is_ready = true;
        --self->block->running;
        team->progress = true;
        yield();
    }
}

// A new stack, and the old one of a launch that was refused.
void make_ready(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<unsigned char[]>(kStackBytes);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    team->current = &fiber;
    if (_setjmp(team->scheduler) == 0) setcontext(&context);
}

void run_team() {
    std::size_t left = team->members;
    while (left > 0) {
        team->progress = false;
        for (std::size_t i = 0; i < team->members; ++i) {
            Fiber& fiber = fibers[i];
            if (fiber.done) continue;
            team->current = &fiber;
            go(team->scheduler, fiber.place);
            if (team->fault != nullptr) {
                throw std::runtime_error(std::string("emulated launch: ") + team->fault);
            }
            if (fiber.done) --left;
        }
        if (!team->progress) {
            throw std::runtime_error("emulated launch: all threads wait, and nobody will come");
        }
    }
}

}  // namespace

namespace device {

int thread() { return team->current->thread; }
int threads() { return team->threads; }
Index block() { return team->current->block->index; }
int lane() { return thread() % kWarp; }
unsigned char* shared_memory() { return team->current->block->shared.data(); }
unsigned char* shared_memory_of_rank(int rank) {
    Block& block = team->blocks.at(static_cast<std::size_t>(rank));
    if (block.running < team->threads) refuse("shared memory of a block that may have ended");
    return block.shared.data();
}

void block_barrier() { meet(team->current->block->meeting, static_cast<unsigned>(team->threads)); }
void cluster_barrier() {
    cluster_arrive();
    cluster_wait();
}
void cluster_arrive() {
    Fiber& self = *team->current;
    if (self.arrivals++ != self.waits) refuse("a thread arrived twice at a barrier");
    come(team->meeting, static_cast<unsigned>(team->members));
}
void cluster_wait() {
    Fiber& self = *team->current;
    if (++self.waits != self.arrivals) refuse("a thread waits at a barrier without arriving");
    wait_until([&] { return team->meeting.rounds >= self.waits; });
}

void exchange(void* value, int size, int from) {
    Fiber& self = *team->current;
    Block& own = *self.block;
    std::vector<unsigned char>& shown = own.shown[self.exchanges++ % 2];
    const int warp = self.thread / kWarp;
    std::memcpy(&shown[static_cast<std::size_t>(self.thread) * kMostValue], value,
                static_cast<std::size_t>(size));
    meet(own.warps[static_cast<std::size_t>(warp)], kWarp);
    const auto other = static_cast<std::size_t>(warp * kWarp + from);
    std::memcpy(value, &shown[other * kMostValue], static_cast<std::size_t>(size));
}

void refuse_misaligned() { refuse("a misaligned access"); }

void copy_later(void* shared, const void* p, int size) {
    team->current->asked.push_back({shared, p, size});
}
void commit_copies() {
    Fiber& self = *team->current;
    self.committed.push_back(std::move(self.asked));
    self.asked.clear();
}
void finish_copies(int pending) {
    auto& committed = team->current->committed;
    for (; committed.size() > static_cast<std::size_t>(pending); committed.pop_front()) {
        for (const Copy& copy : committed.front()) {
            std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.size));
        }
    }
}

unsigned arrive(unsigned* counter) {
    team->progress = true;
    return (*counter)++;
}
void arrive_and_forget(unsigned* counter) { (void)arrive(counter); }
void wait_for(const unsigned* counter, unsigned arrivals) {
    wait_until([&] { return *counter >= arrivals; });
}

}  // namespace device

namespace emulation {
namespace {

void begin(Fiber& fiber, Block& block, int thread) {
    if (!fiber.is_ready) make_ready(fiber);
    fiber.block = &block;
    fiber.thread = thread;
    fiber.exchanges = fiber.arrivals = fiber.waits = 0;
    fiber.committed.clear();
    fiber.asked.clear();
    fiber.done = false;
}

bool wants_kernels = true;

}  // namespace

void run_kernels(bool wanted) { wants_kernels = wanted; }

void run(Kernel kernel, const Arguments& arguments, const Launch& launch) {
    if (!wants_kernels) return;
    const int threads = launch.cut.threads;
    const Index together = launch.cooperative ? launch.grid : launch.cluster;
    const std::vector<unsigned char> unwritten(static_cast<std::size_t>(threads) * kMostValue,
                                               0xff);
    Team running{.kernel = kernel,
                 .arguments = &arguments,
                 .threads = threads,
                 .blocks = std::vector<Block>(static_cast<std::size_t>(together)),
                 .members = static_cast<std::size_t>(together * threads)};
    if (fibers.size() < running.members) fibers.resize(running.members);
    team = &running;
    for (Index first = 0; first < launch.grid; first += together) {
        running.meeting = {};
        auto fiber = fibers.begin();
        Index index = first;
        for (Block& block : running.blocks) {
            block = {.index = index++,
                     // Not cleared, as on a device.
                     .shared = std::vector<unsigned char>(
                         static_cast<std::size_t>(launch.shared_bytes), 0xff),
                     .running = threads,
                     .warps = std::vector<Meeting>(static_cast<std::size_t>(threads / kWarp)),
                     .shown = {unwritten, unwritten}};
            for (int t = 0; t < threads; ++t) begin(*fiber++, block, t);
        }
        run_team();
    }
    team = nullptr;
}

}  // namespace emulation
}  // namespace bnext::cuda
