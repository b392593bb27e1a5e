"""Matches the images of five icon sets by what they show, and collects words for it.

A *concept* is one thing, drawn in up to five styles. Two images show the same thing if they have
the same code point; a set without code points (fxemoji) is matched by name: with spaces removed
(``redapple``), its names are looked up among the names of Unicode emoji, of the other sets and of
Unicode characters. ``fxemoji.txt`` says what the rest shows, and corrects names that mean another
emoji ("dog" is drawn as what Unicode calls "dog face").
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from names import STYLES

__all__ = ["bare", "family", "join", "plain", "read_codes", "read_icons", "read_table", "squash"]

Concept = dict[str, Any]
Pictures = dict[tuple[str, str], tuple[str, str | Path]]  # (name, style) -> (icon, SVG or file)

TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
FLAGS = {"country-flag", "subdivision-flag"}
LETTERS = re.compile("[\U0001f1e6-\U0001f1ff\U000e0061-\U000e007a]")  # they spell flags
SIGNS = {"#": " number sign ", "*": " asterisk ", "&": " and ", "\u2019": "'"}


def plain(name: str) -> str:
    """A name as lower-case words: ``Japanese "here" button`` -> ``japanese here button``."""
    for sign, word in SIGNS.items():
        name = name.replace(sign, word)
    name = unicodedata.normalize("NFKD", name).lower().encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z0-9']+", " ", name).split())


def squash(name: str) -> str:
    """A name without spaces, hyphens and apostrophes, for comparing."""
    return re.sub(r"[^a-z0-9]", "", plain(name))


def read_table(path: Path) -> dict[str, str]:
    """Lines ``icon: name`` of a table, or ``icon`` alone for a name that is a word as it stands."""
    lines = (x.partition(": ") for x in path.read_text("utf-8").split("\n") if x)
    return {icon: name or icon for icon, _, name in lines}


def family(name: str, subgroup: str) -> str:
    """What near-duplicates share: signs of one kind, or one thing done by man, woman and child."""
    for part in ("hand", "clock", "moon", "family", "keycap", "alphanum", "arrow", "geometric"):
        if part in subgroup or (part in name.split() and subgroup in ("time", "sky & weather")):
            return part
    if subgroup in ("zodiac", "av-symbol", "transport-sign", "punctuation", "math"):
        return subgroup
    if subgroup == "time" and re.search("o'clock|thirty", name):
        return "clock"
    if not subgroup.startswith(("person", "family")):
        return name
    people = r"\b(person|people|man|men|woman|women|boy|girl|facing right|in|with|and)\b"
    return " ".join(re.sub(people, "", name).split()) or "person"


def join(folder: Path, table: dict[str, str]) -> tuple[list[Concept], Pictures, Counter[str]]:
    """Concepts sorted by name, pictures by (concept name, style), and what was left out.

    Args:
        folder: a ``node_modules`` with the packages of `names.PACKAGES`.
        table: fxemoji's icon names to names, for those that cannot be looked up.
    """

    def read(path: str) -> Any:
        return json.loads((folder / path).read_text("utf-8"))

    emoji = {bare(e): v for e, v in read("unicode-emoji-json/data-by-emoji.json").items()}
    words = {bare(e): v for e, v in read("emojilib/dist/emoji-en-US.json").items()}
    subgroups = {bare(e["char"]): e["subgroup"] for e in read("emoji.json/emoji.json")}
    drawn = {s: p for s, p in STYLES.items() if s != "3d"}  # the others are SVG
    sets = {s: read(f"{p}/icons.json") for s, p in drawn.items()}
    codes = {s: read_codes(read(f"{STYLES[s]}/chars.json")) for s in ("noto", "flat")}
    codes["fluent"] = codes["flat"]  # the same names; this set's own list is empty
    index = _index(emoji, sets, codes)

    last = ""
    for char in emoji:  # newer emoji stand among those of their subgroup
        last = subgroups.setdefault(char, last)

    left_out: Counter[str] = Counter()
    concepts: dict[str, Concept] = {}
    pictures: Pictures = {}
    for style in STYLES:
        flat = style in drawn
        groups = _groups(read(f"{STYLES[style]}/metadata.json")) if flat else {}
        files = sorted((folder / STYLES[style] / "assets").glob("*.webp"))
        found = read_icons(sets[style], left_out) if flat else [(p.stem, p) for p in files]
        for icon, svg in found:
            if style == "3d":
                key = bare("".join(chr(int(x, 16)) for x in re.split("[-_]", icon)))
            elif style == "fx":
                name = table.get(icon, icon)
                key = index.get(squash(name), name)
            else:
                key = codes[style].get(icon) or index.get(squash(icon), "")
            if not key or TONES.search(key):
                left_out["skin tone"] += 1
                continue
            group = emoji.get(key, {}).get("group") or groups.get(icon, "")
            subgroup = subgroups.get(key, "")
            if subgroup in FLAGS or LETTERS.search(key) or (group == "Flags" and not subgroup):
                left_out["flag"] += 1
                continue
            if key not in concepts:
                group = (
                    group if key in emoji or style != "fx" else ""
                )  # other groups than Unicode's
                concepts[key] = _concept(key, icon, table, emoji, words, group, subgroup)
            if (concepts[key]["name"], style) in pictures:
                left_out["second picture of a concept in a style"] += 1
                continue
            pictures[concepts[key]["name"], style] = (icon, svg)
            if style not in ("fx", "3d"):
                _add(concepts[key]["others"], plain(icon), concepts[key]["name"])
    for alias, icon in _aliases(sets["noto"]):
        if concept := concepts.get(codes["noto"].get(icon, "")):
            _add(concept["others"], plain(alias), concept["name"])
    made = sorted(concepts.values(), key=lambda c: c["name"])
    assert len({c["name"] for c in made}) == len(made), "two concepts of one name"
    return made, pictures, left_out


def bare(text: str) -> str:
    """An emoji without the mark that asks for colour."""
    return text.replace("\ufe0f", "")


def read_codes(chars: dict[str, str]) -> dict[str, str]:
    """Icon name to its emoji, from a set's table of code points."""
    return {n: bare("".join(chr(int(x, 16)) for x in c.split("-"))) for c, n in chars.items()}


