// The barrier of threads under load: results, and what members are told when one of them does
// something wrong. A plain program, so that ThreadSanitizer can watch it (preset "tsan").
//   thread_group_stress [rounds of faults] [steps]
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "require.hpp"
#include "sync/thread_group.hpp"

namespace {

using bnext::Index;
using namespace bnext::sync;

struct Member {
    ThreadGroup& group;
    Index rank;
    Ticket ticket;

    Merged call(const Header& header, double count, std::vector<double>& first,
                std::vector<double>& second, std::uintptr_t owner = 1) const {
        Waiter waiter;
        const std::vector<double> a = first, b = second;
        return group.exchange(rank, ticket, {header, owner, count, {a.data(), b.data()}},
                              {first.data(), second.data()}, waiter);
    }
};

void in_threads(Index size, const std::function<void(Index)>& body) {
    std::vector<std::thread> threads;
    for (Index rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
    for (std::thread& thread : threads) thread.join();
}

// Small integers, so that sums are exact and the moments of all members have a closed form.
void check_results(Index size, Index steps) {
    ThreadGroup group(size, 60);
    std::vector<std::vector<double>> kept(static_cast<std::size_t>(size));
    in_threads(size, [&](Index rank) {
        const Ticket ticket = group.enter(rank);
        const Member member{group, rank, ticket};
        for (Index step = 0; step < steps; ++step) {
            const Index channels = 1 + step % 7;
            const auto n = static_cast<std::size_t>(channels);
            Header header{step % 3, step / 3, Direction::forward, channels};
            const auto owner = static_cast<std::uintptr_t>(step % 2 == 0 ? 1 : rank + 1);
            // Rank r has r values (the first none), all of them r + step: m2 is that of the means.
            std::vector<double> mean(n, static_cast<double>(rank + step)), m2(n, 0.0);
            const Merged merged = member.call(header, static_cast<double>(rank), mean, m2, owner);
            const auto p = static_cast<double>(size);
            const double count = p * (p - 1) / 2;
            REQUIRE(merged.count == count);
            REQUIRE(merged.shared == (step % 2 == 0 || size == 1));
            REQUIRE(merged.generation == 2 * step + 1);
            const double expected = size == 1 ? 0.0 : (2 * p - 1) / 3 + static_cast<double>(step);
            const double deviation = (p - 1) * p * (p - 2) * (p + 1) / 36;
            for (std::size_t c = 0; c < n; ++c) {
                REQUIRE(std::abs(mean[c] - expected) <= 1e-12 * (1 + expected));
                REQUIRE(std::abs(m2[c] - deviation) <= 1e-11 * (1 + deviation));
            }
            auto& bits = kept[static_cast<std::size_t>(rank)];
            bits.insert(bits.end(), {mean[0], m2[0]});

            header.direction = Direction::backward;
            std::vector<double> first(n, static_cast<double>(rank)), second(n, 1.0);
            member.call(header, static_cast<double>(rank), first, second, owner);
            for (std::size_t c = 0; c < n; ++c) {
                REQUIRE(first[c] == p * (p - 1) / 2);
                REQUIRE(second[c] == p - 1 || size == 1);
            }
        }
        group.leave(rank, ticket);
    });
    for (const auto& bits : kept) REQUIRE(bits == kept.front());
    REQUIRE(group.broken().empty());
}

enum class Fault { raise, leave, late, direction, channels, dtype, layer, step, owner, count_ };

// One member, in one of several steps, does something wrong; all the others must be told, and the
// group must work after a reset. Returns the reason.
std::string with_fault(ThreadGroup& group, Fault fault, Index culprit, Index at) {
    std::atomic<Index> told{0}, through{0};
    in_threads(group.size(), [&](Index rank) {
        Ticket ticket = 0;
        try {
            ticket = group.enter(rank);
            const Member member{group, rank, ticket};
            for (Index step = 0; step < at + 1; ++step) {
                Header header{0, step, Direction::forward, 3};
                std::uintptr_t owner = 1;
                if (step == at && rank == culprit) {
                    switch (fault) {
                        case Fault::raise: group.fail(rank, ticket, "raised an error"); return;
                        case Fault::leave: group.leave(rank, ticket); return;
                        case Fault::late:
                            while (group.broken().empty()) std::this_thread::yield();
                            break;
                        case Fault::direction: header.direction = Direction::backward; break;
                        case Fault::channels: header.channels = 5; break;
                        case Fault::dtype: header.dtype = bnext::DType::float64; break;
                        case Fault::layer: header.layer = 1; break;
                        case Fault::step: header.step += 1; break;
                        case Fault::owner: owner = 2; break;
                        case Fault::count_: break;
                    }
                }
                std::vector<double> mean(5, 1.0), m2(5, 0.0);
                member.call(header, 1, mean, m2, owner);
            }
            ++through;
            group.leave(rank, ticket);
        } catch (const GroupFailure& failure) {
            ++told;
            REQUIRE(failure.what() == group.broken());
        }
    });
    const bool silent = fault == Fault::raise || fault == Fault::leave;
    REQUIRE(through == 0);
    REQUIRE(told == group.size() - (silent ? 1 : 0));
    std::string reason = group.broken();
    group.reset();
    REQUIRE(group.broken().empty());
    return reason;
}

void check_faults(Index size, int rounds) {
    ThreadGroup slow(size, 60), quick(size, 0.02);
    for (int round = 0; round < rounds; ++round) {
        for (int kind = 0; kind < static_cast<int>(Fault::count_); ++kind) {
            const auto fault = static_cast<Fault>(kind);
            if (fault == Fault::owner && size == 2) continue;  // two objects: two replicas
            const Index culprit = (round * 7 + kind) % size;
            const bool late = fault == Fault::late;
            const std::string reason = with_fault(late ? quick : slow, fault, culprit, round % 3);
            if (late) {
                REQUIRE(reason.find("missing") != std::string::npos);
                continue;
            }
            const std::string who = std::to_string(culprit);
            REQUIRE(reason.find("rank " + who) != std::string::npos);
            const char* expected = fault == Fault::raise   ? "raised an error"
                                   : fault == Fault::leave ? "has left"
                                                           : "differs from rank";
            REQUIRE(reason.find(expected) != std::string::npos);
        }
    }
}

// A reset frees members that wait, and their memberships end.
void check_reset(int rounds) {
    for (int round = 0; round < rounds; ++round) {
        ThreadGroup group(2, 60);
        std::atomic<bool> entered{false}, told{false};
        std::thread waiting([&] {
            const Ticket ticket = group.enter(0);
            entered = true;
            const Member member{group, 0, ticket};
            std::vector<double> first(1), second(1);
            for (int call = 0; call < 2; ++call) {
                try {
                    member.call({0, 0, Direction::forward, 1}, 1, first, second);
                } catch (const GroupFailure&) {
                    told = true;
                }
            }
        });
        while (!entered) std::this_thread::yield();
        if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        while (!told) group.reset();
        waiting.join();
        REQUIRE(group.broken().empty());
    }
}

// Tasks of the next step may come before the last task of this one has left.
void check_tasks(Index size, Index steps) {
    ThreadGroup group(size, 60);
    in_threads(size, [&](Index rank) {
        for (Index step = 0; step < steps; ++step) {
            const Ticket ticket = group.enter(rank);
            std::vector<double> first(2, 1.0), second(2, 0.0);
            Member{group, rank, ticket}.call({0, step, Direction::backward, 2}, 1, first, second);
            REQUIRE(first[1] == static_cast<double>(size));
            group.leave(rank, ticket);
        }
    });
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
    const Index steps = argc > 2 ? std::atoi(argv[2]) : 200;
    for (const Index size : {1, 2, 3, 4, 16, 64}) {
        check_results(size, steps);
        check_tasks(size, steps);
    }
    for (const Index size : {2, 3, 5, 16}) check_faults(size, rounds);
    check_reset(rounds);
    std::puts("the barrier of threads: all well");
}
