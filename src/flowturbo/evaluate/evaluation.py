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
  a plan loses the model's agreement with prompts, not whether the model is right;
- evaluations by kind, passes of the network, floating point operations and milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.config import configured
from flowturbo.digests import content
from flowturbo.evaluate.compare import agreement as agreement_of
from flowturbo.evaluate.compare import compare
from flowturbo.evaluate.config import EvaluateConfig
from flowturbo.evaluate.error_profile import check_whole
from flowturbo.evaluate.features import Features, check_features, features_network
from flowturbo.evaluate.fidelity import official_scores
from flowturbo.evaluate.image_cache import ImageCache
from flowturbo.evaluate.image_sets import ImageSets
from flowturbo.evaluate.inputs import Inputs, inputs
from flowturbo.evaluate.real import Real, digest, load_real
from flowturbo.field import Field, fingerprint_of
from flowturbo.files import exclusive
from flowturbo.models.model import Model
from flowturbo.plan import Plan, as_plan
from flowturbo.progress import Progress, Report
from flowturbo.provenance import conditions, identity, refiner_identity
from flowturbo.refiner.binding import Refiner, check_refiner, needed_refiner
from flowturbo.refiner.resolve import Resolved, default_guidance, resolve
from flowturbo.stats import summary
from flowturbo.stores import Chunk
from flowturbo.tuning.initial_states import check_eval_mode, check_field
from flowturbo.tuning.reference import error, fine
from flowturbo.types import Condition, JsonObject

__all__ = ["EvaluateConfig", "evaluate"]


@configured(EvaluateConfig)
@torch.no_grad()
def evaluate(
    model: Field,
    plan: Plan | str | None = None,
    *,
    config: EvaluateConfig,
    noise: Tensor | None = None,
    cond: Condition = None,
    prompts: Sequence[str | int] | None = None,
    refiner: Refiner | None = None,
    real_images: str | Path | None = None,
    features: Features | str | None = "auto",
    cache_dir: str | Path | None = None,
    report: Report | None = None,
) -> JsonObject:
    """Compare the images of ``plan`` with the reference solution of the same noise samples.

    The fields of `EvaluateConfig` are keywords too: ``evaluate(model, plan, num_images=1000)``.

    Args:
        model: from `flowturbo.load`, a `flowturbo.Model` of a network of your own, or any field
            ``(x, t, cond) -> v``, whose states and cost are measured.
        plan: a plan, its notation, or the name of one of ``model.plans``; by default the card's.
        config: what to measure, and on how many images.
        noise: noise samples to use instead of those of the seeds, (N, ...), at least 10; a field
            without a ``shape`` needs them.
        cond: the conditions of the images, tensors or arrays with a row for each.
        prompts: labels or prompts of the images, repeated in order, instead of ``cond``; by default
            sampled evenly from the card (`Model.random_condition`).
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        real_images: what `flowturbo.training.load_data` reads, resized to the model's images, or
            an ``.npz`` file with their "features" (M, D). By default a random half of the reference
            images is used instead, and the other halves are measured.
        features: "effnet" (EfficientNet-Lite0, ImageNet), a function from images (B, C, H, W) in
            [0, 1], on the model's device, to features (B, D), or None to measure states and cost
            only; "auto" is "effnet" for a `Model` and None for another field.
        cache_dir: folder for generated images, so that an interrupted evaluation can be resumed;
            evaluations of other plans on the same noise samples share it.
        report: called with a `Progress` at each stage.

    Returns:
        The record, JSON-serialisable. Lists of two numbers are 95 % bootstrap intervals over
            images. "conditions": model, plan, refiner, guidance, seeds, dtype, device, versions,
            features, real images. "evaluations" by kind, "passes" of the network and "flops",
            floating point operations, per image. "reference": evaluations and passes of the
            reference solution, and its own "error" to one of twice the steps. "trajectory": root
            mean square and median over images, in units of the state. "perceptual": the same for
            distances of features, and of "random_pairs".
            "frechet": "to_reference", between the plan's images and the reference images of the
            same noise samples; of the "plan" and of the "reference" to the real images; their
            "relative" difference. "inception_score", "precision", "recall", "agreement": of the
            "plan" and of the "reference". "official": the scores that ``fid`` requests, of both.
            "latency": milliseconds for 8 images, not compiled.

    Raises:
        ValueError: if an argument is invalid, the images are not finite, or ``cache_dir`` is in use
            or holds an evaluation of other noise samples or another field.
        ImportError: without the extra ``flowturbo[eval]``, or ``flowturbo[fid]`` where needed.
        OSError: if the disk is full; images generated until then stay in ``cache_dir``.

    Warns:
        UserWarning: if a file in ``cache_dir`` is damaged; its images are generated again.
    """
    check_field("model", model)
    check_eval_mode("model", model)
    cache_dir = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    real_images = None if real_images is None else checks.path("real_images", real_images)
    network = features_network(model, features, real_images, config.fid)
    used = _resolved(model, plan, refiner, config.guidance)
    plan, refiner, guidance = used.plan, used.refiner, used.guidance
    given = inputs(model, noise, cond, prompts, config)
    known, real, seen = _inspected(model, given, network, real_images, config)
    options = _options(model, given, guidance, config) | known
    key, name = _cache_key(model, plan, refiner, given, options, seen, cache_dir is not None)
    cache = ImageCache(cache_dir, key, config.batch, report)
    sets = ImageSets(model, guidance, given, network, cache, config, report)
    with nullcontext() if cache_dir is None else exclusive(cache_dir):
        last = None if noise is not None else config.seed + given.count - 1
        about = {
            "noise": None, **options, **conditions(model, refiner, given.states(slice(0, 1))),
            "fingerprint": fingerprint_of(model), "plan": plan.name, "digest": plan.digest,
            "seeds": None if last is None else [config.seed, last],
            "batch": config.batch, "real_images": None if real is None else real.about,
        }  # fmt: skip
        return {"conditions": about, **_measured(sets, plan, refiner, name, real)}


