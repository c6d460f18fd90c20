"""Models are found as folders and on the Hub, and what is not found says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import serve

from mlx_flash.engine.find import find_model
from mlx_flash.errors import ModelNotFoundError

FIND = "import sys; from mlx_flash.engine.find import find_model; print(find_model(sys.argv[1]))"


def find_in_a_process(name: str, endpoint: str, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", FIND, name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_folder_is_itself(checkpoint: Path) -> None:
    assert find_model(checkpoint) == checkpoint


@pytest.mark.parametrize("name", ["no/such/folder/here", "/nowhere", "nope", "../x/y", ""])
def test_what_can_be_no_model_is_refused_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ModelNotFoundError, match="give the folder"):
            find_model(name)
    else:
        (tmp_path / "file").write_text("")
        with pytest.raises(ModelNotFoundError, match="is a file"):
            find_model(tmp_path / "file")


def test_a_hub_id_is_downloaded_once_and_then_found_offline(
    checkpoint: Path, tmp_path: Path
) -> None:
    with serve({"maker/moe": checkpoint}) as endpoint:
        found = find_in_a_process("maker/moe", endpoint, tmp_path)
    assert found.returncode == 0, found.stderr
    folder = Path(found.stdout.strip())
    for file in checkpoint.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    again = find_in_a_process("maker/moe", endpoint, tmp_path)
    assert again.stdout == found.stdout, again.stderr


def test_an_unknown_repository_and_an_unreachable_hub_are_told_apart(tmp_path: Path) -> None:
    with serve({}) as endpoint:
        unknown = find_in_a_process("maker/none", endpoint, tmp_path)
    assert "ModelNotFoundError: maker/none is neither a folder here nor" in unknown.stderr
    unreachable = find_in_a_process("maker/none", endpoint, tmp_path)
    assert "ModelNotFoundError: maker/none is not on this machine" in unreachable.stderr
