"""Candidates for the attention of a block: what their names mean and what they cost."""

from math import prod
from typing import Any, Dict

from .. import adapter
from .._library import MAX_FACTORS, MAX_RANK
from .._library import activation as check_activation

SOFTMAX = "softmax"
_WORDS = {"hidden": {"hidden": True}, "unnormalised": {"normalised": False}, "after": {"rope": "after"}}


def parse(name: str) -> adapter.Block:
    """A name, as the arguments of hla.HadamardAttention from ranks on; None for softmax.

    "16x16": two factors of rank 16. Words behind the ranks change what is usual: an activation, "hidden" (the maps have
    a hidden layer), "unnormalised", "after" (RoPE comes after the maps), as in "16x16-exp-hidden".
    """
    if name == SOFTMAX:
        return None
    ranks, *words = name.split("-")
    try:
        block: Dict[str, Any] = {"ranks": [int(rank) for rank in ranks.split("x")]}
    except ValueError:
        raise ValueError(f"candidate {name!r} must begin with ranks such as 16x16") from None
    if not 1 <= len(block["ranks"]) <= MAX_FACTORS or not all(1 <= rank <= MAX_RANK for rank in block["ranks"]):
        raise ValueError(f"candidate {name!r} must have 1 to {MAX_FACTORS} ranks from 1 to {MAX_RANK}")
    for word in words:
        if word not in _WORDS:
            try:
                check_activation(word)
            except ValueError:
                known = ", ".join(_WORDS)
                raise ValueError(f"candidate {name!r}: {word!r} is neither an activation nor one of {known}") from None
        block.update(_WORDS.get(word, {"activation": word}))
    return block


def softmax_operations(tokens: int, width: int) -> int:
    """Of one head, a multiply-add counted as 2: scores and their product with the values."""
    return 4 * tokens * tokens * width


def operations(name: str, tokens: int, width: int) -> int:
    """Of one head, maps included, in the cheaper of the operator's two exact forms (docs/OPERATOR.md, section 3)."""
    block = parse(name)
    if block is None:
        return softmax_operations(tokens, width)
    ranks = block["ranks"]
    maps = 2 * 2 * tokens * width * sum(ranks)  # queries and keys
    if block.get("hidden"):
        maps += 2 * 2 * tokens * width * width * len(ranks)
    state = 2 * 2 * tokens * prod(ranks) * (width + 1)
    quadratic = 2 * tokens * tokens * (sum(ranks) + width)
    return maps + min(state, quadratic)


def share(name: str, tokens: int, width: int) -> float:
    """Of softmax attention's operations."""
    return operations(name, tokens, width) / softmax_operations(tokens, width)
