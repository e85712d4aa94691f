"""What a linear map does in its block: its role, from its own name and what stands beside it.

The vocabulary holds names of *layers* (`q_proj`, `Wqkv`, `fc1`), never of models. A name that
serves in two places (`dense`, `c_proj`, `Wo`) is decided by structure: inside a module that also
holds queries it is the attention's output, elsewhere the second layer of a feed-forward part. What
neither tells is "other", which is no error: a role only groups matrices in tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

ROLES = (
    *("q", "k", "v", "o", "qkv", "kv", "gate", "up", "down", "gate_up", "fc1", "fc2"),
    *("router", "other"),
)

_NAMES = {
    "q": (
        *("q_proj", "query", "q", "q_lin", "wq", "q_attn", "query_proj", "linear_q", "q_head"),
        *("to_q", "to_query", "project_q", "projection_query", "q_a_proj", "q_b_proj"),
    ),
    "k": (
        *("k_proj", "key", "k", "k_lin", "wk", "key_proj", "linear_k", "k_head"),
        *("to_k", "to_key", "project_k", "projection_key"),
    ),
    "v": (
        *("v_proj", "value", "v", "v_lin", "wv", "value_proj", "linear_v", "v_head"),
        *("to_v", "to_value", "project_v", "projection_value"),
    ),
    "o": ("o_proj", "o", "out_lin", "linear_out", "to_out", "attention_out", "post_proj"),
    "qkv": ("qkv_proj", "qkv", "query_key_value", "wqkv", "c_attn", "att_proj", "in_proj_qkv"),
    "kv": ("kv_proj", "kv", "to_kv", "kv_b_proj", "key_value", "kv_a_proj_with_mqa"),
    "gate": ("gate_proj", "wi_0", "gate", "proj_up_gate", "gate_linear"),
    "up": ("up_proj", "wi_1", "proj_up", "up_linear"),
    "down": ("down_proj", "proj_down", "down_linear"),
    "gate_up": ("gate_up_proj", "gate_and_up_proj"),
    "fc1": (
        *("fc1", "fc_in", "c_fc", "lin1", "linear1", "linear_1", "linear_fc1", "dense_h_to_4h"),
        *("wi", "input_linear", "intermediate", "dense1", "ffn", "pwconv1"),
    ),
    "fc2": (
        *("fc2", "fc_out", "lin2", "linear2", "linear_2", "linear_fc2", "dense_4h_to_h"),
        *("output_linear", "ffn_output", "dense2", "pwconv2"),
    ),
}
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names}
# Attention output or second feed-forward layer, by where they stand.
_SECOND = {"dense", "c_proj", "out_proj", "proj", "projection", "wo", "output", "out"}
_ATTENTION = {"q", "qkv"}
_FIRST = {"fc1", "gate", "up", "gate_up"}
_HOLDERS = {"intermediate": "fc1", "output": "fc2"}  # bert's dense layers lie in these


_STAGES = (
    ("q", "k", "v", "qkv"),
    ("o",),
    ("gate", "up", "gate_up", "fc1"),
    ("down", "fc2"),
)


class _HasRole(Protocol):
    @property
    def role(self) -> str:
        """One of ROLES."""


M = TypeVar("M", bound=_HasRole)


def in_sequence(matrices: Sequence[M]) -> list[list[M]]:
    """Group a block's matrices into stages, in the order in which the block runs them.

    Attention inputs, attention output, MLP inputs, MLP output; what has another role comes last.
    """
    staged = [[m for m in matrices if m.role in roles] for roles in _STAGES]
    known = {role for roles in _STAGES for role in roles}
    staged.append([m for m in matrices if m.role not in known])
    return [stage for stage in staged if stage]


def role_of_name(leaf: str) -> str:
    """Return the role that a layer's own name tells, or "other"."""
    return _ROLE_OF.get(leaf.lower(), "other")


def roles_of_block(shapes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Return the role of each linear map of a block.

    Args:
        shapes: module name relative to the block -> (out, in), all linear maps of the block, since
            roles depend on neighbours.
    """
    roles = {path: role_of_name(path.rpartition(".")[2]) for path in shapes}
    attention = _ancestors(path for path, role in roles.items() if role in _ATTENTION)
    for path in shapes:
        roles[path] = _in_place(path, roles, attention)
    return {path: _gated(path, roles, shapes) for path in shapes}


def _in_place(path: str, roles: Mapping[str, str], attention: set[str]) -> str:
    """Return the role of `path` where its name alone leaves it open."""
    parent, _, leaf = path.rpartition(".")
    leaf, role = leaf.lower(), roles[path]
    if role in {"k", "v"}:  # rwkv's feed-forward has a key and a value, and no query
        return role if any(r in _ATTENTION for r in _beside(path, roles).values()) else "other"
    if leaf in {"w1", "w2", "w3"}:
        gated = "w3" in {p.rpartition(".")[2].lower() for p in _beside(path, roles)}
        return {"w1": "gate" if gated else "fc1", "w2": "fc2", "w3": "up"}[leaf]
    if leaf not in _SECOND:
        return role
    if _FIRST & set(_beside(path, roles).values()):
        return "fc2"
    held = _HOLDERS.get(parent.rpartition(".")[2].partition("_")[0]) if leaf == "dense" else None
    if held == "fc1":
        return held
    return "o" if _ancestors([path]) & attention else held or "other"


def _gated(path: str, roles: Mapping[str, str], shapes: Mapping[str, tuple[int, int]]) -> str:
    """Return `path`'s role with fc1/fc2 renamed where the pair is a gated one.

    A first layer that is twice as wide as the second one's input holds gate and up in one.
    """
    role = roles[path]
    if role not in {"fc1", "fc2"}:
        return role
    beside = _beside(path, roles)
    if role == "fc2":
        firsts = [shapes[p][0] for p, r in beside.items() if r == "fc1"]
        doubled = any(width == 2 * shapes[path][1] for width in firsts)
        return "down" if doubled or {"gate", "gate_up"} & set(beside.values()) else role
    seconds = [shapes[p][1] for p, r in beside.items() if r == "fc2"]
    return "gate_up" if any(shapes[path][0] == 2 * width for width in seconds) else role


def _beside(path: str, roles: Mapping[str, str]) -> dict[str, str]:
    """Return the maps under the same parent as `path`, itself left out, with their roles."""
    parent = path.rpartition(".")[0]
    return {p: r for p, r in roles.items() if p != path and p.rpartition(".")[0] == parent}


def _ancestors(paths: Iterable[str]) -> set[str]:
    """Return all modules strictly above the given ones, the block itself left out."""
    above: set[str] = set()
    for path in paths:
        parent = path.rpartition(".")[0]
        while parent:
            above.add(parent)
            parent = parent.rpartition(".")[0]
    return above
