"""Models are found on the Hub without their weights, offline too, and nothing there is trusted."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub import COMMIT, Hub, serve
from packing import packed

from mlx_flash.config import BrowseOptions
from mlx_flash.engine import remote
from mlx_flash.engine.browse import BrowseReport, Source, browse
from mlx_flash.engine.downloaded import downloaded_models
from mlx_flash.engine.hub import ask_hub
from mlx_flash.engine.seen import MAX_MODELS, HubModel, read_seen, write_seen
from mlx_flash.errors import ModelNotFoundError, OptionError
from mlx_flash.folders import browse_record
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.planner.curve import MissCurve
from mlx_flash.planner.shape import shape_of
from mlx_flash.planner.speed import MachineProfile, ModelShape, predict

GB = 10**9
MACHINE = MachineProfile("cpu", 16 * GB, 8 * GB, 2.0, 1e-4, 10.0, 1e-3, 100.0)
CURVE = MissCurve("a line", 8, 2, np.arange(9), np.arange(9)[None] / 8)
JSON_KEYS = {
    *("id", "source", "download_bytes", "resident_bytes", "expert_bytes", "num_experts"),
    *("num_layers", "top_k", "capacity", "hit_rate", "decode_tps", "fits", "why"),
}
NOWHERE = "http://127.0.0.1:9"  # the discard service, which nobody runs


@pytest.fixture
def dense(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint whose config has no experts."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "dense"))
    config = json.loads((folder / "config.json").read_text())
    del config["num_experts_per_tok"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """An unreachable Hub, no downloads, and a record that is not there yet."""
    return Source(NOWHERE, tmp_path / "downloads", tmp_path / "cache" / "hub-models.json")


def shape_in(folder: Path, name: str) -> ModelShape | None:
    checkpoint = Checkpoint.open(folder)
    return shape_of(name, checkpoint.config, checkpoint.tensors, checkpoint.packed.values())


def a_model(name: str, expert_bytes: int = 10**6, downloads: int = 0) -> HubModel:
    shape = ModelShape(name, 10**8, expert_bytes, 8, 4, 2, 1000)
    return HubModel(name, COMMIT, downloads, shape.total_bytes, shape)


def download(folder: Path, downloads: Path, repository: str, commit: str = COMMIT) -> Path:
    """Lay a checkpoint out as a download from the Hub; return the folder of its files."""
    cached = downloads / f"models--{repository.replace('/', '--')}"
    snapshot = Path(shutil.copytree(folder, cached / "snapshots" / commit))
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / "main").write_text(commit)
    return snapshot


def listed(source: Source, **options: Any) -> BrowseReport:
    return browse(BrowseOptions(**options), MACHINE, CURVE, source)


def test_models_are_found_on_the_hub_without_their_weights(checkpoint: Path, dense: Path) -> None:
    hub = Hub({"maker/moe": checkpoint, "maker/dense": dense})
    with serve(hub) as endpoint:
        answer = ask_hub("", 30, {}, endpoint=endpoint)
    moe, other = answer.models
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert moe == HubModel("maker/moe", COMMIT, 1000, size, shape_in(checkpoint, "maker/moe"))
    assert (other.id, other.shape, answer.unread) == ("maker/dense", None, [])
    weights = [request for request in hub.requests if ".safetensors" in request[0]]
    assert len(weights) == len(list(checkpoint.glob("*.safetensors")))  # none of the dense one
    assert all(asked.startswith("bytes=0-") for _, asked, _ in weights)
    assert sum(sent for *_, sent in weights) < size / 2


def test_a_header_longer_than_the_first_read_is_read_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_BYTES", 64)
    hub = Hub({"maker/moe": checkpoint})
    with serve(hub) as endpoint:
        (moe,) = ask_hub("", 30, {}, endpoint=endpoint).models
        hub.knows_ranges = False
        (unread,) = ask_hub("", 30, {}, endpoint=endpoint).unread
    assert moe.shape == shape_in(checkpoint, "maker/moe")
    assert unread == "maker/moe: the server sends whole files only"


def test_no_answer_is_read_beyond_its_bound(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MAX_JSON_BYTES", 2000)
    padded = {"num_experts_per_tok": 2, "padding": "x" * 2000}
    hub = Hub({"m/m": checkpoint}, {f"/m/m/resolve/{COMMIT}/config.json": padded})
    with serve(hub) as endpoint:
        assert len(remote._read(f"{endpoint}/m/m/resolve/{COMMIT}/config.json", 10)) == 10
        (unread,) = ask_hub("", 30, {}, endpoint=endpoint).unread
    assert unread == "m/m: m/m/config.json is not JSON on the Hub"


def test_a_packed_model_on_the_hub_is_read_too(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(checkpoint)
    folder = packed(tmp_path / "model")
    with serve({"maker/packed": folder}) as endpoint:
        (model,) = ask_hub("", 30, {}, endpoint=endpoint).models
    assert model.shape == shape_in(folder, "maker/packed")


def test_what_is_known_of_a_commit_is_not_asked_again(checkpoint: Path) -> None:
    hub = Hub({"maker/moe": checkpoint})
    with serve(hub) as endpoint:
        (first,) = ask_hub("", 30, {}, endpoint=endpoint).models
        hub.requests.clear()
        old = dataclasses.replace(first, downloads=3)
        assert ask_hub("", 30, {old.id: old}, endpoint=endpoint).models == [first]
        assert [path.partition("?")[0] for path, *_ in hub.requests] == ["/api/models"]
        other = dataclasses.replace(first, commit="f" * 40)
        assert ask_hub("", 30, {other.id: other}, endpoint=endpoint).models == [first]
        assert len(hub.requests) > 2


def test_mlx_checkpoints_come_first_and_others_only_with_a_filter(checkpoint: Path) -> None:
    names = ["maker/moe-hf", "maker/moe-mlx", "maker/other"]
    hub = Hub(dict.fromkeys(names, checkpoint), foreign=frozenset({"maker/moe-hf"}))
    with serve(hub) as endpoint:
        every = ask_hub("", 30, {}, endpoint=endpoint).models
        moes = ask_hub("MOE", 30, {}, endpoint=endpoint).models
        progress: list[int] = []
        one = ask_hub("", 1, {}, progress.append, endpoint)
    assert [model.id for model in every] == ["maker/moe-mlx", "maker/other"]
    assert [model.id for model in moes] == ["maker/moe-mlx", "maker/moe-hf"]
    assert one.num_found <= 8  # those that are looked at together
    assert max(progress) == 1


@pytest.mark.parametrize(
    "line",
    [
        *(None, 7, "maker/moe", [], {}, {"id": None}, {"id": 7}, {"id": ["maker/moe"]}),
        *({"id": name} for name in ("moe", "../moe", "maker/../moe", "/etc/passwd", "a/b/c")),
        *({"id": name} for name in ("maker/moe\n", "maker/m\x1b[31m", "maker/" + "m" * 97, "é/é")),
    ],
)
def test_lines_of_the_list_that_name_no_repository_are_not_followed(
    line: object, checkpoint: Path
) -> None:
    moe = {"id": "maker/moe", "downloads": "many", "sha": "../../x", "config": {"model_type": []}}
    hub = Hub({"maker/moe": checkpoint}, {"/api/models": [line, moe]})
    with serve(hub) as endpoint:
        (model,) = ask_hub("", 30, {}, endpoint=endpoint).models
    assert (model.id, model.downloads, model.commit) == ("maker/moe", 0, COMMIT)
    assert all("maker/moe/" in path or "/api/models?" in path for path, *_ in hub.requests)


def test_the_most_downloaded_are_looked_at_first(checkpoint: Path) -> None:
    names = ["m/rare", "m/common"]
    lines = [{"id": name, "downloads": number} for number, name in enumerate(names)]
    hub = Hub(dict.fromkeys(names, checkpoint), {"/api/models": lines})
    with serve(hub) as endpoint:
        found = ask_hub("", 30, {}, endpoint=endpoint).models
    assert [model.id for model in found] == ["m/common", "m/rare"]


def test_what_a_server_says_reaches_no_terminal_unfiltered() -> None:
    assert remote._first_line(ValueError("a\x1b[31m.\nb")) == "a?[31m"
    assert remote._first_line(ValueError()) == "ValueError"


FILE = "model.safetensors"


@pytest.mark.parametrize(
    "info",
    [
        *(None, 7, [], {}, {"sha": COMMIT}, {"sha": "../main", "siblings": []}),
        *({"sha": COMMIT, "siblings": siblings} for siblings in (7, {"rfilename": FILE})),
        *(
            {"sha": COMMIT, "siblings": [{"rfilename": FILE, "size": size}]}
            for size in (None, -1, 10**30, 1.5, "12", True)
        ),
        {
            "sha": COMMIT,
            "siblings": [{"rfilename": f"model-{i}.safetensors", "size": 9} for i in range(513)],
        },
    ],
)
def test_a_repository_with_an_unsound_list_of_files_is_not_read(
    info: object, checkpoint: Path
) -> None:
    answers = {f"/api/models/maker/bad/revision/{COMMIT}": info}
    hub = Hub({"maker/bad": checkpoint, "maker/moe": checkpoint}, answers)
    with serve(hub) as endpoint:
        answer = ask_hub("", 30, {}, endpoint=endpoint)
    assert [model.id for model in answer.models] == ["maker/moe"]
    (unread,) = answer.unread
    assert unread.startswith("maker/bad: ")
    assert len([path for path, *_ in hub.requests if "maker/bad" in path]) == 1


def test_files_in_folders_or_with_path_like_names_are_not_asked_for(checkpoint: Path) -> None:
    names = ["../model.safetensors", "/model.safetensors", "x/model.safetensors", "model\n.json", 7]
    siblings = [{"rfilename": name, "size": 10**6} for name in names]
    info = {"sha": COMMIT, "siblings": [*siblings, None, "model.safetensors"]}
    hub = Hub({"m/m": checkpoint}, {f"/api/models/m/m/revision/{COMMIT}": info})
    with serve(hub) as endpoint:
        (model,) = ask_hub("", 30, {}, endpoint=endpoint).models
    assert (model.shape, model.download_bytes) == (None, 0)
    assert not any(".safetensors" in path for path, *_ in hub.requests)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:7],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"no" + content[10:],
        lambda content: content.replace(b'"shape":[8,', b'"shape":[9,', 1),
        lambda content: content.replace(b'"BF16"', b'"X\x1b16"', 1),
    ],
)
def test_a_repository_whose_headers_lie_is_told_in_one_line(
    damage: Any, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    shard = sorted(folder.glob("model*.safetensors"))[0]
    shard.write_bytes(damage(shard.read_bytes()))
    with serve({"maker/bad": folder}) as endpoint:
        answer = ask_hub("", 30, {}, endpoint=endpoint)
    (unread,) = answer.unread
    assert answer.models == []
    assert unread.startswith("maker/bad: ")
    assert unread.isprintable()


@pytest.mark.parametrize("config", [None, [], 7, {"num_experts_per_tok": "2"}])
def test_a_config_that_describes_no_moe_is_no_moe(config: object, checkpoint: Path) -> None:
    hub = Hub({"m/m": checkpoint}, {f"/m/m/resolve/{COMMIT}/config.json": config})
    with serve(hub) as endpoint:
        answer = ask_hub("", 30, {}, endpoint=endpoint)
    assert all(model.shape is None for model in answer.models)
    assert len(answer.models) + len(answer.unread) == 1


@pytest.mark.parametrize("listing", [None, {}, "models", 7])
def test_an_address_that_is_no_hub_counts_as_unreachable(listing: object, source: Source) -> None:
    write_seen(source.record, [a_model("maker/seen")])
    with serve(Hub({}, {"/api/models": listing})) as endpoint:
        report = listed(dataclasses.replace(source, endpoint=endpoint))
    assert report.offline
    assert [model.id for model in report.models] == ["maker/seen"]


def test_offline_shows_what_was_seen_and_says_so_in_one_line(
    checkpoint: Path, source: Source
) -> None:
    with serve({"maker/moe": checkpoint}) as endpoint:
        online = listed(dataclasses.replace(source, endpoint=endpoint))
    offline = listed(source)
    assert (online.offline, online.notes) == (False, [])
    assert offline.offline
    assert offline.models == online.models
    (note,) = offline.notes
    assert note.startswith("offline, the Hub cannot be reached (")
    assert len(note.splitlines()) == 1


def test_offline_by_request_says_whose_request_it_was(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_seen(source.record, [a_model("maker/seen")])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (note,) = listed(source).notes
    assert "(HF_HUB_OFFLINE is set)" in note


def test_with_nothing_seen_and_no_hub_there_is_no_model(source: Source) -> None:
    for local in (False, True):
        with pytest.raises(ModelNotFoundError, match="no model was seen or downloaded here"):
            listed(source, local=local)


def test_local_never_asks_the_network(checkpoint: Path, source: Source) -> None:
    hub = Hub({"maker/moe": checkpoint})
    write_seen(source.record, [a_model("maker/seen")])
    with serve(hub) as endpoint:
        report = listed(dataclasses.replace(source, endpoint=endpoint), local=True)
    assert hub.requests == []
    assert report.offline
    assert [model.id for model in report.models] == ["maker/seen"]


def test_what_is_downloaded_is_listed_once_as_such(checkpoint: Path, source: Source) -> None:
    assert source.downloads is not None
    snapshot = download(checkpoint, source.downloads, "maker/moe")
    with serve({"maker/moe": checkpoint, "maker/other": checkpoint}) as endpoint:
        report = listed(dataclasses.replace(source, endpoint=endpoint), order="name")
    assert [(m.id, m.source) for m in report.models] == [
        ("maker/moe", "cache"),
        ("maker/other", "hub"),
    ]
    assert report.models[0].downloads == 1000
    size = sum(file.stat().st_size for file in snapshot.iterdir())
    assert report.models[0].download_bytes == size
    (offline,) = listed(dataclasses.replace(source, record=None)).models
    assert offline == dataclasses.replace(report.models[0], downloads=None)


def test_downloads_that_are_damaged_or_dense_are_left_out(
    checkpoint: Path, dense: Path, tmp_path: Path
) -> None:
    downloads = tmp_path / "downloads"
    assert list(downloaded_models(downloads)) == []
    download(checkpoint, downloads, "maker/good")
    download(dense, downloads, "maker/dense")
    shard = sorted(download(checkpoint, downloads, "maker/cut").glob("model*.safetensors"))[0]
    os.truncate(shard, 1000)
    sorted(download(checkpoint, downloads, "maker/part").glob("model*.safetensors"))[0].unlink()
    (download(checkpoint, downloads, "maker/text") / "config.json").write_text("[]")
    (downloads / "models--maker--empty").mkdir()
    (downloads / "models--stray").write_text("")
    assert [model.id for model in downloaded_models(downloads)] == ["maker/good"]
    (tmp_path / "file").write_text("")
    assert list(downloaded_models(tmp_path / "file")) == []


def test_of_two_downloads_the_complete_one_counts(checkpoint: Path, tmp_path: Path) -> None:
    whole, partial = "a" * 40, "b" * 40
    download(checkpoint, tmp_path, "maker/moe", whole)
    snapshot = download(checkpoint, tmp_path, "maker/moe", partial)
    assert [model.commit for model in downloaded_models(tmp_path)] == [partial]
    (snapshot / "config.json").unlink()
    assert [model.commit for model in downloaded_models(tmp_path)] == [whole]


def test_the_record_keeps_what_it_was_given(tmp_path: Path) -> None:
    record = tmp_path / "new" / "hub-models.json"
    dense = HubModel("maker/dense", COMMIT, 7, 10**9, None)
    models = [a_model("maker/moe", downloads=9), dense]
    write_seen(record, models)
    assert list(read_seen(record).values()) == models
    assert list(record.parent.iterdir()) == [record]
    many = [a_model(f"maker/m{number}", downloads=number) for number in range(MAX_MODELS + 5)]
    write_seen(record, many)
    assert min(model.downloads for model in read_seen(record).values()) == 5


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"[]", b"7", b"{", b'{"version": 2, "models": []}', b"[" * 100_000),
        *(b'{"version": 1, "models": 7}', b'{"version": 1}', b" " * (5 * 1024 * 1024)),
    ],
)
def test_a_damaged_record_is_no_record(content: bytes, source: Source) -> None:
    assert source.record is not None
    source.record.parent.mkdir()
    source.record.write_bytes(content)
    assert read_seen(source.record) == {}
    write_seen(source.record, [a_model("maker/moe")])
    assert list(read_seen(source.record)) == ["maker/moe"]


def hostile_items() -> Iterator[object]:
    good = asdict(a_model("maker/moe"))
    yield from (None, 7, [], {}, good | {"more": 1})
    yield from (good | {"id": name} for name in ("../x", "/x/y", 7, None, "maker/m\x1b", "other/x"))
    yield from (good | {"commit": name} for name in ("", None, "../main", "F" * 40))
    for size in (-1, 10**30, 1.5, "1", None, True):
        yield from (good | {key: size} for key in ("downloads", "download_bytes"))
        for key in good["shape"]:
            yield good | {"shape": good["shape"] | {key: size}}
    yield from (good | {"shape": shape} for shape in (7, [], {}, good["shape"] | {"more": 1}))
    yield good | {"one_by_one": "no"}
    yield good | {"shape": good["shape"] | {"num_experts": 0}}
    yield good | {"shape": good["shape"] | {"expert_bytes": 0}}
    yield good | {"shape": good["shape"] | {"expert_bytes": 1 << 48, "num_experts": 1 << 20}}


@pytest.mark.parametrize("item", list(hostile_items()))
def test_unsound_items_of_the_record_are_left_out(item: object, tmp_path: Path) -> None:
    record = tmp_path / "hub-models.json"
    sound = a_model("maker/sound")
    record.write_text(json.dumps({"version": 1, "models": [item, asdict(sound)]}))
    assert list(read_seen(record).values()) == [sound]


def test_a_record_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_seen(tmp_path / "file" / "hub-models.json", [a_model("maker/moe")])
    (tmp_path / "hub-models.json").mkdir()
    write_seen(tmp_path / "hub-models.json", [a_model("maker/moe")])
    assert {path.name for path in tmp_path.iterdir()} == {"file", "hub-models.json"}
    assert read_seen(tmp_path / "hub-models.json") == {}
    write_seen(None, [])
    assert read_seen(None) == {}


@pytest.fixture
def shelf(source: Source) -> Source:
    """A record of three models: c is fastest and b smallest; d does not fit in 8 GB."""
    models = [
        a_model("maker/a", 100 * 10**6, downloads=5),
        a_model("maker/B-it", 9 * 10**6, downloads=1),
        a_model("owner/c", 10 * 10**6, downloads=9),
        a_model("owner/d", 10 * 10**9, downloads=7),
    ]
    shape = models[1].shape
    assert shape is not None
    slow = dataclasses.replace(shape, top_k=8, resident_bytes=9 * 10**7)
    models[1] = dataclasses.replace(models[1], shape=slow, download_bytes=slow.total_bytes)
    write_seen(source.record, models)
    return source


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("speed", ["owner/c", "maker/B-it", "maker/a"]),
        ("size", ["maker/B-it", "owner/c", "maker/a"]),
        ("name", ["maker/a", "maker/B-it", "owner/c"]),
        ("downloads", ["owner/c", "maker/a", "maker/B-it"]),
    ],
)
def test_models_are_sorted_as_asked(order: str, names: list[str], shelf: Source) -> None:
    report = listed(shelf, order=order)
    assert [model.id for model in report.models] == names
    assert report.num_misfits == 1


def test_what_does_not_fit_is_listed_last_when_asked_for_and_says_why(shelf: Source) -> None:
    report = listed(shelf, misfits=True)
    last = report.models[-1]
    assert (last.id, last.fits, last.capacity, last.decode_tps) == ("owner/d", False, None, None)
    assert "owner/d needs " in last.why
    assert last.needed_bytes is not None
    assert report.num_misfits == 0
    more = listed(shelf, misfits=True, memory_bytes=last.needed_bytes)
    assert all(model.fits for model in more.models)


def test_the_filter_and_the_limit_choose_models(shelf: Source) -> None:
    assert [model.id for model in listed(shelf, text="MAKER/").models] == ["maker/B-it", "maker/a"]
    assert listed(shelf, text="zzz").models == []
    assert [model.id for model in listed(shelf, limit=1).models] == ["owner/c"]


def test_the_numbers_are_those_of_the_planner(shelf: Source) -> None:
    model = listed(shelf, text="maker/a", memory_bytes=2 * GB).models[0]
    shape = read_seen(shelf.record)["maker/a"].shape
    assert shape is not None
    plan = predict(shape, MACHINE, 2 * GB, CURVE)
    found = (model.capacity, model.hit_rate, model.decode_tps)
    assert found == (plan.capacity, plan.hit_rate, plan.decode_tps)
    assert 0 < plan.capacity < shape.num_experts
    spare = listed(shelf, text="maker/a").memory_bytes
    assert 0.85 * MACHINE.available_bytes < spare < MACHINE.available_bytes


def test_experts_stored_one_by_one_are_to_be_packed_first(source: Source) -> None:
    write_seen(source.record, [dataclasses.replace(a_model("maker/hf"), one_by_one=True)])
    (model,) = listed(source).models
    assert model.fits
    assert "mlx-flash pack" in model.why


@pytest.mark.parametrize(
    "options",
    [{"order": "beauty"}, {"text": "a b"}, {"text": "x" * 97}, {"limit": 0}, {"limit": 201}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BrowseOptions(**options)


@pytest.mark.parametrize("text", ["40%", "all", "0", "much", "", "-3GB"])
def test_memory_to_plan_for_is_an_amount(text: str) -> None:
    with pytest.raises(OptionError, match="give one above 0, such as 48GB"):
        BrowseOptions.memory_of(text)
    assert BrowseOptions.memory_of("48GB") == 48 * GB
    assert BrowseOptions.memory_of(None) is None


def command(
    *arguments: str, home: Path, endpoint: str = NOWHERE, name: str = "run_browse"
) -> "subprocess.CompletedProcess[str]":
    code = f"from mlx_flash.cli.main import {name}; {name}()"
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_a_table_and_json_online_and_offline(
    checkpoint: Path, tmp_path: Path
) -> None:
    with serve({"maker/moe": checkpoint}) as endpoint:
        table = command("--ram", "1GB", home=tmp_path, endpoint=endpoint)
    assert table.returncode == 0, table.stderr
    for part in ("maker/moe", "hub", "MB", "8 x 2 top-2", "100%", "tokens/s"):
        assert part in table.stdout
    assert "\x1b" not in table.stdout + table.stderr
    assert "predicted for 1.00 GB of memory and a context of 2048 tokens" in table.stderr
    offline = command("browse", "--ram", "1GB", "--json", home=tmp_path, name="run")
    assert offline.returncode == 0, offline.stderr
    report = json.loads(offline.stdout.splitlines()[-1])
    assert report.keys() >= {"machine", "models", "offline"}
    assert report["offline"] is True
    (model,) = report["models"]
    assert model.keys() >= JSON_KEYS
    assert (model["id"], model["capacity"], model["hit_rate"]) == ("maker/moe", 8, 1.0)
    (note,) = offline.stderr.splitlines()
    assert note.startswith("offline, the Hub cannot be reached (")


def test_the_command_refuses_with_one_sentence(tmp_path: Path) -> None:
    for arguments in (["--local"], ["--sort", "beauty"], ["--ram", "40%"], ["--limit", "0"]):
        refused = command(*arguments, home=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        (sentence,) = refused.stderr.splitlines()
        assert sentence.startswith("mlx-flash: ")


def test_the_record_lies_where_the_platform_keeps_such_things(tmp_path: Path) -> None:
    assert browse_record() == Path(os.environ["MLX_FLASH_CACHE"]) / "hub-models.json"
