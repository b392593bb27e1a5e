"""Ten digits by a few plans of eight evaluations, and their errors to the reference solution."""

import torch

import flowturbo as ft


def main():
    model = ft.load("digits")
    digits = [str(i) for i in range(10)]
    cond = model.condition(digits)
    x0 = torch.randn(10, *model.shape, generator=torch.Generator().manual_seed(0))
    converged = ft.sample(ft.Plan.parse("RK4:8"), model, x0, cond, guidance=2.0)
    for text in ("E8", "H4", "H1P6", "AB2:8", "AB2:8@1.6"):
        x1 = ft.sample(ft.Plan.parse(text), model, x0, cond, guidance=2.0)
        print(f"{text:10} RMS error {(x1 - converged).square().mean().sqrt():.3f}")

    images = ft.generate(model, digits, plan=ft.Plan.parse("AB2:8@1.6"), guidance=2.0, seed=0)
    for digit, image in zip(digits, images, strict=True):
        image.save(f"digit-{digit}.png")


if __name__ == "__main__":
    main()
