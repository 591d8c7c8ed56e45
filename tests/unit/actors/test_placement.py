from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.lives import Child, Life, Phase
from actors.names import ActorName
from actors.placement import nodes_of_copies, preferred_node


def living(logical: str, *nodes: str | None) -> Child:
    """Return a child with one generation on each of these nodes; None: it has not answered yet."""
    child = Child(logical)
    for generation, node in enumerate(nodes, start=1):
        life = Life(ActorName(logical, generation), Phase.RUNNING, since_s=0.0, heard_s=0.0, started_s=0.0)
        life.health = {} if node is None else {"ray_node": node}
        child.lives[generation] = life
    return child


@given(count=st.integers(2, 9), index=st.integers(0, 20))
def test_two_copies_of_a_feed_are_wished_onto_two_nodes(count: int, index: int) -> None:
    nodes = [f"node{number}" for number in range(count)]
    wishes = {preferred_node(ActorName(f"feed:binance:{index}{copy}", 1), nodes) for copy in ("", ":2")}
    assert len(wishes) == 2
    assert wishes <= set(nodes)


def test_where_there_is_one_node_nothing_is_wished() -> None:
    assert preferred_node(ActorName("feed:binance:0:2", 1), ["only"]) is None
    assert preferred_node(ActorName("writer:trades", 1), ["a", "b"]) is None


@given(
    index=st.integers(0, 20),
    nodes=st.sets(st.sampled_from("abcdefgh"), min_size=2),
    taken=st.sets(st.sampled_from("abcdefgh"), max_size=1),
    copy=st.sampled_from(["", ":2"]),
)
def test_a_copy_that_starts_later_goes_where_the_other_one_is_not(
    index: int, nodes: set[str], taken: set[str], copy: str
) -> None:
    """After the loss of a node the order is another one: by it alone both would meet on the node that follows."""
    wish = preferred_node(ActorName(f"feed:binance:{index}{copy}", 2), sorted(nodes), taken)
    assert wish in nodes - taken


def test_where_all_nodes_are_taken_any_will_do() -> None:
    assert preferred_node(ActorName("feed:binance:0:2", 1), ["a", "b"], {"a", "b"}) == "b"


@pytest.mark.parametrize(
    ("logical", "avoided"),
    [
        ("feed:binance:0", {"b", "c"}),
        ("feed:binance:0:2", {"a"}),
        ("feed:binance:1", set()),
        ("feed:coinbase:0", set()),
        ("writer:trades", set()),
    ],
)
def test_only_the_other_copies_of_the_same_share_are_kept_apart(logical: str, avoided: set[str]) -> None:
    children = [
        living("feed:binance:0", "a", None),
        living("feed:binance:0:2", "b", "c"),
        living("feed:binance:1", "d"),
        living("writer:trades", "e"),
        living("backfill:binance", "f"),
    ]
    assert nodes_of_copies(ActorName(logical, 9), children) == avoided


def test_outside_of_ray_there_is_no_node() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from actors.placement import own_node; print(own_node())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"