def _measured(
    sets: ImageSets, plan: Plan, refiner: Refiner | None, name: str, real: Real | None
) -> JsonObject:
    """All parts of the record except its conditions."""
    config, exact = sets.config, fine(sets.config.steps)
    record: JsonObject = {
        "evaluations": plan.nfe,
        "passes": plan.passes(sets.guidance),
        **sets.cost(plan, refiner),
        "reference": {
            "evaluations": exact.nfe["model"],
            "passes": exact.passes(sets.guidance),
            "error": sets.reference_error(),
        },
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
            device=sets.inputs.device,
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
            images, real, batch=sets.config.batch, device=sets.inputs.device
        )
        if sets.report:
            sets.report(Progress("official scores", i + 1, len(made)))
    return found


def _resolved(
    model: Field, plan: Plan | str | None, refiner: Refiner | None, guidance: float | None
) -> Resolved:
    """The plan, its guidance and refiner, which must fit together."""
    if isinstance(model, Model):
        used = resolve(model, plan, guidance, refiner)
    elif plan is None:
        raise ValueError(
            "plan=None: a field without a card has no default plan; pass one ('AB2:8')"
        )
    else:
        table = as_plan(plan)
        used = Resolved(table, default_guidance(model, guidance), needed_refiner(table, refiner))
    check_whole(used.plan)
    if used.refiner is not None:
        check_refiner(used.plan, used.refiner, used.guidance)
    return used


def _inspected(
    model: Field,
    given: Inputs,
    network: Features | None,
    real_images: Path | None,
    config: EvaluateConfig,
) -> tuple[dict[str, str | None], Real | None, str | None]:
    """The codec and the features by name, the real images, and a signature of the features."""
    known: dict[str, str | None] = {"codec": None, "features": None}
    if not isinstance(model, Model) or (network is None and not config.fid):
        return known, None, None
    try:
        images = model.decode(given.states(slice(0, 2)))
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
    model: Field,
    plan: Plan,
    refiner: Refiner | None,
    given: Inputs,
    options: JsonObject,
    seen: str | None,
    kept: bool,
) -> tuple[JsonObject, str]:
    """Everything that all images of a cache depend on, and the name of the plan's images in it."""
    key, name = {**options, "pictures": options["images"]}, f"plan-{plan.digest}"
    del key["images"]  # the key is part of the format on disk
    if kept:
        few, guidance = slice(0, 8), options["guidance"]
        some = given.states(few), given.conditions(few)
        key |= {"field": identity(model, *some, guidance=guidance), "seen": seen}
        if refiner is not None:
            name += f"-{refiner_identity(refiner, model, *some, guidance=guidance)}"
    return key, name


def _options(model: Field, given: Inputs, guidance: float, config: EvaluateConfig) -> JsonObject:
    """What the generated images depend on, apart from the plan."""
    dtype = getattr(model, "dtype", given.states(slice(0, 1)).dtype)
    noise = {} if given.noise is None else {"noise": content(given.noise)}
    return {
        "model": fingerprint_of(model), "dtype": str(dtype), "device": given.device.type,
        "images": given.count, "prompts": None if given.cond is None else digest(given.cond),
        "guidance": guidance, "seed": config.seed, "steps": config.steps, **noise,
    }  # fmt: skip
