"""Libraries that are loaded for good: the collector rests meanwhile, and goes on."""

import gc
import sys
from pathlib import Path

import pytest

from rl_reasoner.distributed.loading import load_for_good

NOISY = "import gc\nCOLLECTED = gc.isenabled()\nKEPT = [[] for _ in range(5)]\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_collector_rests_while_modules_are_loaded_and_leaves_them_alone(place: Path) -> None:
    (place / "loaded_for_good.py").write_text(NOISY)
    before = gc.get_freeze_count()
    load_for_good("loaded_for_good")
    module = sys.modules["loaded_for_good"]
    assert not module.COLLECTED and gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(thing is module.KEPT for thing in gc.get_objects())
    more = [[]]
    load_for_good("loaded_for_good")
    assert any(thing is more for thing in gc.get_objects()), "what is loaded is loaded"


def test_the_collector_goes_on_after_a_module_that_fails(place: Path) -> None:
    (place / "fails_to_load.py").write_text("raise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        load_for_good("fails_to_load")
    assert gc.isenabled()
