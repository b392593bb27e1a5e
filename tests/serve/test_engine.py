"""The engine: images in company, refusals, deadlines, and how it ends."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from refiners import random_weights

import flowturbo as ft
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import VelocityRefiner
from flowturbo.serve.engine import Busy, Cancelled, Engine, Expired

PATIENT = 30.0  # seconds until a test gives up
LABELS = ["apple", "tiger", "pizza", "shoe"]
PLANS = ("E3", "AB2:4@1.6", "E2R2", "AB2:FFC@1.6", "AB2:FFCFC", "H1P1R1")


@pytest.fixture(scope="module")
def model():
    config = SiTConfig(size=8, channels=3, patch=4, width=16, depth=1, heads=2, classes=4)
    about = {"name": "small", "condition": {"kind": "class", "labels": LABELS}}
    return ft.Model(random_weights(SiT(config)), about)


@pytest.fixture(scope="module")
def refiner(model):
    return random_weights(VelocityRefiner.from_model(model, (1, 8)))


def picture(source: random.Random, width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), source.randbytes(3 * width * height))


def any_task(seed: int, refiner):
    """A task at random, and how many images it draws."""
    source = random.Random(seed)
    n, scale, label = source.choice([1, 1, 1, 2, 5]), source.choice([1.0, 1.5, 3.0]), source.choice
    kind = source.choice(["generate"] * 3 + ["img2img", "inpaint", "edit"])
    shared = dict(guidance=scale, seed=seed)
    if kind == "generate":
        plan, prompts = source.choice(PLANS), [label(LABELS) for _ in range(n)]
        if "C" in plan:
            shared["guidance"] = 2.0
        return n, lambda m: ft.generate(m, prompts, plan=plan, refiner=_of(m, refiner), **shared)
    images = [picture(source, *source.choice([(8, 8), (13, 10), (20, 30)])) for _ in range(n)]
    if kind == "img2img":
        return n, lambda m: ft.img2img(m, images, label(LABELS[:1]), plan="AB2:6", **shared)
    if kind == "inpaint":
        mask = np.zeros((8, 8))
        mask[:, 4:] = 1
        same = [picture(source, 8, 8) for _ in range(n)]
        return n, lambda m: ft.inpaint(m, same, mask, "tiger", plan="AB2:4", **shared)
    return 1, lambda m: ft.edit(m, images[0], "shoe", "pizza", plan="AB2:3", **shared)


def _of(model, refiner):
    """The refiner to use: a shared model brings its own."""
    return refiner if isinstance(model, ft.Model) else None


def pixels(images) -> list[np.ndarray]:
    return [np.asarray(image, int) for image in images]


def together(engine: Engine, tasks):
    """All of them at once."""
    jobs = [engine.submit(task, images=n) for n, task in tasks]
    return [pixels(job.result(PATIENT)) for job in jobs]


@pytest.mark.parametrize("seed", range(3))
def test_with_one_batch_size_company_changes_no_bit(model, refiner, seed):
    tasks = [any_task(100 * seed + i, refiner) for i in range(16)]
    ticks = []
    alone = Engine(model, refiner=refiner, batch_sizes=[8])
    expected = [pixels(alone.submit(task).result(PATIENT)) for _, task in tasks]
    alone.close()
    engine = Engine(model, refiner=refiner, batch_sizes=[8], observe=ticks.append)
    made = together(engine, random.Random(seed).sample(tasks, len(tasks)))
    engine.close()
    order = random.Random(seed).sample(range(len(tasks)), len(tasks))
    assert {tick.rows + tick.padded for tick in ticks} == {8}
    assert max(tick.members for tick in ticks) > 1
    for i, images in zip(order, made, strict=True):
        for image, same in zip(images, expected[i], strict=True):
            np.testing.assert_array_equal(image, same)
    assert len({image.tobytes() for images in expected for image in images}) > len(tasks) // 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("largest", [2, 24])
def test_in_any_company_images_are_those_drawn_without_an_engine(model, refiner, seed, largest):
    tasks = [any_task(100 * seed + i, refiner) for i in range(16)]
    engine = Engine(model, refiner=refiner, largest_batch=largest)
    made = together(engine, tasks)
    engine.close()
    for (_, task), images in zip(tasks, made, strict=True):
        for image, same in zip(images, pixels(task(model)), strict=True):
            assert np.abs(image - same).max() <= 1


def test_compiled_for_its_sizes_before_the_first_request_and_never_after(
    model, refiner, monkeypatch
):
    monkeypatch.setattr("flowturbo.compiled.backend._BACKEND", "eager")
    tasks, reports = [any_task(seed, refiner) for seed in range(16)], []
    engine = Engine(model, refiner=refiner, batch_sizes=[4, 8], compile=True)
    engine.warm_up(reports.append)
    graphs = engine._compiled.graphs
    made = together(engine, tasks)
    x, t = torch.zeros(1, 3, 8, 8), 0.5
    other = engine.submit(lambda m: m(x, t, None)).result(PATIENT)  # of no condition: as it is
    engine.close()
    assert graphs == engine._compiled.graphs == 4  # network and refiner, two sizes
    assert [(r.done, r.values["batch"]) for r in reports] == [(1, 8), (2, 4)]
    torch.testing.assert_close(other, model(x, t, None))
    for (_, task), images in zip(tasks, made, strict=True):
        for image, same in zip(images, pixels(task(model)), strict=True):
            assert np.abs(image - same).max() <= 1


def test_batches_of_the_warm_up_are_not_observed(model, refiner):
    ticks = []
    engine = Engine(model, refiner=refiner, largest_batch=4, observe=ticks.append)
    engine.warm_up()
    assert ticks == []
    engine.submit(lambda m: ft.generate(m, ["tiger"], plan="E3", guidance=2.0)).result(PATIENT)
    engine.close()
    assert [tick.rows for tick in ticks] == [2, 2, 2]


def test_a_model_without_its_autoencoder_is_refused_before_the_first_request(model):
    engine = Engine(ft.Model(model.network, {"name": "latent", "codec": {"kind": "latent"}}))
    with pytest.raises(ValueError, match="names no autoencoder"):
        engine.warm_up()
    engine.close()


def test_a_graph_that_fits_no_more_is_left(model, monkeypatch, caplog):
    monkeypatch.setattr("flowturbo.compiled.backend._BACKEND", "eager")
    block = model.network.blocks[0]
    engine = Engine(model, batch_sizes=[2], compile=True)
    engine.warm_up()
    draw = lambda m: ft.generate(m, ["tiger"], plan="AB2:2", guidance=2.0)
    before = pixels(engine.submit(draw).result(PATIENT))
    model.network.blocks.append(block)  # what the graph was made of has changed
    try:
        after, expected = pixels(engine.submit(draw).result(PATIENT)), pixels(draw(model))
    finally:
        del model.network.blocks[1]
    engine.close()
    assert "runs uncompiled" in caplog.text
    assert np.abs(after[0] - expected[0]).max() <= 1
    assert np.abs(after[0] - before[0]).max() > 1


def test_rows_of_a_refiner_at_other_times_and_scales_share_a_batch(model, refiner):
    ticks, meet = [], threading.Barrier(3)
    engine = Engine(model, refiner=refiner, observe=ticks.append)

    def task(plan, scale):
        def run(shared):
            meet.wait(PATIENT)
            return ft.generate(shared, ["tiger"], plan=plan, guidance=scale)

        return run

    asked = [("E2R2", 1.5), ("E2R2@1.6", 4.0), ("E2R2@3", 2.0)]
    made = [job.result(PATIENT) for job in [engine.submit(task(*of)) for of in asked]]
    engine.close()
    shared = [tick for tick in ticks if tick.rows == 3]  # a refiner's rows are not doubled
    assert shared
    assert max(tick.members for tick in shared) == 3
    for (plan, scale), images in zip(asked, made, strict=True):
        alone = ft.generate(model, ["tiger"], plan=plan, guidance=scale, refiner=refiner)
        assert np.abs(pixels(images)[0] - pixels(alone)[0]).max() <= 1


def test_one_that_fails_fails_alone(model):
    engine, meet = Engine(model), threading.Barrier(3)

    def task(fails):
        def see(step):
            if fails and step.index == 1:
                raise ArithmeticError("in its second evaluation")

        def run(shared):
            meet.wait(PATIENT)
            return ft.generate(shared, ["tiger"], plan="E4", callback=see)

        return run

    jobs = [engine.submit(task(fails)) for fails in (False, True, False)]
    with pytest.raises(ArithmeticError, match="in its second evaluation"):
        jobs[1].result(PATIENT)
    assert all(len(jobs[i].result(PATIENT)) == 1 for i in (0, 2))
    with pytest.raises(ValueError, match="cherry"):
        engine.submit(lambda shared: ft.generate(shared, ["cherry"])).result(PATIENT)
    assert engine.close()
    assert engine.images == engine.running == engine.waiting == 0


class Held:
    """A task that waits until the test lets it go, then makes evaluations until it is ended."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.seen = 0

    def __call__(self, model):
        self.started.set()
        assert self.go.wait(PATIENT)
        x, cond = torch.randn(1, *model.shape), model.condition(["tiger"])
        while True:
            model(x, 0.5, cond)
            self.seen += 1


