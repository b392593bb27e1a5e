"""The sources of the emoji data set: packages, styles, and the names held out of training."""

from __future__ import annotations

__all__ = ["BROKEN", "HELD_NAMES", "LICENCES", "OTHERS", "PACKAGES", "STYLES"]

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fxemoji": "1.2.2",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojilib": "4.0.3",
    "unicode-emoji-json": "0.9.0",
    "emoji.json": "16.0.0",
}
LICENCES = {
    "@iconify-json/noto": "Apache-2.0",
    "@iconify-json/fluent-emoji": "MIT",
    "@iconify-json/fluent-emoji-flat": "MIT",
    "@iconify-json/fxemoji": "Apache-2.0",
    "@lobehub/fluent-emoji-3d": "MIT",
    "emojilib": "MIT",
    "unicode-emoji-json": "MIT",
    "emoji.json": "MIT",
}

# The word for a style in captions, and its package. The index of a style is its place here.
STYLES = {
    "noto": "@iconify-json/noto",
    "fluent": "@iconify-json/fluent-emoji",
    "flat": "@iconify-json/fluent-emoji-flat",
    "fx": "@iconify-json/fxemoji",
    "3d": "@lobehub/fluent-emoji-3d",
}

# (style, icon) drawn wrongly or as good as empty, found by looking at every picture.
BROKEN = {("fx", "fog"), ("fx", "heartblue"), ("fx", "tramcar"), ("noto", "keycap")}

# Chosen before anything was trained: things everybody can judge at a glance (animals, food, plants,
# objects), each drawn in all five styles. The styles on the right are never trained on for that
# name, and always shown next to trained ones in previews and reports: a model that draws them has
# put a name and a style together that it has not seen together. "fluent", "flat" and "3d" are the
# same designs in three renderings, so they are held out together.
HELD_NAMES = {
    "red apple": ("fluent", "flat", "3d"),
    "tiger": ("noto",),
    "pizza": ("fluent", "flat", "3d"),
    "octopus": ("fx",),
    "sunflower": ("noto",),
    "guitar": ("fluent", "flat", "3d"),
    "rocket": ("fx",),
    "strawberry": ("noto",),
    "elephant": ("fluent", "flat", "3d"),
    "sailboat": ("fx",),
    "penguin": ("noto",),
    "crown": ("fx",),
}

# Sets of other looks, never trained on: what recognises names in drawn pictures is checked on them.
# Their licences ask for attribution or the same licence, so nothing of them is kept here.
OTHERS = {
    "@iconify-json/twemoji": "1.2.5",  # CC-BY-4.0
    "@iconify-json/emojione": "1.2.3",  # CC-BY-4.0
    "@iconify-json/openmoji": "1.2.29",  # CC-BY-SA-4.0
}
