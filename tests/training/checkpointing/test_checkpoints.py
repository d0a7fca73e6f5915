"""Which checkpoint is used: the newest whole one, whatever happened to the files."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rl_reasoner.training.checkpointing.checkpoints import last_checkpoint


def write(folder: Path, step: int) -> Path:
    """A checkpoint as the trainer leaves it, with small contents."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file(
        {"a": torch.full((8, 8), float(step)), "b": torch.zeros(3)}, path / "model.safetensors"
    )
    torch.save({"state": {0: torch.full((8, 8), 0.5)}}, path / "optimizer.pt")
    torch.save({"last_lr": [0.1]}, path / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, path / "rng_state.pth")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (2, 10, 9):
        write(tmp_path, step)
    return tmp_path


def found(folder: Path) -> tuple[int | None, list[str]]:
    notes: list[str] = []
    last = last_checkpoint(folder, notes.append)
    return (last[1] if last else None), notes


def test_the_newest_by_number(folder: Path) -> None:
    (folder / "checkpoint-final").mkdir()
    (folder / "README.md").write_text("checkpoint-99")
    assert last_checkpoint(folder, pytest.fail) == (folder / "checkpoint-10", 10)


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, pytest.fail) is None
    assert last_checkpoint(tmp_path / "none", pytest.fail) is None


FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_sends_back_to_the_one_before(
    name: str, share: float, folder: Path
) -> None:
    file = folder / "checkpoint-10" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    step, notes = found(folder)
    assert step == 9
    [note] = notes
    assert note.startswith("checkpoint checkpoint-10 is damaged (")
    assert note.endswith("): using the one before it")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(name: str, folder: Path) -> None:
    (folder / "checkpoint-10" / name).unlink()
    assert found(folder)[0] == 9


def by_deepspeed(folder: Path) -> Path:
    """The newest checkpoint as under ZeRO-3, of two processes; the folder of its states."""
    path = folder / "checkpoint-10"
    for name in ("model.safetensors", "optimizer.pt"):
        (path / name).unlink()
    (states := path / "global_step10").mkdir()
    for rank in range(2):
        for kind in ("model", "optim"):
            file = states / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
            torch.save({"state": torch.full((8, 8), 0.5)}, file)
    (path / "latest").write_text("global_step10")
    return states


def test_one_that_deepspeed_wrote_is_whole(folder: Path) -> None:
    by_deepspeed(folder)
    assert found(folder) == (10, [])


@pytest.mark.parametrize("kind", ["model", "optim"])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.99])
def test_damaged_states_of_deepspeed_send_back_to_the_one_before(
    share: float | None, kind: str, folder: Path
) -> None:
    files = [*by_deepspeed(folder).glob(f"*{kind}*")]
    for file in files[:1] if share is not None else files:
        data = file.read_bytes()
        file.unlink() if share is None else file.write_bytes(data[: int(share * len(data))])
    step, [note] = found(folder)
    assert step == 9 and f"{kind}_states.pt" in note


def test_the_other_files_are_looked_at_under_deepspeed_too(folder: Path) -> None:
    by_deepspeed(folder)
    (folder / "checkpoint-10" / "rng_state.pth").unlink()
    assert found(folder)[0] == 9


def test_several_damaged_ones_and_none_left(folder: Path) -> None:
    for step, expected in ((10, 9), (9, 2), (2, None)):
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
        assert found(folder)[0] == expected
    assert len(found(folder)[1]) == 3


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_seen_or_does_no_harm(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is raised for it, and what passes as whole holds the same tensors."""
    folder = tmp_path_factory.mktemp("flip")
    path = write(folder, 1)
    file = path / data.draw(st.sampled_from(["optimizer.pt", "scheduler.pt", "rng_state.pth"]))
    body = bytearray(file.read_bytes())
    whole = torch.load(file)
    bit = data.draw(st.integers(0, 8 * len(body) - 1))
    body[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(body)
    step, notes = found(folder)
    if step == 1:
        assert repr(torch.load(file)) == repr(whole)
    else:
        assert len(notes) == 1
    shutil.rmtree(folder)


def test_a_flipped_bit_in_the_tensors_of_the_optimizer_is_seen(folder: Path) -> None:
    file = folder / "checkpoint-10" / "optimizer.pt"
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/0"))
        wanted = archive.read(name)
    body = file.read_bytes()
    at = body.index(wanted)
    file.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
    step, [note] = found(folder)
    assert step == 9 and "optimizer.pt" in note and "checksum" in note


def test_an_adapters_checkpoint_is_whole_too(tmp_path: Path) -> None:
    path = write(tmp_path, 4)
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    assert found(tmp_path) == (4, [])


def test_a_checkpoint_of_the_model_alone_is_whole_and_told(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / "checkpoint-10" / name).unlink()
    step, [note] = found(folder)
    assert step == 10
    assert note.startswith("checkpoint checkpoint-10 holds only the model: its step is resumed")
    (folder / "checkpoint-10" / "trainer_state.json").unlink()  # killed behind the weights
    assert found(folder)[0] == 9
