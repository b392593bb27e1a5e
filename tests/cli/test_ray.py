"""`flowturbo generate --ray`: the folder of the local command, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flowturbo.cli import main
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

N = 500


def status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model in it."""
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=2))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path_factory.mktemp("home")
    condition = {"kind": "class", "labels": ["0", "1"]}
    save_folder(folder / "model", network, {"condition": condition})
    return folder


def command(n: int, out: str) -> list[str]:
    options = ["--batch", "10", "--plan", "E8", "--guidance", "2", "--device", "cpu"]
    return ["generate", "-m", "model", "1", "0", "-n", str(n // 2), *options, "-o", out]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "-o", "a.png"], "--ray: images go into a folder, and -o a.png is an image grid"),
        (["--ray-address", "10.0.0.1:6379"], "--ray-address 10.0.0.1:6379: needs --ray"),
    ],
)
def test_options_that_do_not_go_together(home, monkeypatch, capsys, options, said):
    monkeypatch.chdir(home)
    assert status(*command(2, "a"), *options) == 2
    assert capsys.readouterr().err == f"flowturbo: error: {said}\n"
    assert not Path("a").exists()


def test_ray_is_named_where_it_is_missing(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert status(*command(2, "b"), "--ray") == 2
    said = "flowturbo: error: --ray needs Ray: pip install 'flowturbo[ray]'\n"
    assert capsys.readouterr().err == said


# -- with a cluster -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("ray")
    from ray_cluster import small_cluster

    with small_cluster() as address:
        yield address


def begun(home: Path, out: str, address: str) -> subprocess.Popen[str]:
    ray = ["--ray", "--ray-address", address]
    return subprocess.Popen(
        [sys.executable, "-m", "flowturbo", *command(N, out), *ray],
        cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def written(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}


def wait_for(folder: Path, images: int, process: subprocess.Popen[str]) -> None:
    while sum(1 for _ in folder.glob("[0-9]*.png")) < images:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_workers_and_commands_leave_no_holes_and_no_duplicates(home, monkeypatch, address):
    from ray_cluster import processes

    monkeypatch.chdir(home)
    assert status(*command(N, "whole")) == 0
    first = begun(home, "spread", address)
    wait_for(home / "spread", 100, first)
    first.kill()
    first.communicate()
    kept = len([*(home / "spread").glob("[0-9]*.png")])
    assert 100 <= kept < N
    second = begun(home, "spread", address)
    wait_for(home / "spread", kept + 100, second)
    worker, *_ = processes("ray::call")
    os.kill(worker, signal.SIGKILL)
    said, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert said.startswith(f"{N} images (")  # and Ray's notices are elsewhere
    assert "A worker died" in errors
    assert written(home / "spread") == written(home / "whole")
    assert len(written(home / "whole")) == N + 2  # .lock and options.json


@pytest.mark.slow
def test_calls_are_spread_and_their_errors_are_the_callers(address):
    from flowturbo import cluster

    def refuse(number: int) -> int:
        if number == 3:
            raise ValueError("number=3: is refused")
        return number

    def exits(number: int) -> None:
        os._exit(1)

    assert dict(cluster.spread(abs, range(-20, 0))) == {i: -i for i in range(-20, 0)}
    with pytest.raises(ValueError, match=r"^number=3: is refused$"):
        list(cluster.spread(refuse, range(5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "RETRIES", 1)
        with pytest.raises(OSError, match=r"^Ray gave up: "):
            list(cluster.spread(exits, [0]))
    assert cluster.placed("auto") == ("cpu", 0)
    with pytest.raises(ValueError, match="Ray chooses the GPU"):
        cluster.placed("cuda:1")
