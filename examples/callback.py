"""What a callback receives: the predicted clean image after every evaluation, and the state."""

import torch
from PIL import Image

import flowturbo as ft


def main():
    model = ft.load("digits")
    cond = model.condition(["3", "8"])
    x0 = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    frames = []

    def watch(step):
        """Keep the prediction, and make the left third of the image black."""
        frames.append(model.decode(step.x1))
        print(f"evaluation {step.index + 1}/{step.total}, now at t = {step.time:.3f}")
        third = step.x.shape[-1] // 3
        known = torch.full_like(step.x[..., :third], -1)
        edited = step.x.clone()
        edited[..., :third] = step.time * known + (1 - step.time) * x0[..., :third]
        return edited

    ft.sample(ft.Plan.parse("AB2:8"), model, x0, cond, guidance=2.0, callback=watch)
    rows = torch.cat([torch.cat(list(frame[:, 0]), dim=0) for frame in frames], dim=1)
    Image.fromarray((rows * 255).byte().numpy()).save("predictions.png")


if __name__ == "__main__":
    main()
