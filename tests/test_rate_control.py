"""Rates for a target: plain encodes bisect; a codec that searches for long does so a few times, within its seconds."""

import math

import pytest

from latcodec import rate_control
from latcodec.encoder import Trial
from latcodec.rate_control import RateControl, Reached, SearchBudget, Target


class StandIn:
    """An encoder of a made-up picture: bytes and dB by rate index, better by the effort, on a clock of its own."""

    PLAIN_S = 0.25

    def __init__(self, monkeypatch, gain=lambda effort, index: (0.06, 0.0)):
        """gain(effort, index): the part of the bytes that a search saves, and the dB it adds."""
        self.now, self.gain, self.calls, self.judged = 100.0, gain, [], []
        monkeypatch.setattr(rate_control.time, "perf_counter", lambda: self.now)

    def size(self, index, effort=0):
        return int(1000 * math.exp(0.01 * index) * (1 - self.of_gain(effort, index)[0]))

    def psnr(self, index, effort=0):
        return 27 + 0.04 * index + self.of_gain(effort, index)[1]

    def of_gain(self, effort, index):
        return self.gain(effort, index) if effort else (0.0, 0.0)

    def encode_at(self, index, verify, effort=None, max_seconds=0.0, progress_range=None):
        self.calls.append((index, verify, effort, max_seconds, progress_range))
        self.now += max_seconds if effort else self.PLAIN_S
        effort = effort or 0
        return Trial(index, bytes(self.size(index, effort)), effort, self.psnr(index, effort))

    def quality(self, trial):
        self.judged.append(trial.rate_index)
        return trial.psnr_db

    @property
    def searches(self):
        return [call for call in self.calls if call[2]]


def reach(target, encoder, budget=None, lossless=None) -> Reached:
    return RateControl(target, encoder, True, budget).reach(lossless)


@pytest.fixture
def make(monkeypatch):
    return lambda *gain: StandIn(monkeypatch, *gain)


@pytest.mark.parametrize("limit", [1000, 1001, 2345, 5000, 10**6])
def test_the_best_that_is_small_enough(make, limit):
    codec = make()
    reached = reach(Target(limit_bytes=limit), codec)
    trial, trials = reached.trial, reached.plain_encodes
    assert trials <= 8 and len(codec.calls) == trials + 1
    assert [verify for _, verify, *_ in codec.calls] == [False] * trials + [True]
    assert codec.size(trial.rate_index) <= limit and (
        trial.rate_index == 255 or codec.size(trial.rate_index + 1) > limit
    )
    assert all(effort is None for _, _, effort, *_ in codec.calls)  # its options say it


@pytest.mark.parametrize("target", [20, 27.01, 31.5, 37.19])
def test_the_smallest_that_is_good_enough(make, target):
    codec = make()
    reached = reach(Target(psnr_db=target), codec)
    trial = reached.trial
    assert reached.plain_encodes <= 8 and trial.psnr_db >= target
    assert trial.rate_index == 0 or codec.psnr(trial.rate_index - 1) < target


@pytest.mark.parametrize("search", [None, SearchBudget(9)])
def test_the_nearest_miss(make, search):
    for target, index in ((Target(limit_bytes=500), 0), (Target(psnr_db=50), 255)):
        trial = reach(target, make(), search).trial
        assert trial.rate_index == index and not target.is_met(trial)
        assert trial.coded == (0 if search is None else 9) or target.psnr_db is not None


def test_only_a_search_reaches_it(make):
    trial = reach(Target(limit_bytes=945), make(), SearchBudget(9)).trial
    assert (trial.rate_index, trial.coded) == (0, 9) and len(trial.data) <= 945


@pytest.mark.parametrize("effort", [2, 3, 9])
def test_what_a_search_saves_goes_into_quality(make, effort):
    """6 % smaller is 6 indices more: after a short search the whole effort is spent once, where it is due."""
    codec, target = make(), Target(limit_bytes=3000)
    plain = reach(target, make()).trial
    reached = reach(target, codec, SearchBudget(effort))
    trial = reached.trial
    assert codec.size(trial.rate_index, effort) <= 3000 < codec.size(trial.rate_index + 1, effort)
    assert trial.rate_index >= plain.rate_index + 6 and trial.coded == effort
    assert [(index, used) for index, _, used, *_ in codec.searches] == [
        (plain.rate_index, 2),
        (trial.rate_index, effort),
    ]
    assert reached.plain_encodes + reached.searches == len(codec.calls) and all(
        verify for _, verify, *_ in codec.searches
    )
    assert all(seconds == 0 for *_, seconds, _ in codec.searches)
    spans = [span for *_, span in codec.searches]
    assert spans == sorted(spans) and spans[0][0] == 0 and spans[1][1] == 1


@pytest.mark.parametrize("dB", [0.4, -0.4])
def test_psnr_that_a_search_changes(make, dB):
    target = Target(psnr_db=32.0)
    codec = make(lambda effort, index: (0.15, dB))
    trial = reach(target, codec, SearchBudget(6)).trial
    assert trial.psnr_db >= 32 and codec.psnr(trial.rate_index - 1, 6) < 32 and trial.coded == 6
    assert len(codec.searches) == 2


