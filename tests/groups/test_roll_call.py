"""Who is found missing, with boards in memory and clocks that tests move."""

import threading

import pytest

from bnext.groups.roll_call import ROLL, Board, RollCall, Verdict
from bnext.groups.store_board import Keys, StoreBoard

from ..limits import WIDE

TIMEOUT = 10.0  # the roll is called a second before


class Memory(Board):
    """Notes in a dictionary that all ranks share; bells as they must be rung and heard."""

    def __init__(self, shared, rank):
        self.shared, self.rank = shared, rank
        self.settled = True

    def write(self, note, bell):
        self.shared["notes"][self.rank] = note
        self.shared["bells"].add(bell)

    def read(self, bells, patience=0.0):
        if not self.shared["bells"].intersection(bells):
            return {}
        return {r: note for r, note in self.shared["notes"].items() if r != self.rank}

    def is_settled(self, patience=0.0):
        return self.settled


def members(size):
    shared = {"notes": {}, "bells": set()}
    return [RollCall(rank, size, TIMEOUT, Memory(shared, rank)) for rank in range(size)]


def test_who_does_not_answer_is_missing_for_everybody():
    calls = members(4)
    waiting = [calls[0], calls[2], calls[3]]
    assert [call.look(7, 8.9) for call in waiting] == [None] * 3
    assert calls[0].look(7, 9.5) is None  # calls the roll
    assert [call.look(7, 5.0) for call in waiting] == [None] * 3  # the others answer
    verdict = calls[2].look(7, 10.1)
    assert verdict == Verdict("time-out after 10 s: rank 1 is missing", 1)
    # Who waits learns it before its own time is over; who comes late, before it waits.
    assert [call.look(7, 6.0) for call in waiting] == [verdict] * 3
    assert calls[1].look(7, 0.0) == verdict


def test_several_are_missing():
    calls = members(4)
    assert calls[3].look(1, 9.5) is None
    assert calls[1].look(1, 2.0) is None
    assert calls[1].look(1, 10.1) == Verdict("time-out after 10 s: ranks 0, 2 are missing", 0)


def test_who_still_waits_for_the_exchange_before_is_not_missing():
    """A rank that stopped in the middle of an exchange, with which some others are through."""
    calls = members(3)
    assert calls[0].look(5, 9.5) is None
    assert calls[1].look(4, 3.0) is None
    assert calls[0].look(5, 10.1) == Verdict("time-out after 10 s: rank 2 is missing", 2)


def test_a_roll_that_was_called_in_an_earlier_exchange_does_not_count():
    calls = members(3)
    for call in calls:  # all but the last waited, and then it came
        assert call.look(3, 9.5) is None
    assert calls[0].look(4, 9.5) is None
    assert calls[1].look(4, 1.0) is None
    assert calls[0].look(4, 10.1) == Verdict("time-out after 10 s: rank 2 is missing", 2)


def test_all_have_come():
    calls = members(2)
    assert calls[0].look(1, 9.5) is None
    assert calls[1].look(1, 1.0) is None
    verdict = Verdict("time-out after 10 s, though all ranks have come", None)
    assert calls[0].look(1, 10.1) == verdict == calls[1].look(1, 2.0)


def test_an_error_and_a_missing_rank_are_both_named():
    calls = members(3)
    calls[2].cannot_go_on("raised KeyError: 'mine'")
    assert calls[0].look(1, 9.5) is None
    assert calls[2].look(1, 1.0) is None
    reason = "rank 2 raised KeyError: 'mine'; time-out after 10 s: rank 1 is missing"
    assert calls[0].look(1, 10.1) == Verdict(reason, 2)
    assert calls[2].look(1, 1.0) == Verdict(reason, 2)


def test_who_decides_first_decides_for_all():
    calls = members(3)
    verdict = calls[1].decide("rank 1 raised KeyboardInterrupt", 1)
    assert calls[0].look(1, 0.1) == verdict == Verdict("rank 1 raised KeyboardInterrupt", 1)
    assert calls[2].decide("anything else", 2) == Verdict("anything else", 2)  # has not read it
    assert calls[0].look(1, 0.2) == verdict


def test_a_rank_that_left_is_known_at_once():
    calls = members(3)
    for call in calls:
        call.enter()
    calls[2].leave(4, tell=True)
    assert calls[0].look(4, 0.1) is None, "it had been through this one"
    assert calls[0].look(5, 0.1) == Verdict("rank 2 has left the group", 2)
    assert calls[1].look(5, 0.1) == Verdict("rank 2 has left the group", 2)


def test_who_leaves_may_come_back():
    calls = members(2)
    for _ in range(2):
        for call in calls:
            call.enter()
        calls[1].enter()
        calls[1].leave(4, tell=True)
        assert calls[0].look(5, 0.1) is None, "the outer block goes on"
        calls[1].leave(4, tell=True)
        calls[0].leave(4, tell=True)
    calls[0].enter()
    assert calls[0].look(5, 0.1) is None, "the other one may enter as well"
    calls[1].enter()
    calls[1].leave(4, tell=False)
    assert calls[0].look(5, 0.1) is None, "it had an error, of which it tells otherwise"
    assert calls[0].look(5, 9.5) is None
    assert calls[0].look(5, 10.1).reason == "time-out after 10 s: rank 1 is missing"


def test_a_rank_that_closed_is_known_at_once_also_outside_of_blocks():
    calls = members(3)
    calls[2].close(4)
    assert calls[0].look(4, 0.1) is None, "it had been through this one"
    assert calls[0].look(5, 0.1) == Verdict("rank 2 has closed the group", 2)
    assert calls[1].look(5, 0.1) == Verdict("rank 2 has closed the group", 2)


