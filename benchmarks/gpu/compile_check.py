"""Checks of the compiled sampler on a CUDA device; exits 1 if one fails.

    python benchmarks/gpu/compile_check.py --out benchmarks/records/gpu-compile.json

``--device cpu`` runs the checks that do not need CUDA, at a small size, to test the script itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import flowturbo as ft
from flowturbo.compiled.backend import Recompiled
from flowturbo.compiled.memory import peak_bytes
from flowturbo.evaluate.benchmark import benchmark, conditions
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, VelocityRefiner

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of largest pixel
PLANS = ("H1P2", "H1P1R1", "AB2:4@1.6", "RK4:1", "UNIPC2:4")


def random_sit(size: str, device: str) -> SiT:
    """A class-conditional SiT of a size ("small", "B/2", "XL/2", ...), weights random but fixed."""
    torch.manual_seed(0)
    small = dict(size=8, channels=4, patch=2, width=64, depth=2, heads=2, classes=10)
    config = SiTConfig(**small) if size == "small" else SiTConfig.named(size, classes=1000)
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)
    return network.to(device).eval().requires_grad_(False)


class Check:
    """Everything that the checks share."""

    def __init__(self, device: str, name: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.cuda = device == "cuda"
        self.net = random_sit(name, device)
        self.refiners = {
            "paper": PaperRefiner.from_model(self.net).to(device),
            "ours": VelocityRefiner.from_model(self.net, (1.0, 4.0)).to(device),
        }
        for refiner in self.refiners.values():
            refiner.requires_grad_(False).eval()
        self.x = torch.randn(4, *self.net.shape).to(device)
        self.cond = torch.arange(4, device=device)

    def compile(self, plan: str, refiner: str = "ours", **options) -> ft.CompiledSampler:
        options = {"guidance": 2.0, "cond": self.cond[:1], "batch": (2, 4), **options}
        return ft.compile(self.net, plan, self.refiners[refiner], **options)

    def loop(self, plan: str, refiner: str = "ours", **options) -> torch.Tensor:
        options = {"guidance": 2.0, "refiner": self.refiners[refiner], **options}
        return ft.sample(plan, self.net, self.x, self.cond, **options)

    # -- the checks ---------------------------------------------------------------------------

    def every_plan_equals_the_loop(self) -> dict:
        found = {}
        for plan in PLANS:
            for refiner in ("ours", "paper") if "R1" in plan else ("ours",):
                away = relative(
                    self.compile(plan, refiner)(self.x, self.cond), self.loop(plan, refiner)
                )
                found[f"{plan} {refiner}"] = away
        assert max(found.values()) <= TOLERANCE[torch.float32], found
        return found

    def every_precision_and_scope(self) -> dict:
        found, exact = {}, self.loop("H1P1R1")
        for dtype, most in TOLERANCE.items():
            for scope in ("plan", "row", "network"):
                fast = self.compile("H1P1R1", dtype=dtype, scope=scope, batch=4)
                away = relative(fast(self.x, self.cond), exact)
                found[f"{dtype} {scope}"] = away
                assert away <= most, found
                assert fast.recompiles == 0
        return found

    def results_are_copies_and_inputs_untouched(self) -> None:
        fast, before = self.compile("H1P2"), self.x.clone()
        first = fast(self.x, self.cond)
        kept = first.clone()
        for scale in (1.0, 3.0, torch.tensor([1.0, 2.0, 3.0, 4.0])):
            fast(self.x + 1, self.cond, guidance=scale)
        assert torch.equal(first, kept)
        assert torch.equal(self.x, before)
        assert relative(fast(self.x[:3], self.cond[:3]), first[:3]) < 1e-4
        many = fast(torch.cat([self.x, self.x[:1]]), torch.cat([self.cond, self.cond[:1]]))
        assert relative(many[:4], first) < 1e-4

    def threads_and_streams(self) -> None:
        fasts = [self.compile(plan) for plan in ("H1P2", "AB2:4@1.6")]
        jobs = [(f, self.x + i, self.cond) for i in range(4) for f in fasts]
        alone = [f(x, c, guidance=1.0 + i) for i, (f, x, c) in enumerate(jobs)]

        def work(i: int) -> torch.Tensor:
            f, x, c = jobs[i % len(jobs)]
            if not self.cuda:
                return f(x, c, guidance=1.0 + i % len(jobs))
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                out = f(x.clone(), c.clone(), guidance=1.0 + i % len(jobs))
            stream.synchronize()
            return out

        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(work, range(4 * len(jobs))))
        for i, out in enumerate(together):
            assert torch.equal(out, alone[i % len(jobs)]), i

    def the_loop_never_waits(self) -> None:
        guided = ft.Guidance(self.net, 2.0, interval=(0.2, 0.8))
        for plan in PLANS:
            self.loop(plan)
        ft.sample("E4", guided, self.x, self.cond)
        fast = self.compile("H1P1R1")
        if self.cuda:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for plan in PLANS:
                self.loop(plan)
            ft.sample("E4", guided, self.x, self.cond)
            fast(self.x, self.cond, guidance=3.0)
        finally:
            if self.cuda:
                torch.cuda.set_sync_debug_mode("default")

    def nothing_is_allocated_after_the_warm_up(self) -> dict:
        fast = self.compile("H1P1R1", batch=4)
        fast(self.x, self.cond)
        if not self.cuda:
            return {"report": fast.report}
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_reserved()
        for _ in range(20):
            fast(self.x, self.cond)
        torch.cuda.synchronize()
        assert torch.cuda.memory_reserved() == reserved
        inputs = 2 * self.x.nbytes + 3 * 512 * 8  # the copy of the result, the state, small things
        peak = peak_bytes(lambda: fast(self.x, self.cond), "cuda")
        assert peak <= 2 * inputs, peak
        return {"peak_bytes_of_a_replay": peak, "report": fast.report}

    def a_recompile_is_an_error(self) -> None:
        fast = self.compile("E2", scope="row")
        eps = self.net.blocks[0].norm1.eps
        self.net.blocks[0].norm1.eps = 0.1
        refused = False
        try:
            fast(self.x, self.cond)
        except Recompiled:
            refused = True
        finally:
            self.net.blocks[0].norm1.eps = eps
        assert refused

    def artefacts(self) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.pt2"
            r = self.refiners["ours"]
            ft.export(path, self.net, "H1R1", r, cond=self.cond[:1], guidance=2.0, batch=4)
            fast = ft.load_compiled(path)
            away = relative(fast(self.x, self.cond), self.loop("H1R1"))
            assert away <= TOLERANCE[torch.float32], away
            return {"away": away, "bytes": path.stat().st_size}

    def on_the_clock(self) -> dict:
        """The paper's comparison: nothing, the network, a row, the whole plan compiled."""
        dtype = torch.bfloat16 if self.cuda else None
        plans = [ft.Plan.parse(p) for p in ("H1P5", "H1P5R3", "H4")]
        return benchmark(
            self.net,
            plans,
            self.refiners["ours"],
            cond=self.cond,
            batch=len(self.cond),
            guidance=2.0,
            scopes=("none", "network", "row", "plan") if self.cuda else ("none",),
            dtype=dtype,
            repeats=30 if self.cuda else 2,
            reference="RK4:32" if self.cuda else None,
        )


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, over the largest pixel."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", help="of the SiT, random weights: small, B/2, XL/2, ...")
    parser.add_argument("--only", default="", help="checks whose name holds this")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    size = options.size or ("B/2" if options.device == "cuda" else "small")
    check, record = Check(options.device, size), {}
    names: list[str] = [n for n in vars(Check) if n not in ("compile", "loop") and n[0] != "_"]
    for name in (n for n in names if options.only in n):
        call: Callable = getattr(check, name)
        try:
            record[name] = {"ok": True, "found": call()}
        except Exception as e:
            traceback.print_exc()
            record[name] = {"ok": False, "error": f"{type(e).__name__}: {e}"}
        print("ok    " if record[name]["ok"] else "FAILED", name, flush=True)
    if options.out:
        command = " ".join(["python", *sys.argv])
        about = {"size": size, "command": command, **conditions(check.net, None, check.x)}
        found = {"conditions": about, "checks": record}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if record and all(r["ok"] for r in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
