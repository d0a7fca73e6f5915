"""Ways of multiplying, forced whatever is fastest here: products of any size go that way."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from rl_reasoner.kernels import native, products
from rl_reasoner.machine import VARIABLE

WAYS = ("torch", "torch, fused", "onednn", "integers")


@contextmanager
def multiplied(way: str) -> Iterator[bool]:
    """Inside, products go `way`; with "fused" or by integers, operations are the compiled ones.

    Yields whether this machine can.
    """
    name, _, fused = way.partition(", ")
    compiled = bool(fused) or name == "integers"
    chosen = {"native": compiled, "products": dict.fromkeys(products.CLASSES, name)}
    with (
        mock.patch.dict(os.environ, {VARIABLE: json.dumps(chosen)}),
        mock.patch.object(native, "_can_be", lambda value: True),
        mock.patch.object(products, "_WORTH", 0),
    ):
        able = native._library() is not None or not compiled
        yield able and name in products.usable_ways()
