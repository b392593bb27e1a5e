"""Every editing task on images that the model itself has drawn; see docs/editing.md."""

import flowturbo as ft
from flowturbo.images import image_grid

SOURCES = ["red apple", "dog face", "strawberry", "cat face", "orange book"]
TARGETS = ["green apple", "fox", "lemon", "tiger face", "blue book"]


def main():
    model = ft.load("emoji")
    sources = ft.generate(model, SOURCES, style="noto", seed=11)
    columns = [sources]
    for method, keep in (("inversion", 0.1), ("inversion", 0.3), ("flowedit", 0.1)):
        columns.append(
            ft.edit(model, sources, TARGETS, SOURCES, method=method, keep=keep, style="noto")
        )
        print(f"{method}, keep {keep}: {columns[-1].passes} passes of the network")
    columns.append(ft.img2img(model, sources, TARGETS, strength=0.7, style="noto"))
    print(f"img2img: {columns[-1].passes} passes of the network")
    box = (16, 4, 30, 28)  # the right half
    mask = [[float(box[0] <= x < box[2] and box[1] <= y < box[3]) for x in range(32)]
            for y in range(32)]  # fmt: skip
    columns.append(ft.inpaint(model, sources, mask, SOURCES, style="noto"))
    columns.append(ft.remove(model, sources, mask, SOURCES, style="noto"))
    columns.append(ft.remove(model, sources, box=box))
    images = [column[i] for i in range(len(sources)) for column in columns]
    image_grid(images, len(columns), scale=3).save("editing.png")


if __name__ == "__main__":
    main()
