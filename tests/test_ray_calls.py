"""Results of calls, as Ray's own futures and errors bring them; no cluster is joined."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from idefics_cli.workers.messages import Lost, Stop
from idefics_cli.workers.ray_calls import Actor, ActorCalls
from idefics_cli.workers.ray_cluster import Node
from idefics_cli.workers.ray_documents import OutgoingDocuments
from idefics_cli.workers.ray_worker import Place

pytestmark = pytest.mark.ray
PLACE = Place("node 1", "10.0.0.1", "0", "0.1.0")


class Cluster:
    """Has the nodes that it is given."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def nodes(self) -> list[Node]:
        return [Node(one, "10.0.0.1", 1, 1) for one in self.ids]


class Method:
    """A method of an actor: every call is kept, to be answered by the test."""

    def __init__(self) -> None:
        self.calls: list[Future[Any]] = []
        self.arguments: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> Method:
        self.arguments.append(arguments)
        self.calls.append(Future())
        return self

    def future(self) -> Future[Any]:
        return self.calls[-1]


class Handle:
    def __init__(self) -> None:
        self.place = Method()


def actor_of(index: int = 0) -> Actor:
    return Actor(index, Handle(), Method(), Method(), OutgoingDocuments(as_bytes=False), node_id="node 1")


def calls_on(*nodes: str) -> ActorCalls:
    return ActorCalls(Cluster(*nodes))  # type: ignore[arg-type]


def test_results_come_with_their_actors_and_none_is_waited_for_beyond_the_time() -> None:
    calls, one, two = calls_on("node 1"), actor_of(0), actor_of(1)
    calls.place(one)
    calls.fetch(two)
    calls.send(two, Stop())
    assert calls.results(0.01) == []
    two.reports.calls[0].set_result(("a report",))
    one.handle.place.calls[0].set_result(PLACE)
    two.take.calls[0].set_result(None)  # a message that has arrived says nothing
    assert calls.results(1.0) == [(two, ("a report",)), (one, PLACE)]
    assert two.take.arguments == [(Stop(),)]
    calls.wake()
    assert calls.results(60.0) == []


@pytest.mark.parametrize(("nodes", "is_machine"), [(("node 1",), False), (("node 2",), True)])
def test_an_actor_that_has_died_is_lost_and_with_it_its_node_where_that_is_gone(
    nodes: tuple[str, ...], is_machine: bool
) -> None:
    from ray.exceptions import ActorDiedError

    calls, actor = calls_on(*nodes), actor_of()
    calls.fetch(actor)
    actor.reports.calls[0].set_exception(ActorDiedError())
    ((_, lost),) = calls.results(1.0)
    assert isinstance(lost, Lost)
    assert lost.is_machine is is_machine
    assert lost.why


def test_an_actor_that_can_not_be_reached_is_asked_again_and_then_lost_without_blame() -> None:
    from ray.exceptions import ActorUnavailableError

    calls, actor = calls_on("node 1"), actor_of()
    calls.fetch(actor)
    actor.reports.calls[0].set_exception(ActorUnavailableError("not now", b"0" * 16))
    assert calls.results(1.0) == []
    while not actor.handle.place.calls:
        calls.results(0.1)
    actor.handle.place.calls[0].set_result(PLACE)
    assert calls.results(1.0) == [(actor, Lost("it could not be reached for a time", is_machine=True))]
