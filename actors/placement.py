"""Where actors live: the Ray node of this process, and the node that the next one should be on.

Only feeds have wishes: the copies of one share of the symbols belong on different nodes, so that a node that is lost
takes one of them. It is a wish for the moment of the start. With too few nodes two copies share one, and whoever starts
next of the two (a restart, a deployment, a replacement for memory) moves to another node, if there is one by then.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

from actors.lives import Child
from actors.names import ActorName


def own_node() -> str | None:
    """Return the id of the Ray node that this process is on; None outside of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return str(ray.get_runtime_context().get_node_id())


def nodes_of_copies(name: ActorName, children: Iterable[Child]) -> frozenset[str]:
    """Return the nodes of the living other copies of a feed's share, as their health says; empty for other roles."""
    if name.role != "feed":
        return frozenset()
    return frozenset(
        node
        for child in children
        if child.logical != name.logical and ActorName(child.logical, 0).owns[:2] == name.owns[:2]
        for life in child.lives.values()
        if life.name.role == "feed" and (node := life.health.get("ray_node"))
    )


def preferred_node(name: ActorName, nodes: Sequence[str], taken: Collection[str] = ()) -> str | None:
    """Return the node that an actor should live on, None where it does not matter.

    Feeds go round the nodes by index and copy, and past those where another copy of the same share lives: after the
    loss of a node the order is another one, and would lead them together.

    Args:
        name: Whose.
        nodes: The living ones.
        taken: Nodes of the other copies.
    """
    if name.role != "feed" or len(nodes) < 2:
        return None
    _, index, *copy = name.owns
    first = int(index) + int(copy[0] if copy else 1) - 1
    order = sorted(nodes)
    turns = [order[(first + step) % len(order)] for step in range(len(order))]
    return next((node for node in turns if node not in taken), turns[0])