def test_a_miss_is_corrected(make):
    """More effort may cost bytes, where it buys dB with them."""
    codec = make(lambda effort, index: (0.08 if effort == 2 else 0.03, 0.0))
    trial = reach(Target(limit_bytes=3000), codec, SearchBudget(9)).trial
    assert len(codec.searches) == 3 and trial.coded == 9
    assert codec.size(trial.rate_index, 9) <= 3000 < codec.size(trial.rate_index + 2, 9)


def test_clear_room_is_used_and_little_room_is_not(make):
    codec = make(lambda effort, index: (0.03 if effort == 2 else 0.10, 0.0))
    trial = reach(Target(limit_bytes=3000), codec, SearchBudget(9)).trial
    assert len(codec.searches) == 3 and codec.size(trial.rate_index, 9) <= 3000 < codec.size(trial.rate_index + 2, 9)
    codec = make(lambda effort, index: (0.06 if effort == 2 else 0.075, 0.0))
    reach(Target(limit_bytes=3000), codec, SearchBudget(9))
    assert len(codec.searches) == 2


def test_what_misses_for_good_falls_back_on_the_plain_file(make):
    codec = make(lambda effort, index: (-0.5, 0.0))
    trial = reach(Target(limit_bytes=1050), codec, SearchBudget(9)).trial
    assert trial.coded == 0 and len(trial.data) <= 1050
    assert codec.calls[-1][:3] == (trial.rate_index, True, 0)


@pytest.mark.parametrize("seconds", [3.0, 20.0])
@pytest.mark.parametrize("target", [Target(limit_bytes=3000), Target(psnr_db=32.0)])
def test_the_deadline_holds_for_all_trials_together(make, target, seconds):
    saved = (0.08, 0.03) if target.psnr_db is None else (0.03, 0.08)
    gain_db = 0.2 if target.psnr_db is None else -0.2
    codec = make(lambda effort, index: (saved[0], 0.2) if effort == 2 else (saved[1], gain_db))
    trial = reach(target, codec, SearchBudget(9, codec.now + seconds)).trial
    assert target.is_met(trial) and trial.coded == 9
    assert codec.now <= 100 + seconds
    assert len(codec.searches) == 3 and all(spent > 0 for *_, spent, _ in codec.searches)
    longest = max(codec.searches, key=lambda call: call[3])
    assert longest[2] == 9 and longest[3] > 0.5 * (seconds - 8 * codec.PLAIN_S)


def test_no_time_left_is_the_plain_file(make):
    codec = make()
    plain = reach(Target(limit_bytes=3000), make()).trial
    trial = reach(Target(limit_bytes=3000), codec, SearchBudget(9, codec.now + 1)).trial
    assert codec.searches == [] and (trial.rate_index, trial.coded) == (plain.rate_index, 0)


def test_equal_pictures_have_no_end_of_dB(make):
    codec = make(lambda effort, index: (0.05, math.inf))
    trial = reach(Target(psnr_db=32.0), codec, SearchBudget(9)).trial
    assert trial.psnr_db >= 32


def whole_of(size: int) -> Trial:
    return Trial(255, bytes(size), "whole", math.inf)


def test_a_picture_without_loss_is_the_best_that_is_small_enough(make):
    codec = make()
    assert reach(Target(limit_bytes=5000), codec, lossless=whole_of(5000)) == Reached(whole_of(5000), 1, 0)
    assert not codec.calls
    reached = reach(Target(limit_bytes=5000), codec, lossless=whole_of(5001))
    trial = reached.trial
    assert trial.coded != "whole" and reached.plain_encodes == len(codec.calls) and len(trial.data) > 4900


@pytest.mark.parametrize("search", [None, SearchBudget(3)])
@pytest.mark.parametrize("target", [28.0, 33.0, 37.0, 90.0])
def test_for_a_quality_it_is_taken_if_nothing_that_good_is_smaller(make, target, search):
    codec = make()
    alone = reach(Target(psnr_db=target), make(), search).trial
    trial = reach(Target(psnr_db=target), codec, search, whole_of(3000)).trial
    wanted = target == 90.0 or len(alone.data) > 3000
    assert (trial.coded == "whole") == wanted and (wanted or trial == alone)


def test_of_misses_the_smallest_is_taken(make):
    for size in (700, 1100):
        trial = reach(Target(limit_bytes=600), make(), lossless=whole_of(size)).trial
        assert len(trial.data) == min(size, 1000)


def test_a_search_for_a_size_is_never_worse_than_none(make):
    """Where a search saves bytes and loses more dB than they buy, the plain file is the better one."""
    worse, better = make(lambda effort, index: (0.03, -1.0)), make(lambda effort, index: (0.03, 1.0))
    for codec, effort in ((worse, 0), (better, 6)):
        reached = reach(Target(limit_bytes=3000), codec, SearchBudget(6))
        assert reached.trial.coded == effort and len(reached.trial.data) <= 3000
        assert reached.searches >= 2 and len(codec.judged) >= reached.searches + 1
