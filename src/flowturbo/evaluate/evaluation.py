"""`flowturbo.evaluate`: how close the images of a plan are to the reference solution.

A plan solves an ODE in few evaluations. Its images are compared with those of the *reference
solution*: the same noise samples and conditions, with the ODE solved finely. Measured are

- *trajectory error*: the root mean square difference of the final states, image by image;
- *perceptual distance*: the Euclidean distance between the features of the two images, and for
  comparison that of random pairs of images of the reference solution;
- *Frechet distance*, *inception score*, *precision* and *recall*, for the plan and for the
  reference solution, to real images or, without any, to reference images of other noise samples;
- *agreement*: how often an image is closer to its own prompt than to other prompts, where a prompt
  is represented by the mean features of 4 reference images of other noise samples. It shows whether
  a plan loses what the model knows of prompts, not whether the model is right;
- evaluations by kind, floating point operations and milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.config import configured
from flowturbo.evaluate.compare import agreement as agreement_of
from flowturbo.evaluate.compare import compare
from flowturbo.evaluate.config import EvaluateConfig
from flowturbo.evaluate.error_profile import check_whole
from flowturbo.evaluate.features import EffNetFeatures, Features, check_features
from flowturbo.evaluate.fidelity import check_installed, official_scores
from flowturbo.evaluate.image_cache import ImageCache
from flowturbo.evaluate.image_sets import ImageSets
from flowturbo.evaluate.real import Real, digest, load_real
from flowturbo.files import exclusive
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.provenance import conditions, identity, refiner_identity
from flowturbo.refiner.binding import Refiner, check_refiner
from flowturbo.refiner.resolve import Resolved, resolve
from flowturbo.stats import summary
from flowturbo.stores import Chunk
from flowturbo.tree import slice_condition
from flowturbo.tuning.reference import error, fine
from flowturbo.types import Condition, JsonObject

__all__ = ["EvaluateConfig", "evaluate"]


@configured(EvaluateConfig)
@torch.no_grad()
def evaluate(
    model: Model,
    plan: Plan | str | None = None,
    *,
    config: EvaluateConfig,
    prompts: Sequence[str | int] | None = None,
    refiner: Refiner | None = None,
    real_images: str | Path | None = None,
    features: Features | str | None = "effnet",
    cache_dir: str | Path | None = None,
    report: Report | None = None,
) -> JsonObject:
    """Compare the images of ``plan`` with the reference solution of the same noise samples.

    The fields of `EvaluateConfig` are keywords too: ``evaluate(model, plan, num_images=1000)``.

    Args:
        model: from `flowturbo.load`, or a `flowturbo.Model` of a field of your own.
        plan: a plan, its notation, or the name of one of ``model.plans``; by default the card's.
        config: what to measure, and on how many images.
        prompts: labels or prompts of the images, repeated in order; by default sampled evenly from
            the card (`Model.random_condition`).
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        real_images: what `flowturbo.training.load_data` reads, resized to the model's images, or
            an ``.npz`` file with their "features" (M, D). By default a random half of the reference
            images takes their place, and the other halves are measured.
        features: "effnet" (EfficientNet-Lite0, ImageNet), a function from images (B, C, H, W) in
            [0, 1], on the model's device, to features (B, D), or None to measure states and cost
            only.
        cache_dir: folder for generated images, so that an interrupted evaluation can be resumed;
            evaluations of other plans on the same noise samples share it.
        report: called with a `Progress` at each stage.

    Returns:
        The record, JSON-serialisable. Lists of two numbers are 95 % bootstrap intervals over
            images. "conditions": model, plan, refiner, guidance, seeds, dtype, device, versions,
            features, real images. "evaluations" by kind, and "flops", floating point operations of
            an image. "reference": evaluations of the reference solution, and its own "error" to
            one of twice the steps. "trajectory": root mean square and median over images, in units
            of the state. "perceptual": the same for distances of features, and of "random_pairs".
            "frechet": "to_reference", between the plan's images and the reference images of the
            same noise samples; of the "plan" and of the "reference" to the real images; their
            "relative" difference. "inception_score", "precision", "recall", "agreement": of the
            "plan" and of the "reference". "official": what ``fid`` asks for, of both. "latency":
            milliseconds of 8 images, not compiled.

    Raises:
        ValueError: if an argument is invalid, the images are not finite, or ``cache_dir`` is in use
            or holds an evaluation of other noise samples or another field.
        ImportError: without the extra ``flowturbo[eval]``, or ``flowturbo[fid]`` where needed.
        OSError: if the disk is full; images generated until then stay in ``cache_dir``.

    Warns:
        UserWarning: if a file in ``cache_dir`` is damaged; its images are generated again.
    """
    _check_model(model)
    cache_dir = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    real_images = None if real_images is None else checks.path("real_images", real_images)
    _check_real(features, real_images, config.fid)
    used = _resolved(model, plan, refiner, config.guidance)
    plan, refiner, guidance = used.plan, used.refiner, used.guidance
    network = EffNetFeatures(model.device) if features == "effnet" else features
    if network is not None and not callable(network):
        raise ValueError(
            f"features={checks.shown(features)}: must be 'effnet', a function, or None"
        )
    known, real, seen = _inspected(model, network, real_images, config)
    cond = _condition(model, prompts, config)
    options = _options(model, cond, guidance, config) | known
    key, name = _cache_key(model, plan, refiner, cond, options, seen, cache_dir is not None)
    cache = ImageCache(cache_dir, key, config.batch, report)
    sets = ImageSets(model, guidance, cond, network, cache, config, report)
    with nullcontext() if cache_dir is None else exclusive(cache_dir):
        first = noise.draw([config.seed], model.shape, device=model.device)
        about = {
            **options, **conditions(model, refiner, first), "plan": plan.name,
            "digest": plan.digest, "seeds": [config.seed, config.seed + config.num_images - 1],
            "batch": config.batch, "real_images": None if real is None else real.about,
        }  # fmt: skip
        return {"conditions": about, **_measured(sets, plan, refiner, name, real)}


def _measured(
    sets: ImageSets, plan: Plan, refiner: Refiner | None, name: str, real: Real | None
) -> JsonObject:
    """All parts of the record but its conditions."""
    config, exact = sets.config, fine(sets.config.steps)
    record: JsonObject = {
        "evaluations": plan.nfe,
        **sets.cost(plan, refiner),
        "reference": {"evaluations": exact.nfe["model"], "error": sets.reference_error()},
    }
    reference = sets.generate("converged", exact, None, "reference images")
    made = sets.generate(name, plan, refiner, f"images of {plan.name}")
    both = (made["states"].split(config.batch), reference["states"].split(config.batch))
    errors = torch.cat([error(a, b) for a, b in zip(*both, strict=True)])
    record["trajectory"] = summary(errors.numpy())
    if sets.network is not None:
        features = (made["features"], reference["features"])
        record |= compare(
            *features,
            None if real is None else sets.real_features(real),
            probabilities=getattr(sets.network, "probabilities", None),
            resamples=config.resamples,
            device=sets.model.device,
            report=sets.report,
        )
        prompts = sets.prompt_features(exact, config.agreement)
        if prompts is not None:
            record["agreement"] = agreement_of(*features, *prompts)
    if config.fid and real is not None and real.images is not None:
        record["official"] = _official(sets, {"plan": made, "reference": reference}, real.images)
    return record


def _official(sets: ImageSets, made: dict[str, Chunk], real: Tensor) -> JsonObject:
    found = {}
    for i, (name, rows) in enumerate(made.items()):
        images = sets.to_uint8(rows["states"])
        found[name] = official_scores(
            images, real, batch=sets.config.batch, device=sets.model.device
        )
        if sets.report:
            sets.report(Progress("official scores", i + 1, len(made)))
    return found


def _check_model(model: object) -> None:
    if not isinstance(model, Model):
        raise ValueError(
            f"model of type {type(model).__name__}: must be one of flowturbo.load; give a field of "
            "your own a card: flowturbo.Model(field, {'name': ...})"
        )
    if not hasattr(model, "shape"):
        raise ValueError(
            f"model {model.name!r}: its network has no shape; give it one, (C, H, W) of its states"
        )


def _check_real(features: object, real_images: Path | None, fid: bool) -> None:
    if features is None and real_images is not None and not fid:
        raise ValueError(
            f"features=None, real_images={str(real_images)!r}: nothing to compare them by; leave "
            "one out"
        )
    if fid:
        check_installed()
        if real_images is None:
            raise ValueError(
                "fid=True, real_images=None: FID is a distance to them; pass real_images=..., a "
                "folder or an .npz file of them"
            )


def _resolved(
    model: Model, plan: Plan | str | None, refiner: Refiner | None, guidance: float | None
) -> Resolved:
    """The plan, its guidance and refiner, which must fit together."""
    used = resolve(model, plan, guidance, refiner)
    check_whole(used.plan)
    if used.refiner is not None:
        check_refiner(used.plan, used.refiner, used.guidance)
    return used


def _inspected(
    model: Model, network: Features | None, real_images: Path | None, config: EvaluateConfig
) -> tuple[dict[str, str | None], Real | None, str | None]:
    """The codec and the features by name, the real images, and a signature of the features."""
    known: dict[str, str | None] = {"codec": None, "features": None}
    if network is None and not config.fid:
        return known, None, None
    x = noise.draw([config.seed, config.seed + 1], model.shape, device=model.device)
    try:
        images = model.decode(x)
    except ValueError as e:
        raise ValueError(
            f"{e}; to measure states and cost alone, pass features=None and no fid"
        ) from e
    real, seen = None, None
    if real_images is not None:
        real = load_real(real_images, images.shape[1:], need_images=config.fid)
    known["codec"] = model.codec.fingerprint
    if network is not None:
        known["features"], seen = check_features(network, images, real)
    return known, real, seen


def _cache_key(
    model: Model,
    plan: Plan,
    refiner: Refiner | None,
    cond: Condition,
    options: JsonObject,
    seen: str | None,
    kept: bool,
) -> tuple[JsonObject, str]:
    """What all images of a cache depend on, and the name of the plan's images in it."""
    key, name = {**options, "pictures": options["images"]}, f"plan-{plan.digest}"
    del key["images"]  # the key is part of the format on disk
    if kept:
        seeds, guidance = range(options["seed"], options["seed"] + 8), options["guidance"]
        x0 = noise.draw(seeds, model.shape, device=model.device)
        some = slice_condition(cond, slice(0, 8))
        key |= {"field": identity(model, x0, some, guidance=guidance), "seen": seen}
        if refiner is not None:
            name += f"-{refiner_identity(refiner, model, x0, some, guidance=guidance)}"
    return key, name


def _condition(
    model: Model, prompts: Sequence[str | int] | None, config: EvaluateConfig
) -> Condition:
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r}: pass a list of them, [{prompts!r}]")
    if prompts is not None:
        if not isinstance(prompts, (list, tuple)):
            raise ValueError(f"prompts={checks.shown(prompts)}: must be a list of them, or None")
        if not prompts:
            raise ValueError("prompts=[]: give at least one, or None to sample them from the card")
        return model.condition([prompts[i % len(prompts)] for i in range(config.num_images)])
    if model.conditioning and not model.names:
        raise ValueError(
            f"prompts=None: the card of model {model.name!r} lists none; pass some, or list them "
            'under "labels" or "prompts" of its "condition"'
        )
    return model.random_condition(config.num_images, torch.Generator().manual_seed(config.seed))


def _options(model: Model, cond: Condition, guidance: float, config: EvaluateConfig) -> JsonObject:
    """What the generated images depend on, apart from the plan."""
    return {
        "model": model.fingerprint, "dtype": str(model.dtype), "device": model.device.type,
        "images": config.num_images, "prompts": None if cond is None else digest(cond),
        "guidance": guidance, "seed": config.seed, "steps": config.steps,
    }  # fmt: skip