def test_outside_of_blocks_nobody_is_taken_to_have_left():
    calls = members(2)
    calls[1].enter()
    calls[1].leave(4, tell=True)
    assert calls[0].look(5, 0.1) is None


def test_a_rank_that_died_is_the_one_that_does_not_answer():
    calls = members(3)
    assert calls[0].look_after_failure(1, 0.1, 0.0, "closed") is None
    assert calls[0].look_after_failure(1, 0.7, 0.6, "closed") is None, "two have not answered"
    assert calls[1].look(1, 0.1) is None
    verdict = Verdict("the exchange failed: rank 2 is missing", 2)
    assert calls[0].look_after_failure(1, 0.8, 0.7, "closed") == verdict
    assert calls[1].look(1, 0.2) == verdict


def test_two_ranks_that_died_are_known_at_the_time_out():
    calls = members(4)
    assert calls[0].look_after_failure(1, 0.1, 0.0, "closed") is None
    assert calls[1].look(1, 0.1) is None
    assert calls[0].look_after_failure(1, 9.9, 9.8, "closed") is None
    verdict = Verdict("the exchange failed: ranks 2, 3 are missing", 2)
    assert calls[0].look_after_failure(1, 10.1, 10.0, "closed") == verdict


def test_an_engine_that_fails_with_all_ranks_there_speaks_for_itself():
    calls = members(2)
    assert calls[0].look_after_failure(1, 0.1, 0.0, "cable") is None
    assert calls[1].look(1, 0.1) is None
    assert calls[0].look_after_failure(1, 0.2, 0.1, "cable").reason == "the exchange failed: cable"


@pytest.mark.parametrize("board", ["none", "broken", "silent"])
def test_without_a_board_that_works_nobody_is_named(board):
    """What cannot be known is not said; a silent board may still answer, for a while."""
    (call, _) = members(2)
    if board == "none":
        call = RollCall(0, 2, TIMEOUT, None)
    else:
        call._board.broken = board == "broken"
        call._board.settled = False
    assert call.look(1, 9.5) is None
    verdict = Verdict("time-out after 10 s: not all ranks have come", None)
    assert call.look(1, 10.1) == verdict
    call.verdict = None
    if board == "silent":
        assert call.look_after_failure(1, 0.1, 0.0, "closed") is None
    failed = Verdict("the exchange failed, as when a rank dies: closed", None)
    assert call.look_after_failure(1, 0.7, 0.6, "closed") == failed


# --- a store as a board ---------------------------------------------------------------------------


class Store:
    """A key-value store of torch.distributed, of which threads make use."""

    def __init__(self):
        self.data = {}
        self.open = threading.Event()
        self.open.set()
        self.dead = False

    def _visit(self):
        self.open.wait()
        if self.dead:
            raise ConnectionError("no store")

    def set(self, key, value):
        self._visit()
        self.data[key] = value.encode()

    def has_extended_api(self):
        return False

    def get(self, key):
        self._visit()
        return self.data[key]

    def add(self, key, amount):
        self._visit()
        total = int(self.data.get(key, b"0")) + amount
        self.data[key] = str(total).encode()
        return total

    def delete_key(self, key):
        self._visit()
        return self.data.pop(key, None) is not None

    def check(self, keys):
        self._visit()
        return all(key in self.data for key in keys)


def boards(size, store):
    return [StoreBoard(store, Keys("notes", rank, size)) for rank in range(size)]


def test_notes_in_a_store():
    first, second, third = boards(3, Store())
    assert first.read(["a"], WIDE) == {}
    second.write("hello", "a")
    assert second.is_settled(WIDE)
    assert first.read(["b"], WIDE) == {}, "nobody rang that bell"
    assert first.read(["b", "a"], WIDE) == {1: "hello"}
    third.write("there", "b")
    second.write("again", "c")
    assert second.is_settled(WIDE)
    assert third.is_settled(WIDE)
    assert first.read(["a"], WIDE) == {1: "again", 2: "there"}
    assert second.read(["a"], WIDE) == {2: "there"}


def test_nobody_waits_for_a_store_that_does_not_answer():
    store = Store()
    board, other = boards(2, store)
    other.write("hello", "a")
    assert other.is_settled(WIDE)
    store.open.clear()
    for _ in range(100):
        assert board.read(["a"]) == {}  # and ends, though nobody answers before it has
    board.write("late", "a")
    assert board.read(["a"], 0.1) == {}
    assert not board.is_settled()
    assert threading.active_count() < 10
    store.open.set()
    assert board.is_settled(WIDE)
    assert board.read(["a"], WIDE) == {1: "hello"}
    assert not board.broken


def test_the_last_rank_takes_the_keys_out_of_the_store():
    store = Store()
    of_ranks = boards(3, store)
    for rank, board in enumerate(of_ranks):
        board.write("hello", ROLL)
        board.write("left", f"left-{rank}")
        assert board.is_settled(WIDE)
    for board in of_ranks[:2]:
        board.retire()
        assert board.is_settled(WIDE)
    assert {"notes/0", "notes/1", "notes/2", "notes/roll"} < set(store.data)
    assert of_ranks[2].read([ROLL], WIDE) == {0: "left", 1: "left"}
    of_ranks[2].retire()
    assert of_ranks[2].is_settled(WIDE)
    assert store.data == {}


def test_a_store_that_is_gone():
    store = Store()
    board, _ = boards(2, store)
    store.dead = True
    board.write("hello", "a")
    assert not board.is_settled(WIDE)
    assert board.broken
    assert board.read(["a"], WIDE) == {}
