from __future__ import annotations

from collections import Counter

import pytest

from idefics_cli.config import Shard
from idefics_cli.config.shard import shard_of
from idefics_cli.errors import UsageError


def test_every_document_belongs_to_one_shard_and_shards_are_of_a_size() -> None:
    for count in (1, 2, 7):
        shards = [Shard(index, count) for index in range(1, count + 1)]
        sizes = Counter[int]()
        for number in range(700):
            holders = [shard.index for shard in shards if shard.holds(f"digest {number}")]
            assert len(holders) == 1
            sizes[holders[0]] += 1
        assert min(sizes.values()) > 0.6 * 700 / count


def test_several_documents_together_belong_to_one_shard() -> None:
    assert shard_of(["a", "b"], 1000) == shard_of(("a", "b"), 1000) != shard_of(["b", "a"], 1000)
    assert shard_of("lone surrogate \udc80", 7) in range(1, 8)


def test_a_shard_reads_as_it_is_written() -> None:
    assert Shard.parse("2/7") == Shard(2, 7)
    assert str(Shard(2, 7)) == "2/7"


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "a/4", "-1/4", "1/4/2", ""])
def test_what_is_no_shard_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard .*(1/4|are 1/)"):
        Shard.parse(text)


def test_auto_takes_a_task_of_a_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    assert Shard.parse("auto") == Shard(3, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
    assert Shard.parse("auto") == Shard(2, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(UsageError, match="no task of an array"):
        Shard.parse("auto")


def test_a_part_of_an_array_that_is_submitted_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task 3 would be shard 1 of 1: the whole run, into the output of one shard."""
    for name, value in (("ID", "3"), ("COUNT", "1"), ("MIN", "3")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(UsageError, match=r"SLURM_ARRAY_TASK_MIN=3: .*give --shard I/N"):
        Shard.parse("auto")


def test_auto_takes_the_index_of_a_kubernetes_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert Shard.parse("auto/8") == Shard(1, 8)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "8")
    with pytest.raises(UsageError, match="9/8"):
        Shard.parse("auto/8")


@pytest.mark.parametrize(("text", "variable"), [("auto", "SLURM_ARRAY_TASK_ID"), ("auto/8", "JOB_COMPLETION_INDEX")])
def test_auto_elsewhere_says_which_variable_is_not_set(
    text: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UsageError, match=f"{variable} is not set.*--shard I/N"):
        Shard.parse(text)
    monkeypatch.setenv(variable, "x")
    with pytest.raises(UsageError, match=f"{variable} is 'x'"):
        Shard.parse(text)
