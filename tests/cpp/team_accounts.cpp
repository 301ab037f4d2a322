// How teams are sized, on a clock of its own: a model of a machine says how long a call takes.
#include <cstdio>
#include <cstdlib>

#include "cpu/team_accounts.hpp"
#include "require.hpp"

namespace {

using namespace bnext::cpu;

constexpr Nanoseconds kMillisecond = 1'000'000, kSecond = 1000 * kMillisecond;
Nanoseconds clock_time = 0;
Nanoseconds clock() { return clock_time; }

// Calls of 4 ms of work for `duration`; a team of n takes cost(n) times the work. How much of the
// time was spent in teams of `size`.
template <class Cost>
double share_of_long_calls(Trials& trials, int limit, int size, Nanoseconds duration, Cost cost) {
    constexpr double kWork = 4e6;
    Nanoseconds in_size = 0;
    const Nanoseconds begin = clock_time;
    while (clock_time < begin + duration) {
        const int threads = trials.most(limit);
        REQUIRE(threads >= 1 && threads <= limit);
        const auto took = static_cast<Nanoseconds>(kWork * cost(threads));
        clock_time += took;
        trials.add(threads, took, static_cast<Nanoseconds>(kWork) / threads, clock_time);
        if (threads == size) in_size += took;
    }
    return static_cast<double>(in_size) / static_cast<double>(clock_time - begin);
}

void long_calls() {
    const auto idle = [](int n) { return 1.05 / n; };
    const auto taken = [](int n) { return n == 1 ? 1.5 : 3.0; };
    Trials trials;
    // Where nothing is lost, nothing is tried.
    REQUIRE(share_of_long_calls(trials, 2, 2, 10 * kSecond, idle) == 1.0);
    // The cores are taken: one thread, but for an attempt now and then.
    share_of_long_calls(trials, 2, 1, 4 * kSecond, taken);
    REQUIRE(share_of_long_calls(trials, 2, 1, 20 * kSecond, taken) > 0.9);
    // They are free again, and taken: noticed within half a second, whatever was remembered.
    share_of_long_calls(trials, 2, 2, 9 * kSecond, idle);
    REQUIRE(share_of_long_calls(trials, 2, 2, 10 * kSecond, idle) == 1.0);
    share_of_long_calls(trials, 2, 1, kSecond / 2, taken);
    REQUIRE(share_of_long_calls(trials, 2, 1, kSecond, taken) == 1.0);
    // However long they were taken.
    share_of_long_calls(trials, 2, 1, 100 * kSecond, taken);
    share_of_long_calls(trials, 2, 2, kSecond / 2, [](int n) { return n == 1 ? 0.7 : 0.5; });
    REQUIRE(share_of_long_calls(trials, 2, 2, 10 * kSecond, idle) == 1.0);
    // One thread would lose as much to its neighbours: the team stays.
    const auto shared = [](int n) { return n == 1 ? 2.2 : 1.6; };
    REQUIRE(share_of_long_calls(trials, 2, 2, 20 * kSecond, shared) > 0.9);

    // Half of many cores are taken.
    Trials many;
    const auto half = [](int n) { return n > 8 ? 1.2 : 1.05 / n; };
    share_of_long_calls(many, 16, 8, 4 * kSecond, half);
    REQUIRE(share_of_long_calls(many, 16, 8, 20 * kSecond, half) > 0.9);
    // All of them: down to one, step by step.
    share_of_long_calls(many, 16, 1, 8 * kSecond, taken);
    REQUIRE(share_of_long_calls(many, 16, 1, 20 * kSecond, taken) > 0.8);
    // And up.
    share_of_long_calls(many, 16, 16, 20 * kSecond, idle);
    REQUIRE(share_of_long_calls(many, 16, 16, 10 * kSecond, idle) == 1.0);
    // A limit may change between two calls.
    for (const int limit : {3, 1, 16, 5}) {
        REQUIRE(share_of_long_calls(many, limit, limit, kSecond, idle) == 1.0);
    }
}

void short_calls() {
    Debt debt;
    const auto most = [&] { return debt.most(4, clock); };
    clock_time += kSecond;
    REQUIRE(most() == 4);
    debt.add(4, 4 * kMillisecond, clock_time);  // tolerated
    REQUIRE(most() == 4);
    debt.add(4, 8 * kMillisecond, clock_time);
    REQUIRE(most() == 2);
    debt.add(2, 4 * kMillisecond, clock_time);
    REQUIRE(most() == 1);
    clock_time += 16 * kMillisecond * 49;  // a fiftieth of it is not yet all that is owed
    REQUIRE(most() == 1);
    clock_time += 16 * kMillisecond * 2;
    REQUIRE(most() == 2);
    REQUIRE(most() == 4);
    // What was gained is kept against a loss, up to a limit.
    for (int i = 0; i < 1000; ++i) debt.add(4, -10'000, clock_time);
    debt.add(4, 9 * kMillisecond, clock_time);
    REQUIRE(most() == 4);
    debt.add(4, 4 * kMillisecond, clock_time);
    REQUIRE(most() == 2);
}

}  // namespace

int main() {
    long_calls();
    short_calls();
    std::puts("teams are sized well");
}
