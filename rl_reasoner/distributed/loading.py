"""Loading libraries for good: torch, transformers and trl bring half a million objects that stay.

Looking for garbage among them meanwhile takes an eighth of the time of loading; looking through
them again, as every trainer does at its end, a third of a second. Knows no library.
"""

import gc
import sys
from importlib import import_module


def load_for_good(*modules: str) -> None:
    """Import `modules` without collecting garbage, and keep the collector off what they brought.

    For the main program of a process, which has little garbage by then: what there is stays.
    """
    if all(name in sys.modules for name in modules):
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        for name in modules:
            import_module(name)
        gc.freeze()
    finally:
        if collects:
            gc.enable()