def test_a_cancelled_request_frees_its_slot_in_the_middle_and_in_the_queue(model):
    engine = Engine(model, running=1)
    running, queued = Held(), Held()
    first, second = engine.submit(running), engine.submit(queued)
    running.go.set()
    while not running.seen:
        time.sleep(0.001)
    assert (engine.running, engine.waiting) == (1, 1)
    second.cancel()
    assert (engine.running, engine.waiting, engine.images) == (1, 0, 1)
    with pytest.raises(Cancelled):
        second.future.result(0)
    first.cancel()
    with pytest.raises(Cancelled):
        first.result(PATIENT)
    assert not queued.started.is_set()
    assert engine.submit(lambda shared: 7).result(PATIENT) == 7
    first.cancel()  # over: nothing happens
    assert engine.close()
    assert engine.images == 0


def test_a_deadline_ends_what_runs_and_what_waits(model):
    engine = Engine(model, running=1)
    running, queued = Held(), Held()
    running.go.set()
    first, second = engine.submit(running, timeout=0.2), engine.submit(queued, timeout=0.1)
    for job, seconds in ((second, "0.1"), (first, "0.2")):
        with pytest.raises(Expired, match=f"within {seconds} seconds"):
            job.result(PATIENT)
    assert running.seen
    assert not queued.started.is_set()
    assert engine.close()
    assert engine.images == 0


