"""What counts as hanging, by clocks that are given."""

from __future__ import annotations

import threading

from idefics_cli.workers.liveness import EngineWatch, Heartbeat, Silence, Stopwatch, beat_seconds


def test_beats_are_often_enough_for_the_limit() -> None:
    assert beat_seconds(600) == 10
    assert beat_seconds(2) == 0.5


def test_a_stopwatch_counts_no_time_in_which_nobody_looked() -> None:
    stopwatch = Stopwatch(10)
    assert stopwatch.look(100, is_zero=False) == 0
    assert stopwatch.look(109, is_zero=False) == 9
    assert stopwatch.look(10_000, is_zero=False) == 29  # the machine slept, or the process was stopped
    assert stopwatch.look(10_001, is_zero=True) == 0
    assert stopwatch.look(10_006, is_zero=False) == 5


def test_an_engine_hangs_that_has_requests_and_does_no_step() -> None:
    watch = EngineWatch(10)
    assert watch.look(0, in_flight=0, steps=5) == 0
    assert watch.look(10, in_flight=3, steps=5) == 10
    assert watch.look(20, in_flight=3, steps=5) == 20
    assert watch.look(30, in_flight=3, steps=6) == 0, "it did a step"
    assert watch.look(40, in_flight=2, steps=6) == 10
    assert watch.look(50, in_flight=0, steps=6) == 0, "it has nothing to do"
    assert watch.look(60, in_flight=0, steps=6) == 0


def test_the_driver_hears_who_reports_and_forgets_who_has_ended() -> None:
    silence = Silence(10)
    for index in (0, 1, 2):
        silence.heard(index, 0)
    silence.forget(2)
    for now in range(5, 100, 5):
        silence.heard(0, now)
        if found := silence.longer_than(50, now):
            assert (found, now) == ([1], 55)
            break
    else:
        raise AssertionError("nobody was silent")
    silence.heard(1, 55)
    assert silence.longer_than(50, 60) == []


def test_a_heartbeat_beats_until_it_is_ended() -> None:
    beats = threading.Semaphore(0)
    heart = Heartbeat(0.01, beats.release)
    for _ in range(3):
        assert beats.acquire(timeout=10)
    heart.end()