def _aliases(icons: dict[str, Any]) -> list[tuple[str, str]]:
    found = icons.get("aliases", {}).items()
    return [(a, v["parent"]) for a, v in found if not v.get("hFlip")]


def _index(emoji: Any, sets: Any, codes: Any) -> dict[str, str]:
    """Squashed name to emoji or character; the first source to name it wins."""
    index: dict[str, str] = {}
    for char, about in emoji.items():
        index.setdefault(squash(about["name"]), char)
    for style in ("noto", "flat"):
        for icon, char in codes[style].items():
            index.setdefault(squash(icon), char)
        for alias, icon in _aliases(sets[style]):
            if icon in codes[style]:
                index.setdefault(squash(alias), codes[style][icon])
    for code in [*map(ord, filter(lambda c: len(c) == 1, emoji)), *range(0x2000, 0x3300)]:
        index.setdefault(squash(unicodedata.name(chr(code), "")), chr(code))
    for code in range(0x1F000, 0x1FB00):
        index.setdefault(squash(unicodedata.name(chr(code), "")), chr(code))
    return index


def read_icons(icons: dict[str, Any], left_out: Counter[str]) -> list[tuple[str, str]]:
    """Names and SVG documents of a set: mirrored icons added, withdrawn ones left out."""
    found = []
    flipped = {a: v["parent"] for a, v in icons.get("aliases", {}).items() if v.get("hFlip")}
    for name in [*icons["icons"], *flipped]:
        icon = icons["icons"][flipped.get(name, name)]
        if icon.get("hidden"):
            left_out["withdrawn by its set"] += 1
            continue
        width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        body = icon["body"]
        if name in flipped:
            body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
        side = max(width, height)  # a square with the icon in its middle
        box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        found.append((name, f'<svg {spaces} viewBox="{box}">{body}</svg>'))
    return found


def _groups(metadata: dict[str, Any]) -> dict[str, str]:
    found = metadata.get("categories", {})
    return {n: g for g, names in found.items() for n in names}


def _concept(
    key: str, icon: str, table: Any, emoji: Any, words: Any, group: str, subgroup: str
) -> Concept:
    if key in emoji:
        name = plain(emoji[key]["name"])
    elif icon in table or len(key) > 1:
        name = plain(table.get(icon, icon))
    else:
        name = plain(unicodedata.name(key, "") or icon)
    keywords = [k for w in words.get(key, [])[1:] if re.fullmatch("[a-z' ]{3,}", k := plain(w))]
    return {
        "name": name,
        "emoji": "" if key.isascii() else key,
        "others": [],
        "keywords": [k for k in dict.fromkeys(keywords) if k != name],
        "group": group,
        "subgroup": subgroup,
        "family": family(name, subgroup),
    }


def _add(others: list[str], name: str, known: str) -> None:
    if squash(name) not in {squash(n) for n in (known, *others)}:
        others.append(name)