def test_a_request_whose_time_is_over_leaves_the_queue_at_once(model):
    engine, running = Engine(model, running=1), Held()
    first = engine.submit(running)
    assert running.started.wait(PATIENT)
    second = engine.submit(Held(), timeout=60.0)
    second.expire()
    assert engine.images == 1
    with pytest.raises(Expired, match="within 60 seconds"):
        second.future.result(0)
    first.cancel()
    running.go.set()
    assert engine.close()


def test_one_image_among_long_requests_is_not_kept_waiting(model):
    def task(n, evaluations):
        return lambda shared: ft.generate(
            shared, ["tiger"] * n, plan=f"E{evaluations}", guidance=2.0
        )

    engine, done = Engine(model, largest_batch=8), []
    asked = {"long": (8, 40), "also long": (8, 40), "short": (1, 8)}
    jobs = {name: engine.submit(task(*of), images=of[0]) for name, of in asked.items()}
    for name, job in jobs.items():
        job.future.add_done_callback(lambda _, name=name: done.append(name))
    for job in jobs.values():
        job.result(PATIENT)
    engine.close()
    assert done[0] == "short"
    assert len(done) == 3


def test_the_queue_is_bounded_by_images_and_says_when_to_come_back(model):
    engine, held = Engine(model, running=1, queue=8), Held()
    for _ in range(4):
        engine.submit(lambda shared: time.sleep(0.05), images=2).result(PATIENT)
    job = engine.submit(held, images=5)
    waits = engine.submit(lambda shared: 7, images=3)
    with pytest.raises(Busy, match="8 images wait or run, and 4 more exceed the queue of 8") as one:
        engine.submit(lambda shared: 7, images=4)
    assert 0.5 * 0.1 <= one.value.retry_after <= 10 * 0.1  # 4 images, at 0.025 s each
    assert engine.images == 8
    job.cancel()
    held.go.set()
    assert waits.result(PATIENT) == 7
    assert engine.submit(lambda shared: 8, images=8).result(PATIENT) == 8
    assert engine.close()


def test_more_images_than_the_queue_takes_are_never_accepted(model):
    engine = Engine(model, queue=2)
    with pytest.raises(ValueError, match="images=3: the queue takes 2"):
        engine.submit(lambda shared: 7, images=3)
    engine.close()


def test_closing_accepts_nothing_and_lets_everything_finish(model):
    engine = Engine(model, running=2)
    jobs = [engine.submit(lambda shared: ft.generate(shared, ["tiger"], plan="E20"))
            for _ in range(6)]  # fmt: skip
    assert engine.close()
    assert all(len(job.future.result(0)) == 1 for job in jobs)
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(lambda shared: 7)
    assert engine.close()


def test_closing_cancels_what_is_not_over_in_time(model):
    engine, held = Engine(model, running=1), Held()
    jobs = [engine.submit(held), engine.submit(Held())]
    held.go.set()
    assert not engine.close(0.1)
    for job in jobs:
        with pytest.raises(Cancelled):
            job.future.result(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(running=0), "running=0"),
        (dict(queue=0), "queue=0"),
        (dict(largest_batch=0), "largest_batch=0"),
        (dict(batch_sizes=[]), "batch_sizes="),
        (dict(batch=8), "batch"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    before = threading.active_count()
    with pytest.raises((ValueError, TypeError), match=message):
        Engine(model, **arguments)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=0), "images=0"),
        (dict(timeout=-1), "timeout=-1"),
        (dict(timeout=0), "timeout=0"),
    ],
)
def test_wrong_requests(model, arguments, message):
    engine = Engine(model)
    with pytest.raises(ValueError, match=message):
        engine.submit(lambda shared: 7, **arguments)
    assert engine.close()
    assert engine.images == 0
