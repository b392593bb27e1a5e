"""What a run says of itself: to a callback, and to trackers."""

from __future__ import annotations

import pytest
from accelerate.tracking import GeneralTracker
from runs import NETWORK, QUICK, same, toy, toy_run

from flowturbo.training import TrainConfig, train
from flowturbo.training.throughput import Throughput


class Tracker(GeneralTracker):
    """Keeps what it is given."""

    name, requires_logging_directory = "kept", False

    def __init__(self) -> None:
        super().__init__()
        self.config, self.logged, self.finished = {}, [], False

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **kwargs):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_progress_has_loss_speed_share_of_peak_and_time_left(tmp_path):
    reports = []
    toy_run(tmp_path, report=reports.append)
    assert {p.stage for p in reports} == {"training"}
    assert {(p.done, p.total) for p in reports} >= {(2, 6), (4, 6), (6, 6)}
    for p in reports:
        assert set(p.values) == {"loss", "images_per_second", "mfu", "seconds_left"}
        assert p.values["images_per_second"] > 0
        assert 0 < p.values["mfu"] < 1
    assert reports[-1].values["seconds_left"] == 0


def test_watching_a_run_changes_nothing(tmp_path):
    toy_run(tmp_path / "watched", report=lambda progress: None)
    toy_run(tmp_path / "alone")
    same(tmp_path / "watched", tmp_path / "alone")


def test_speed_is_of_the_time_since_the_last_look(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    speed = Throughput(images=8, step=10, steps=50, peak=160.0)
    now[0] = 2.0
    assert speed.values(20) == {"images_per_second": 40.0, "mfu": 0.25, "seconds_left": 6.0}
    now[0] = 3.0
    assert speed.values(30) == {"images_per_second": 80.0, "mfu": 0.5, "seconds_left": 2.0}


def test_a_tracker_gets_the_configuration_and_each_line_of_the_log(tmp_path):
    tracker = Tracker()
    config = TrainConfig(**QUICK, steps=6, save_every=2, preview_every=0)
    train(NETWORK, toy(), tmp_path, config, trackers=[tracker])
    assert tracker.config["batch"] == 2
    assert [step for step, _ in tracker.logged] == [2, 4, 6]
    for step, values in tracker.logged:
        assert {"loss", "lr", "images_per_second"} <= set(values)
        assert values["lr"] == config.lr_at(step - 1)
    assert tracker.finished


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        (["wandbb"], "trackers='wandbb': must be of .*wandb"),
        ("wandb", r"trackers='wandb': must be a list, such as \['wandb'\]"),
        (["dvclive"], "trackers='dvclive': not installed; pip install dvclive"),
    ],
)
def test_trackers_that_are_not_there_are_refused(tmp_path, trackers, message):
    with pytest.raises(ValueError, match=message):
        train(NETWORK, toy(), tmp_path / "run", **QUICK, trackers=trackers)
    assert not (tmp_path / "run").exists()
