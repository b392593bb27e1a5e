"""Wrong calls of the public functions: each is refused in one line, before anything is done.

The line names the argument and its value. A call is refused by `ValueError` alone; what Python
itself refuses (an argument that is missing) and what a disk refuses keep their own errors.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowturbo as ft
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import VelocityRefiner
from flowturbo.sampling_checks import NotFinite


def network(**options):
    torch.manual_seed(0)
    made = SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2, **options))
    for p in made.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return made.eval().requires_grad_(False)


class Rows:
    """A field of conditions of a row per image; the null condition is 0."""

    def __call__(self, x, t, cond):
        return cond.reshape(len(x), -1).sum(1).reshape(-1, *[1] * (x.ndim - 1)) * x

    def null_condition(self, cond):
        return torch.zeros_like(cond)


def field(x, t, cond):
    return -x


def labelled():
    about = {"kind": "class", "labels": list("abcde")}
    card = {"name": "letters", "condition": about, "defaults": {"plan": "E1"}}
    return Model(network(classes=5), card)


@cache
def sampler(model, **options):
    return ft.compile(model, "E1", scope="none", **options)


MODEL, WORDS, ROWS = labelled(), network(vocabulary=9, text_length=4), Rows()
X, COND = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
FLAT, ONES = torch.randn(3, 2), torch.ones(3)
PLAN = ft.Plan.parse("AB2:4")
AUTOENCODER = AutoencoderTiny(
    latent_channels=1, encoder_block_out_channels=(4,), decoder_block_out_channels=(4,),
    num_encoder_blocks=(1,), num_decoder_blocks=(1,),
)  # fmt: skip
NAN = float("nan")
NAMES = {
    "ft": ft, "np": np, "torch": torch, "Path": Path, "noise": ft.noise, "P": ft.Plan, "NAN": NAN,
    "field": field, "m": MODEL, "words": WORDS, "rows": ROWS, "x": X, "c": COND, "flat": FLAT,
    "ones": ONES, "plan": PLAN, "back": ft.Plan.euler(2, direction="backward"),
    "fast": VelocityRefiner.from_model(MODEL), "small": VelocityRefiner.small((1, 8, 8), classes=6),
    "compiled": lambda *a, **b: sampler(MODEL, batch=(1, 2), guidance=2.0)(*a, **b),
    "plain": lambda *a, **b: sampler(field, batch=2, shape=(2,))(*a, **b),
    "ids": torch.zeros(2, 4, dtype=torch.long), "on_step": lambda step: None,
    "AUTOENCODER": AUTOENCODER, "without": lambda x, t: x,
    "latest": lambda x, t, cond, history: history[-1][1],
}  # fmt: skip

CALLS = """
ft.sample(None, field, flat) | plan=None
ft.sample([], field, flat) | plan=[]
ft.sample(["E2"], field, flat) | plan=['E2']
ft.sample(2, field, flat) | plan=2
ft.sample("", field, flat) | plan ''
ft.sample("hello", field, flat) | plan 'hello'
ft.sample("plan.json", field, flat) | plan='plan.json': cannot read plan.json: No such file
ft.sample(Path("plan.json"), field, flat) | cannot read plan.json
ft.sample("E1R1", field, flat) | plan 'E1R1' has 2 refiner evaluations, and refiner=None
ft.sample("E2", None, flat) | model=None
ft.sample("E2", "digits", flat) | model='digits': must be a function (x, t, cond); pass flowturbo.load('digits')
ft.sample("E2", 3, flat) | model=3
ft.sample("E2", dict, flat) | model=<class 'dict'>: must be a function (x, t, cond); pass an instance
ft.sample("E2", without, flat) | model=<function <lambda>>: is called as (x, t, cond), and takes (x, t)
ft.sample("E2", field, None) | x=None
ft.sample("E2", field, flat.numpy()) | x=<array (3, 2) of float32>: must be a tensor (B, ...); pass torch.as_tensor(x)
ft.sample("E2", field, [[1.0, 2.0]]) | x=[[1.0, 2.0]]
ft.sample("E2", field, torch.tensor(1.0)) | x=tensor(1.)
ft.sample("E2", field, flat.int()) | x=<tensor (3, 2) of torch.int32>
ft.sample("E2", field, flat.bool()) | x=<tensor (3, 2) of torch.bool>
ft.sample("E2", field, flat.to(torch.complex64)) | x=<tensor (3, 2) of torch.complex64>
ft.sample("E2", field, flat.to(torch.float8_e4m3fn)) | x=<tensor (3, 2) of torch.float8_e4m3fn>
ft.sample("E2", field, flat.to_sparse()) | x=<tensor (3, 2) of torch.float32>: must be a dense tensor
ft.sample("E2", field, flat * NAN) | x=<tensor (3, 2) of torch.float32>: must be finite
ft.sample("E2", field, flat / 0) | x=<tensor (3, 2) of torch.float32>: must be finite
ft.sample("E2", m, x[:, :, :4]) | x=<tensor (2, 1, 4, 8) of torch.float32>: must be a tensor (B, 1, 8, 8)
ft.sample("E2", m, x[0], c) | x=<tensor (1, 8, 8)
ft.sample("E2", m, x.expand(2, 3, 8, 8), c) | x=<tensor (2, 3, 8, 8)
ft.sample("E2", m, x.to("meta"), c) | x=<tensor (2, 1, 8, 8) of torch.float32 on meta>
ft.sample("E2", m, x, c[:1]) | cond=<tensor (1,) of torch.int64>: must be a tensor (2,) of class indices from 0 to 5
ft.sample("E2", m, x[:1], c) | cond=<tensor (2,)
ft.sample("E2", m, x, c[:, None]) | cond=<tensor (2, 1)
ft.sample("E2", m, x, c.float()) | cond=<tensor (2,) of torch.float32>
ft.sample("E2", m, x, c + 50) | cond=<tensor (2,) of torch.int64>: holds 53
ft.sample("E2", m, x, c - 50) | cond=<tensor (2,) of torch.int64>: holds -50
ft.sample("E2", m, x, c.to("meta")) | cond=<tensor (2,) of torch.int64 on meta>
ft.sample("E2", m, x, [1, 2]) | cond=[1, 2]
ft.sample("E2", m, x, [1, 2], guidance=2.0) | cond=[1, 2]
ft.sample("E2", m, x, ["a", "b"]) | cond=['a', 'b']: must be a tensor (2,) of class indices from 0 to 5, as model.condition([...]) makes it
ft.sample("E2", m, x, "a") | cond='a'
ft.sample("E2", m, x, 1) | cond=1
ft.sample("E2", m, x, c.numpy()) | cond=<array (2,) of int64>
ft.sample("E2", m, x, None, guidance=2.0) | cond=None
ft.sample("E2", words, x, ids[:, :3]) | cond=<tensor (2, 3) of torch.int64>: must be a tensor (2, 4) of token ids from 0 to 8
ft.sample("E2", words, x, ids + 9) | holds 9
ft.sample("E2", words, x, c) | cond=<tensor (2,)
ft.sample("E2", rows, flat, [1, 2, 3], guidance=2.0) | cond=[1, 2, 3]: guidance joins two conditions
ft.sample("E2", rows, flat, ones[:2], guidance=2.0) | cond=<tensor (2,) of torch.float32>
ft.sample("E2", rows, flat, (ones, ones[:1]), guidance=2.0) | cond=<tensor (1,)
ft.sample("E2", rows, flat, {"y": ones}, guidance=2.0) | cond={'y': <tensor (3,) of torch.float32>}
ft.sample("E2", rows, flat, ones.numpy(), guidance=2.0) | cond=<array (3,) of float32>
ft.sample("E2", rows, flat, "cat", guidance=2.0) | cond='cat'
ft.sample("E2", field, flat, torch.ones(3, device="meta")) | cond=<tensor (3,) of torch.float32 on meta>, x=<tensor (3, 2) of torch.float32>: cond holds no values
ft.sample("E2", field, flat, {"y": (torch.ones(3, device="meta"),)}) | holds no values
ft.sample("E2", field, flat, ones, guidance=2.0) | guidance=2.0 needs the condition of the unconditional branch
ft.sample("E2", m, x, c, guidance=None) | guidance=None
ft.sample("E2", m, x, c, guidance="2") | guidance='2'
ft.sample("E2", m, x, c, guidance=True) | guidance=True
ft.sample("E2", m, x, c, guidance=[1, 2]) | guidance=[1, 2]
ft.sample("E2", m, x, c, guidance=(1, 4)) | guidance=(1, 4)
ft.sample("E2", m, x, c, guidance=np.ones(2)) | guidance=<array (2,) of float64>
ft.sample("E2", m, x, c, guidance=2j) | guidance=2j
ft.sample("E2", m, x, c, guidance=NAN) | guidance=nan
ft.sample("E2", m, x, c, guidance=10**400) | guidance=<number of 1329 bits>
ft.sample("E2", m, x, c, guidance=torch.ones(8, 1)) | guidance=<tensor (8, 1) of torch.float32>
ft.sample("E2", m, x, c, guidance=torch.ones(1, 8)) | guidance=<tensor (1, 8) of torch.float32>
ft.sample("E2", m, x, c, guidance=torch.ones(2, 1)) | guidance=<tensor (2, 1) of torch.float32>
ft.sample("E2", m, x, c, guidance=torch.ones(1, 2)) | guidance=<tensor (1, 2) of torch.float32>
ft.sample("E2", m, x, c, guidance=torch.ones(3)) | guidance=<tensor (3,) of torch.float32>: must be one number, or one per image, and there are 2
ft.sample("E2", m, x, c, guidance=torch.ones(0)) | guidance=<tensor (0,)
ft.sample("E2", m, x, c, guidance=torch.tensor([1.0, NAN])) | guidance=[1.0, nan]
ft.sample("E2", m, x, c, guidance=torch.ones(2) * 1j) | guidance=<tensor (2,) of torch.complex64>
ft.sample("E2", m, x, c, guidance=torch.ones(2, dtype=torch.bool)) | guidance=<tensor (2,) of torch.bool>
ft.sample("E2", m, x, c, guidance=torch.ones(2, device="meta")) | guidance=<tensor (2,) of torch.float32 on meta>
ft.sample("E2", ft.Guidance(m, 2.0), x, c, guidance=3.0) | guidance=3.0: the field is guided already, at 2.0
ft.sample("E2", ft.CountCalls(ft.Guidance(m, 2.0)), x, c, guidance=3.0) | guided already
ft.sample("E2", m, x, c, guidance=2.0, negative="a") | negative='a'
ft.sample("E2", m, x, c, guidance=2.0, negative=c + 9) | negative=<tensor (2,) of torch.int64>: holds 12
ft.sample("E2", m, x, c, guidance=2.0, negative=torch.cat([c, c])) | negative=<tensor (4,)
ft.sample("E2", rows, flat, ones, guidance=2.0, negative=ones[:2]) | the null (negative) condition is <tensor (2,)
ft.sample("E2", rows, flat, ones, guidance=2.0, negative=0) | the null (negative) condition is 0
ft.sample("E2", rows, flat, (ones,), guidance=2.0, negative=(ones, ones)) | it must be alike
ft.sample("E2", field, flat, refiner=3) | refiner=3
ft.sample("E1R1", field, flat, refiner="digits") | refiner='digits': must be a function (x, t, cond, history); pass flowturbo.load_refiner('digits')
ft.sample("E1R1", field, flat, refiner=field) | refiner=<function field>: is called as (x, t, cond, history), and takes (x, t, cond)
ft.sample("E1R1", m, x, c, refiner=lambda x, t, cond, history: x[:1]) | the refiner returned <tensor (1, 1, 8, 8) of torch.float32> at t=0.5
ft.sample("H1R1", field, flat, refiner=fast) | refiner <VelocityRefiner> is called with x=<tensor (3, 2)
ft.sample("H1R1", field, torch.cat([x, x], 1), refiner=small) | refiner <VelocityRefiner> is called with x=<tensor (2, 2, 8, 8)
ft.sample("H1R1", field, x, c + 9, refiner=small) | cond=<tensor (2,) of torch.int64>: holds 12
ft.sample("H1R1", m, x, c, refiner=fast, guidance=3.0) | guidance=3.0: this refiner was made for 1; use such a scale
ft.sample("E1R1", m, x, c, refiner=fast) | plan 'E1R1'
ft.sample("E2", field, flat, callback=3) | callback=3
ft.sample("E2", field, flat, callback=lambda: None) | callback=<function <lambda>>: is called as (step), and takes ()
ft.sample("E2", field, flat, callback=lambda s: 3) | the callback returned 3 at t=0.5
ft.sample("E2", field, flat, callback=lambda s: s.x.numpy()) | the callback returned <array (3, 2) of float32> at t=0.5
ft.sample("E2", field, flat, callback=lambda s: s.x[:1]) | the callback returned <tensor (1, 2)
ft.sample("E2", field, flat, callback=lambda s: s.x * NAN) | the callback returned NaN or infinity at t=0.5
ft.sample("E2", field, flat, differentiable="no") | differentiable='no'
ft.sample("E2", field, flat, guidence=2) | sample(guidence=2): has no argument 'guidence'; did you mean 'guidance'?
ft.sample("E2", lambda x, t, cond: None, flat) | the model returned None at t=0
ft.sample("E2", lambda x, t, cond: (x,), flat) | the model returned (<tensor (3, 2) of torch.float32>,) at t=0
ft.sample("E2", lambda x, t, cond: 0.0, flat) | the model returned 0.0 at t=0
ft.sample("E2", lambda x, t, cond: x.numpy(), flat) | the model returned <array (3, 2) of float32> at t=0
ft.sample("E2", lambda x, t, cond: x if t < 0.5 else x[:1], flat) | the model returned <tensor (1, 2) of torch.float32> at t=0.5
ft.sample("E2", lambda x, t, cond: x.int(), flat) | the model returned <tensor (3, 2) of torch.int32>
ft.sample("E2", lambda x, t, cond: x * 1j, flat) | the model returned <tensor (3, 2) of torch.complex64>
ft.sample("E2", lambda x, t, cond: x.to("meta"), flat) | the model returned <tensor (3, 2) of torch.float32 on meta>
ft.sample("H1", lambda x, t, cond: x / (1 - t), flat) | the model returned NaN or infinity at t=1, in plan 'H1'
ft.sample("E2", lambda x, t, cond: x / t, flat) | limit what it divides by, t.clamp(min=0.05) for example
ft.tune(lambda x, t, cond: x / t, noise=torch.randn(64, 2)) | limit what it divides by, t.clamp(min=0.05) for example
ft.Model(field, {"name": "mine"}) | network=<function field>: must be a torch.nn.Module (x, t, cond) -> v
ft.tune(without, noise=flat) | model=<function <lambda>>: is called as (x, t, cond), and takes (x, t)
ft.sample("E2", field, flat, ones, guidance=2.0) | pass negative=... to flowturbo.sample or null=... to flowturbo.Guidance
ft.sample("E2", rows, flat, torch.full((3,), 1e38), guidance=1e30) | the model returned NaN or infinity at t=0
ft.sample("E2", lambda x, t, cond: x[:3], flat, ones, guidance=2.0, negative=ones) | the field returned (3, 2) for (6, 2), both branches of guidance
ft.generate("letters", ["a"]) | model='letters': must be a model; pass flowturbo.load('letters')
ft.generate(None, ["a"]) | model=None
ft.sample("E2", AUTOENCODER, flat) | model=AutoencoderTiny: diffusers calls it with other arguments than (x, t, cond); wrap the network as a field
ft.generate(field, ["a"]) | model=<function field>: must be a model; pass flowturbo.load(...), or run a field of your own with flowturbo.sample
ft.generate(words, ["a"]) | model=<SiT>
ft.generate(m, "a") | prompts='a': pass a list of them, ['a']
ft.generate(m, None) | prompts=None
ft.generate(m, 1) | prompts=1
ft.generate(m, {"a": 1}) | prompts={'a': 1}
ft.generate(m, {"a"}) | prompts={'a'}
ft.generate(m, b"ab") | prompts=b'ab'
ft.generate(m, [None]) | prompts[0]=None
ft.generate(m, ["a", 1.5]) | prompts[1]=1.5
ft.generate(m, [True]) | prompts[0]=True
ft.generate(m, [["a"]]) | prompts[0]=['a']
ft.generate(m, ["f"]) | label 'f'
ft.generate(m, [5]) | label '5'
ft.generate(m, [-1]) | label '-1'
ft.generate(m, ["a"], plan=back) | plan 'E2' runs from t=1 to 0
ft.generate(m, ["a"], plan=plan.restrict(0.5)) | runs from t=0.5 to 1
ft.generate(m, ["a"], plan=P.euler(2, times=[0, 0.2, 0.5])) | runs from t=0 to 0.5
ft.generate(m, ["a"], plan=3) | plan=3
ft.generate(m, ["a"], plan=[]) | plan=[]
ft.generate(m, ["a"], plan="slow") | plan 'slow'
ft.generate(m, ["a"], plan="H1R1") | plan 'H1R1' has 2 refiner evaluations
ft.generate(m, ["a"], guidance="2") | guidance='2'
ft.generate(m, ["a"], guidance=[2.0]) | guidance=[2.0]
ft.generate(m, ["a"], guidance=NAN) | guidance=nan
ft.generate(m, ["a"], guidance=torch.ones(1)) | guidance=<tensor (1,)
ft.generate(m, ["a"], negative=["b"]) | negative=['b']
ft.generate(m, ["a"], negative=1.5) | negative=1.5
ft.generate(m, ["a"], guidance_channels=2) | guidance_channels=2
ft.generate(m, ["a"], guidance_channels="3") | guidance_channels='3'
ft.sample("E2", m, x, c, guidance=2.0, guidance_channels=1.5) | guidance_channels=1.5
ft.generate(m, ["a"], style="noto") | style 'noto'
ft.generate(m, ["a"], style=3) | style=3
ft.generate(m, ["a"], seed=1.5) | seed=1.5
ft.generate(m, ["a"], seed="0") | seed='0'
ft.generate(m, ["a"], seed=None) | seed=None
ft.generate(m, ["a"], seed=True) | seed=True
ft.generate(m, ["a"], seed=-1) | seed=-1
ft.generate(m, ["a"], seed=2**63) | seed=9223372036854775808: must be a whole number from 0 to 2**63 - 1
ft.generate(m, ["a", "b"], seed=2**63 - 1) | seed=9223372036854775807: must be a whole number from 0 to 2**63 - 2
ft.generate(m, ["a"], seed=[1]) | seed=[1]
ft.generate(m, ["a"], batch=0) | batch=0
ft.generate(m, ["a"], batch=1.5) | batch=1.5
ft.generate(m, ["a"], batch="4") | batch='4'
ft.generate(m, ["a"], refiner="digits") | refiner='digits'
ft.generate(m, ["a"], callback=3) | callback=3
ft.generate(m, ["a"], sede=3) | generate(sede=3): has no argument 'sede'; did you mean 'seed'?
ft.generate(m, ["a"], nfe=2.5) | generate(nfe=2.5): has no argument 'nfe'; it takes
ft.load("digit") | did you mean 'digits'
ft.load(None) | name=None
ft.load(3) | name=3
ft.load("") | name=''
ft.load("a" * 5000) | model 'aaa
ft.load("hf:one") | model 'hf:one'
ft.load("digits", device="gpu") | device='gpu': must be a device of PyTorch such as 'cpu', 'cuda' or 'cuda:0'; did you mean 'cuda'?
ft.load("digits", device="GPU:1") | did you mean 'cuda:1'?
ft.load("digits", device="cuda:99") | device='cuda:99': is not available here
ft.load("digits", device="meta") | device='meta'
ft.load("digits", device=None) | device=None
ft.load("digits", dtype=torch.int32) | dtype=torch.int32
ft.load("digits", dtype="float32") | dtype='float32'
ft.load("digits", dtype=None) | dtype=None
ft.load("digits", dtyp=torch.float32) | did you mean 'dtype'?
ft.load_refiner(None) | name=None
ft.load_refiner("nowhere") | 'nowhere'
ft.load_refiner("digits", "digits") | model='digits'
ft.load_refiner("digits", m) | made for 'digits'
ft.load_refiner("digits", ft.Cast(m, torch.float64)) | made for 'digits'
ft.load_refiner("digits", device="gpu") | device='gpu'
ft.load_refiner("digits", dtype=torch.int64) | dtype=torch.int64
ft.load_refiner("digits", modle=None) | did you mean 'model'?
P.parse(None) | plan None
P.parse(8) | plan 8
P.parse("E2", shift="a") | shift='a'
P.parse("E2", shift=0) | shift=0
P.parse("E2", shift=NAN) | shift=nan
P.parse("E2", shift=None) | shift=None
P.parse("E2", times=3) | times
P.parse("E2", times="abc") | times='abc'
P.parse("E2", times=[0, None, 1]) | times=[0, None, 1]
P.parse("E2", times=[0, [1], 1]) | times=[0, [1], 1]
P.parse("E2", times=[0, 1]) | 2 times for E2
P.parse("E2", direction="up") | direction='up'
P.parse("E2", direction=None) | direction=None
P.parse("E2", shfit=2) | did you mean 'shift'?
P.euler(2.5) | steps=2.5
P.euler("2") | steps='2'
P.euler(True) | steps=True
P.euler(None) | steps=None
P.euler(0) | steps=0
P.euler(10**9) | steps=1000000000
P.rk4(-1) | steps=-1
P.adams_bashforth(4, 2.5) | order=2.5
P.adams_bashforth(4, [2]) | order=[2]
P.adams_bashforth(4, 5) | order=5
P.adams_bashforth(4, 2, "fast") | starter='fast'
P.unipc(4, "2") | order='2'
P.dpm(2.5) | steps=2.5
P.blocks("H1P1", shipped=1) | shipped=1
P.blocks(["H1"]) | plan ['H1']
P.from_scheduler(None) | scheduler=None
P.from_scheduler("euler") | scheduler='euler'
plan.restrict("a") | t='a'
plan.restrict(None) | t=None
plan.restrict(NAN) | t=nan
plan.restrict(2) | t=2
plan.cost(model="a") | model='a'
plan.cost(refiner=-1.0) | refiner=-1.0
plan.seen_by(9) | k=9
plan.with_info(3) | info=3
P.from_json(None) | text=None
P.from_json("{") | plan: not JSON
P.load(None) | path=None
P.load("") | path=''
plan.save(3) | path=3
P(times=None, evaluators=["model"], weights=[[1]]) | times=None
P(times=[0, 1], evaluators=None, weights=[[1]]) | evaluators=None
P(times=[0, 1], evaluators=[["model"]], weights=[[1]]) | evaluators[0]=['model']
P(times=[0, 1], evaluators=["model"], weights=[["a"]]) | weights=[['a']]
P(times=[0, 1], evaluators=["model"], weights=[[1]], last_velocity=3) | last_velocity=3
P(times=[0, 1], evaluators=["model"], weights=[[1]], model_times="a") | model_times='a'
P(times=[0, 1], evaluators=["model"], weights=[[1]], name=3) | name=3
P(times=[0, 1], evaluators=["model"], weights=[[1]], inof={}) | did you mean 'info'?
m.condition("a") | prompts='a'
m.condition(None) | prompts=None
m.condition([1.5]) | prompts[0]=1.5
m.condition(["a"], device="cpu") | Model.condition(device='cpu'): has no argument 'device'
m.decode(None) | x=None
m.decode(x.numpy()) | x=<array (2, 1, 8, 8) of float32>
m.decode(x[0]) | x=<tensor (1, 8, 8)
m.decode(x.int()) | x=<tensor (2, 1, 8, 8) of torch.int32>
m.styled("a", "noto") | style 'noto'
m.styled(3, "noto") | prompt=3
m.styled("a", None) | style=None
m.null_condition(None) | cond=None
m.random_condition(2.5, torch.Generator()) | n=2.5
m.random_condition(2, None) | generator=None
m(x, 0.5, c + 9) | cond=<tensor (2,) of torch.int64>: holds 12
m(x, "a", c) | t='a'
m(x, 2.0, c) | t=2.0: must be from 0 (noise) to 1 (data)
m(x, torch.zeros(3), c) | t=<tensor (3,)
m(None, 0.5, c) | x=None
m(x[:, :, :4], 0.5, c) | x=<tensor (2, 1, 4, 8)
noise.draw(1.5, (2,)) | seed=1.5
noise.draw("3", (2,)) | seed='3'
noise.draw(None, (2,)) | seed=None
noise.draw([0, -1], (2,)) | seed=-1
noise.draw([2**63], (2,)) | seed=9223372036854775808
noise.draw(b"ab", (2,)) | seed=b'ab'
noise.draw([True], (2,)) | seed=True
noise.draw([0], 3) | shape=3: must be sizes such as (3, 32, 32); pass (3,)
noise.draw([0], None) | shape=None
noise.draw([0], "ab") | shape='ab'
noise.draw([0], (2.5,)) | shape[0]=2.5
noise.draw([0], (-1,)) | shape[0]=-1
noise.draw([0], (10**12, 10**12)) | shape=(1000000000000, 1000000000000)
noise.draw([0], (2,), dtype=torch.int32) | dtype=torch.int32
noise.draw([0], (2,), device="gpu") | device='gpu'
noise.draw([], (2,), device="meta") | device='meta'
noise.draw([0], (2,), divice="cpu") | did you mean 'device'?
noise.digest(None) | noise=None
ft.Guidance(None, 2.0) | field=None
ft.Guidance(rows, "2") | guidance='2'
ft.Guidance(rows, torch.ones(3, 1)) | guidance=<tensor (3, 1)
ft.Guidance(rows, torch.ones(2))(flat, 0.5, ones) | guidance=<tensor (2,) of torch.float32>
ft.Guidance(rows, 2.0, interval=3) | interval=3
ft.Guidance(rows, 2.0, interval=(0.7, 0.2)) | interval=(0.7, 0.2)
ft.Guidance(rows, 2.0, interval=(NAN, 1)) | interval=(nan, 1)
ft.Guidance(rows, 2.0, channels=1.5) | channels=1.5
ft.Guidance(rows, 2.0, channels=7)(flat, 0.5, ones) | channels=7
ft.Guidance(rows, 2.0, scael=3) | did you mean 'scale'?
ft.Guidance(rows, 2.0)(flat, "a", ones) | t='a'
ft.Guidance(rows, 2.0)(None, 0.5, ones) | x=None
ft.Guidance(rows, 2.0)(flat, 0.5, ones[:2]) | cond=<tensor (2,)
ft.Guidance(ft.Guidance(rows, 2.0), 2.0) | guided already
ft.Cast(field, "float16") | dtype='float16'
ft.Cast(field, torch.int32) | dtype=torch.int32
ft.Cast(None, torch.float32) | field=None
ft.CountCalls(3) | field=3
ft.compile(m, None) | plan=None
ft.compile("digits", "E1") | model='digits'
ft.compile(m, "H1R1") | refiner=None
ft.compile(m, "E1", 3) | refiner=3
ft.compile(m, "E1", batch=0) | batch=0
ft.compile(m, "E1", batch=2.5) | batch=2.5
ft.compile(m, "E1", batch=[]) | batch=[]
ft.compile(m, "E1", batch="8") | batch='8'
ft.compile(m, "E1", dtype=torch.int32) | dtype=torch.int32
ft.compile(m, "E1", guidance="2") | guidance='2'
ft.compile(ft.Guidance(m, torch.ones(2)), "E1") | guidance=<tensor (2,)
ft.compile(field, "E1") | shape=None
ft.compile(field, "E1", shape=3) | shape=3
ft.compile(m, "E1", shape=(1, 4, 4)) | x=<tensor (1, 1, 4, 4)
ft.compile(m, "E1", cond=[1]) | cond=[1]
ft.compile(m, "E1", cond=c + 9) | cond=<tensor (1,) of torch.int64>: holds 9
ft.compile(rows, "E1", shape=(2,), guidance=2.0) | cond
ft.compile(m, "E1", device="gpu") | device='gpu'
ft.compile(m, "E1", scope="rwo") | scope='rwo': must be one of 'plan', 'row', 'network', 'none'; did you mean 'row'?
ft.compile(m, "E1", capture="yes") | capture='yes'
ft.compile(m, "E1", scope="none", capture=True) | capture=True
ft.compile(m, "E1", scope="none", options=3) | options=3
ft.compile(m, "E1", scope="none", options={"freezng": True}) | options['freezng']=True: inductor has no such option; did you mean 'freezing'?
ft.compile(m, "E1", bach=2) | did you mean 'batch'?
compiled(None, c) | x=None
compiled(x.numpy(), c) | x=<array
compiled(x[:, :, :4], c) | x=<tensor (2, 1, 4, 8)
compiled(x.int(), c) | x=<tensor (2, 1, 8, 8) of torch.int32>
compiled(x, c[:1]) | cond is (1,)
compiled(x, None) | cond is None
compiled(x, c + 9) | cond=<tensor (2,) of torch.int64>: holds 12
compiled(x, c, guidance="2") | guidance='2'
compiled(x, c, guidance=torch.ones(3)) | guidance=<tensor (3,)
compiled(x, c, guidance=torch.ones(2, 1)) | guidance=<tensor (2, 1)
compiled(x, c, negative="a") | negative is 'a'
compiled(x, c, negative=c + 9) | negative=<tensor (2,) of torch.int64>: holds 12
compiled(x, c, guidence=2) | did you mean 'guidance'?
plain(flat, guidance=2.0) | guidance=2.0: compiled without guidance
plain(flat, ones) | cond is <tensor (3,)
ft.export(None, m, "E1") | path=None
ft.export("a.txt", m, "E1") | path='a.txt'
ft.export("a.pt2", m, None) | plan=None
ft.export("a.pt2", m, "E1", batch=2.5) | batch=2.5
ft.export("a.pt2", m, "E1", device="gpu") | device='gpu'
ft.export("a.pt2", rows, "E1", shape=(2,), cond=(ones,)) | cond
ft.export("a.pt2", m, "E1", optoins={}) | did you mean 'options'?
ft.load_compiled(None) | path=None
ft.load_compiled("a.pt2", device="gpu") | device='gpu'
ft.load_compiled("a.pt2", fallback="digits") | fallback='digits': must be a function (x, t, cond); pass flowturbo.load('digits')
ft.load_compiled("a.pt2", falback=m) | did you mean 'fallback'?
"""  # noqa: E501
TABLE = [tuple(map(str.strip, line.split(" | "))) for line in CALLS.strip().splitlines()]


def test_the_table_is_there():
    assert len(TABLE) == len(set(TABLE)) >= 150


@pytest.mark.parametrize(("call", "told"), TABLE, ids=[call for call, _ in TABLE])
def test_a_wrong_call_is_refused_in_one_line(call, told, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception) as caught:
            eval(call, dict(NAMES))
    assert type(caught.value) in (ValueError, NotFinite)
    message = str(caught.value)
    assert told in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


# -- any value for any argument ---------------------------------------------------------------

CORE = {
    "sample": (ft.sample, dict(plan="E1", model=field, x=FLAT, cond=None, guidance=1.0,
               negative=None, refiner=None, callback=None, differentiable=False)),
    "sample, guided": (ft.sample, dict(plan="E1", model=ROWS, x=FLAT, cond=ONES,
                       guidance=2.0, negative=None)),
    "sample, a model": (ft.sample, dict(plan="E1", model=MODEL, x=X, cond=COND, guidance=2.0,
                        negative=None, guidance_channels=None)),
    "sample, a refiner": (ft.sample, dict(plan="H1R1", model=MODEL, x=X, cond=COND, guidance=1.0,
                          refiner=NAMES["fast"])),
    "generate": (ft.generate, dict(model=MODEL, prompts=["a", "b"], plan="E1", guidance=2.0,
                 negative=None, style=None, seed=0, refiner=None, batch=2, callback=None)),
    "load": (ft.load, dict(name="nowhere", device="cpu", dtype=torch.float32)),
    "load_refiner": (ft.load_refiner, dict(name="nowhere", model=None, device="cpu",
                     dtype=torch.float32)),
    "compile": (ft.compile, dict(model=MODEL, plan="E1", refiner=None, batch=2, dtype=None,
                guidance=2.0, shape=None, cond=None, device=None, scope="none", capture=None,
                options=None)),
    "a compiled sampler": (NAMES["compiled"], dict(x=X, cond=COND, guidance=2.0,
                           negative=None)),
    "load_compiled": (ft.load_compiled, dict(path="no.pt2", device="gpu", fallback=None)),
    "Plan": (ft.Plan, dict(times=[0, 1], evaluators=["model"], weights=[[1.0]], model_times=None,
             last_velocity=None, name="a", info={})),
    "Plan.parse": (ft.Plan.parse, dict(text="E2", shift=1.0, times=None, direction="forward")),
    "Plan.euler": (ft.Plan.euler, dict(steps=2, shift=1.0, times=None, direction="forward")),
    "Plan.adams_bashforth": (ft.Plan.adams_bashforth, dict(evaluations=9, order=2, start="low")),
    "Plan.unipc": (ft.Plan.unipc, dict(steps=4, order=2, shift=1.0, times=None)),
    "Plan.restrict": (PLAN.restrict, dict(t=0.5)),
    "Plan.cost": (PLAN.cost, dict(model=1.0, refiner=0.0, fixed=0.0)),
    "condition": (MODEL.condition, dict(prompts=["a"])),
    "decode": (MODEL.decode, dict(x=X)),
    "styled": (MODEL.styled, dict(prompt="a", style="b")),
    "a model": (MODEL, dict(x=X, t=0.5, cond=COND)),
    "noise.draw": (ft.noise.draw, dict(seeds=[0], shape=(2,), device="cpu", dtype=torch.float32)),
    "Guidance": (ft.Guidance, dict(field=ROWS, scale=2.0, null=None, interval=(0, 1),
                 channels=None)),
    "a guided field": (ft.Guidance(ROWS, 2.0), dict(x=FLAT, t=0.5, cond=ONES)),
    "Cast": (ft.Cast, dict(field=field, dtype=torch.float32)),
}  # fmt: skip
SHAPES = [(), (0,), (2,), (3,), (3, 2), (2, 1, 8, 8), (0, 1, 8, 8), (2, 1), (1, 2)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
DTYPES += [torch.complex64, torch.int32, torch.float8_e4m3fn]
TENSORS = st.builds(
    lambda shape, dtype, value, device: torch.full(shape, value).to(dtype).to(device),
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.0, 99.0, NAN, float("inf")]),
    st.sampled_from(["cpu", "cpu", "meta"]),
)
OTHERS = [
    object(), lambda *given: 0, dict, MODEL, PLAN, NAMES["back"], NAMES["fast"],
    ft.Guidance(MODEL, 2.0), b"a", 1j, {1}, range(2), Path("nowhere"), torch.float32, torch.int8,
    torch.device("cpu"), X.to_sparse(), X.clone().requires_grad_(),
    SimpleNamespace(shape=(1,)), "gpu", "cuda", "E3", "a", "\0", 10**400, -1, 2.5,
]  # fmt: skip
WHOLE = st.integers(-9, 9) | st.sampled_from([2**63, -(2**64), 10**30])
PLAIN = st.none() | st.booleans() | st.floats() | WHOLE | st.text(max_size=5)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.dictionaries(st.text(max_size=3), PLAIN, max_size=2),
    TENSORS,
    TENSORS.filter(lambda t: t.device.type == "cpu" and t.dtype in DTYPES[4:6]).map(
        lambda t: t.numpy()
    ),
    st.sampled_from([np.float32(0.5), np.int64(1), np.bool_(True), np.array(1.5), np.array(["a"])]),
    st.sampled_from(OTHERS),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([(name, argument) for name in CORE for argument in CORE[name][1]]), VALUES)
def test_any_value_gives_a_result_or_is_refused_in_one_line(tmp_path, monkeypatch, which, value):
    monkeypatch.chdir(tmp_path)
    name, argument = which
    function, usual = CORE[name]
    told = "a result"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**{**usual, argument: value})
        except ValueError as e:
            told = str(e)
        except OSError as e:  # of a file that is not there
            assert "path" in usual
            told = str(e)
    assert len(told.splitlines()) == 1
    assert len(told) < 600


# -- what is let through ----------------------------------------------------------------------


def test_no_images_come_of_none():
    """Everywhere the same: nothing is evaluated, and what comes out is empty."""
    counted = ft.CountCalls(MODEL)
    seen = []
    x, cond = X[:0], MODEL.condition([])
    for guidance in (1.0, 2.0, torch.ones(0)):
        out = ft.sample("AB2:4", counted, x, cond, guidance=guidance, callback=seen.append)
        assert out.shape == x.shape
    assert (counted.calls, seen) == (0, [])
    assert ft.noise.draw([], MODEL.shape).shape == x.shape
    assert NAMES["compiled"](x, cond).shape == x.shape
    assert MODEL.decode(x).shape == x.shape
    assert ft.generate(MODEL, []) == []


def test_numbers_of_numpy_are_numbers():
    draws = [ft.generate(MODEL, [k], seed=s, batch=b)[0].tobytes() for k, s, b in [
        (1, 3, 2), (np.int64(1), np.int32(3), np.uint8(2)), ("b", torch.tensor(3), 2)]]  # fmt: skip
    assert len(set(draws)) == 1
    for scale in (2, np.float32(2), np.float64(2), torch.tensor(2), torch.tensor([2, 2])):
        out = ft.sample("E2", MODEL, X, COND, guidance=scale)
        assert torch.allclose(out, ft.sample("E2", MODEL, X, COND, guidance=2.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_of_low_precision_are_summed_in_float32(dtype):
    steps = []
    out = ft.sample("E4", MODEL, X.to(dtype), COND, callback=lambda s: steps.append(s.x.dtype))
    assert out.dtype == dtype
    assert steps == [torch.float32] * 4
    assert torch.equal(out, ft.sample("E4", MODEL, X.to(dtype).float(), COND).to(dtype))


def test_a_state_that_requires_grad_is_sampled_without_a_graph():
    x = X.clone().requires_grad_()
    assert not ft.sample("E2", MODEL, x, COND).requires_grad
    assert ft.sample("E2", MODEL, x, COND, differentiable=True).requires_grad


def test_a_refiner_of_another_model_is_told(tmp_path):
    refiner = VelocityRefiner.from_model(MODEL)
    refiner.card = {"model": {"name": "other", "fingerprint": "0" * 16}}
    with pytest.warns(UserWarning, match=r"the refiner was made for 'other', weights 0+, not") as w:
        ft.sample("H1R1", MODEL, X, COND, refiner=refiner)
    assert Path(w[0].filename) == Path(__file__)  # the line of the call


def test_a_velocity_that_nothing_uses_may_be_infinite():
    """As that of a last evaluation that moves nothing."""
    still = ft.Plan(times=[0, 1, 1], evaluators=["model"] * 2, weights=[[1, 0], [0, 0]])
    out = ft.sample(still, lambda x, t, cond: x / (1 - t), FLAT)
    assert torch.equal(out, 2 * FLAT)


def test_checks_do_not_stand_in_the_way_of_tracing():
    """`flowturbo.sample` in `torch.compile`, `torch.export`, and under `torch.func`."""
    plan = ft.Plan.parse("H1P1")
    call = lambda x, cond: ft.sample(plan, MODEL.network, x, cond, guidance=2.0)
    expected = call(X, COND)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(X, COND), expected, atol=1e-6)
    module = torch.nn.Module()
    module.forward = call
    program = torch.export.export(module, (X, COND), strict=False)
    assert torch.allclose(program.module()(X, COND), expected, atol=1e-6)
    one = torch.func.vmap(lambda x: ft.sample(plan, field, x[None])[0])(FLAT)
    assert torch.allclose(one, ft.sample(plan, field, FLAT))
