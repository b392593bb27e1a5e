"""Safeguards: checks of prompts and images, before and after images are generated.

A checker is any callable ``checker(texts, images)``. It returns why a request is refused, or None.
It sees the texts and source images of a request before anything is generated (``prompt``,
``negative_prompt``, ``source_prompt``; ``image[0]``, ...), and every image before it is sent
(``output[0]``, ...), partial ones too. Checkers run on the threads of requests, off the event loop.
If a checker fails, the request is refused too: nothing is sent unchecked.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import io
import json
import re
import unicodedata
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from flowturbo.checks import shown
from flowturbo.images import upright
from flowturbo.models.model import Model
from flowturbo.serve.credentials import Credentials
from flowturbo.serve.schema import ImageRequest
from flowturbo.serve.work import Answer, Work

__all__ = [
    "BlockList",
    "Blocked",
    "CheckFailed",
    "Checker",
    "Endpoint",
    "Safeguards",
    "folded",
    "load_checker",
]

Checker: TypeAlias = Callable[[Mapping[str, str], Mapping[str, Image.Image]], str | None]
"""(texts by field, images by name) -> why the request is refused, or None."""

TEXTS = ("prompt", "negative_prompt", "source_prompt")
LARGEST_REPLY = 2**16  # bytes of an endpoint's response


class Blocked(Exception):
    """A checker refuses the request."""


class CheckFailed(Exception):
    """A checker failed, or its endpoint did not answer."""


@dataclass(frozen=True)
class Safeguards:
    """Checks before and after every request, and signatures.

    Attributes:
        checkers: called one after the other.
        credentials: sign every image (C2PA).
    """

    checkers: Sequence[Checker] = ()
    credentials: Credentials | None = None

    def guarded(self, work: Work) -> Callable[[Model], Answer]:
        """``work.run`` between the checks, after `Work.decode`; its images are signed.

        Raises:
            Blocked: (when called) if a checker refuses.
            CheckFailed: (when called) if a checker fails.
        """
        sources = {f"image[{i}]": image for i, image in enumerate(work.sources)}

        def run(model: Model) -> Answer:
            work.decode()
            self.check(_texts(work.request), sources)
            made = work.run(model)
            self.check_files(work.request, made.images)
            if self.credentials is None:
                return made
            kind, edited = work.request.output_format or "png", len(work.sources) > 0
            signed = [self.credentials.signed(image, kind, edited) for image in made.images]
            return replace(made, images=signed)

        return run

    def check_files(self, request: ImageRequest, files: Sequence[bytes]) -> None:
        """Check images that were generated for ``request``; raises as `guarded`."""
        if self.checkers:
            images = {f"output[{i}]": Image.open(io.BytesIO(f)) for i, f in enumerate(files)}
            self.check(_texts(request), images)

    def check(self, texts: Mapping[str, str], images: Mapping[str, Image.Image]) -> None:
        """Call every checker; raises as `guarded`."""
        for checker in self.checkers:
            try:
                reason = checker(texts, images)
            except Exception as e:
                raise CheckFailed(f"the checker {shown(checker)} failed") from e
            if reason is not None and not isinstance(reason, str):
                raise CheckFailed(
                    f"the checker {shown(checker)} returned {shown(reason)}: must be why the "
                    "request is refused, or None"
                )
            if reason is not None:
                raise Blocked(reason)


def _texts(request: ImageRequest) -> dict[str, str]:
    """The texts of a request, by field."""
    given = {name: getattr(request, name, None) for name in TEXTS}
    return {name: text for name, text in given.items() if text is not None}


# -- a list of terms ----------------------------------------------------------------------------

_ALIKE = {
    "a": "аαɑ", "b": "вьβƅʙ", "c": "сϲᴄ", "d": "ԁɖđ", "e": "еεɛҽəєᴇ", "f": "ғϝƒꞙ", "g": "ɡցԍɢ",
    "h": "һнհηʜħ", "i": "іιıɩɪ", "j": "јϳʝ", "k": "кκᴋ", "l": "ӏǀʟł", "m": "мμϻᴍ", "n": "пոռɴ",
    "o": "оοσօөøᴏ", "p": "рρᴘ", "q": "ԛգզ", "r": "гʀɾᴦ", "s": "ѕƽʂꜱ", "t": "тτƭᴛŧ", "u": "υսʋᴜ",
    "v": "νѵᴠ", "w": "ԝѡաωɯᴡ", "x": "хχ×", "y": "уүγʏɣ", "z": "ᴢʐƶζ",
}  # fmt: skip
LOOKALIKES = {ord(c): letter for letter, alike in _ALIKE.items() for c in alike}
"""Letters that look like Latin ones, of those that remain after NFKC and case folding."""
for _first in (0x1F150, 0x1F170, 0x1F1E6):  # white on black, round or square, and of flags
    LOOKALIKES |= {_first + i: chr(ord("a") + i) for i in range(26)}

_HIDDEN = re.compile(  # accents, variation selectors, fillers, tags
    "[\u0300-\u036f\u115f\u1160\u17b4\u17b5\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f"
    "\ufe20-\ufe2f\U000e0000-\U000e0fff]"
)
DIGITS = {
    "a": "4@", "b": "8", "e": "3", "g": "9", "i": "1!|", "l": "1!|", "o": "0", "s": "5$", "t": "7+",
    "z": "2",
}  # fmt: skip
"""Characters that are written in place of letters."""
_LETTER = r"[^\W_]"
_BETWEEN = r"(?:[^\w\s]|_)?"  # one mark between letters
_GAP = r"(?:\W|_){1,16}"  # between words; without a limit, texts of marks alone would take seconds


def folded(text: str) -> str:
    """``text`` normalised so that words cannot be hidden in it.

    Compatible forms are unified (NFKC), case is folded, accents and invisible characters are
    removed, and letters of other scripts that look like Latin ones are replaced by these.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _HIDDEN.sub("", unicodedata.normalize("NFKD", text))
    seen = [c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")]
    return unicodedata.normalize("NFC", "".join(seen).translate(LOOKALIKES))


class BlockList:
    """Refuses texts that contain a term.

    Both are `folded`; digits and signs may stand for letters (`DIGITS`), and there may be one mark
    between letters, and 16 between words. A term begins and ends where a word does, except at a
    character of scripts that are written without spaces.

    Args:
        path: one term per line, of one word or several; lines that begin with ``#`` are comments.

    Raises:
        ValueError: if the file cannot be read, has no terms, or has one without letters and signs.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"block list {path}: cannot be read ({e})") from e
        words: list[str] = []  # terms that begin where a word does
        wide: list[str] = []  # others
        for number, line in enumerate(lines, 1):
            term = line.strip()
            if term and not term.startswith("#"):
                if not folded(term).split():
                    raise ValueError(f"block list {path}, line {number}: nothing can match it")
                found = folded(term).strip()
                (wide if _is_wide(found[0]) else words).append(_pattern(found))
        if not words + wide:
            raise ValueError(f"block list {path}: contains no terms; write one per line")
        begun = [f"(?<!{_LETTER})(?:{'|'.join(words)})"] if words else []
        self._pattern = re.compile("|".join(begun + wide))

    def __repr__(self) -> str:
        return f"BlockList({str(self.path)!r})"

    def __call__(self, texts: Mapping[str, str], images: Mapping[str, Image.Image]) -> str | None:
        """Which text contains a term; images are ignored."""
        for name, text in texts.items():
            if self._pattern.search(" ".join(folded(text).split())):
                return f"{name} contains what is on the server's block list"
        return None


def _pattern(term: str) -> str:
    """The regular expression of a folded term, up to its end."""
    words = [
        _BETWEEN.join(f"[{re.escape(c + DIGITS.get(c, ''))}]" for c in word)
        for word in term.split()
    ]
    after = "" if _is_wide(term[-1]) else f"(?!{_LETTER})"
    return _GAP.join(words) + after


def _is_wide(character: str) -> bool:
    """Whether it is from a script that is written without spaces, or an emoji."""
    return unicodedata.east_asian_width(character) == "W"


# -- checkers from elsewhere --------------------------------------------------------------------


class Endpoint:
    """Calls a service, by ``POST`` of JSON.

    It receives ``{"texts": {name: text}, "images": {name: PNG in base64}}`` and answers
    ``{"reason": null}``, or the reason for refusing. Any other response, or none in time, is a
    failure.

    Args:
        url: http or https.
        timeout: seconds to wait for a connection, and for each part of the response.
    """

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self.url, self.timeout = url, timeout

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def __call__(self, texts: Mapping[str, str], images: Mapping[str, Image.Image]) -> str | None:
        """What the service answers."""
        body = {"texts": dict(texts), "images": {k: _base64(image) for k, image in images.items()}}
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                reason: str | None = json.loads(answer.read(LARGEST_REPLY))["reason"]
                return reason
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as e:
            raise CheckFailed(f"{self.url}: {type(e).__name__}: {e}") from e


def _base64(image: Image.Image) -> str:
    made = io.BytesIO()
    upright(image).save(made, format="PNG")
    return base64.b64encode(made.getvalue()).decode()


def load_checker(spec: str, timeout: float = 5.0) -> Checker:
    """The checker of ``--checker``.

    Args:
        spec: the path of a `BlockList`, the URL of an `Endpoint`, or ``module:name`` of a callable;
            a class is called without arguments.
        timeout: seconds, of an endpoint.

    Raises:
        ValueError: if it is none of them.
    """
    if re.match("https?://", spec):
        return Endpoint(spec, timeout)
    module, _, name = spec.partition(":")
    if Path(spec).is_file() or not re.fullmatch(r"[\w.]+:\w+", spec):
        return BlockList(spec)
    try:
        found = getattr(importlib.import_module(module), name)
        checker = found() if isinstance(found, type) else found
    except Exception as e:
        raise ValueError(
            f"checker={spec!r}: cannot be loaded ({type(e).__name__}: {e}); the folder of the "
            "module must be on PYTHONPATH"
        ) from e
    if not callable(checker):
        raise ValueError(f"checker={spec!r}: is {shown(checker)}, and must be a callable")
    return checker
