"""Safeguards: what block lists match, what checkers see, what an endpoint does, and signatures."""

from __future__ import annotations

import base64
import datetime
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image
from servers import data_url, images, photo, serving

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.serve.safeguards import BlockList, Endpoint, Safeguards, folded, load_checker

EXAMPLE = Path(__file__).parents[2] / "examples" / "blocklist.txt"
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def words(text_model):
    return ft.load(text_model)


def blocked(answer) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "moderation_blocked"
    assert error["type"] == "image_generation_user_error"
    return error["message"]


# -- block lists --------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("# terms\n\nTiger\nred  apple\nстрашный\n武器\n\U0001f52b\nmiel\n", "utf-8")
    return BlockList(path)


@pytest.mark.parametrize(
    "text",
    ["tiger", "a TIGER, please", "tiger's", "_tiger_", "(tiger)", "ｔｉｇｅｒ", "𝓽𝓲𝓰𝓮𝓻", "ⓣⓘⓖⓔⓡ",
     "tіgеr", "τιger", "t\u200big\u00ade\u2060r", "ti\u0336g\u0336er", "tïgér", "t1g3r", "7!9er",
     "t-i-g-e-r", "t.i.g.e.r", "red apple", "RED\n apple", "red-apple", "r3d 4ppl3", "СТРАШНЫЙ дом",
     f"red{' ' * 99}apple", f"red{'.' * 16}apple",
     "大きな武器です", "a\U0001f52bb", "🅣🅘🅖🅔🅡", "ti\ufe0fger", "t\x00iger"],
)  # fmt: skip
def test_a_term_is_found(listed, text):
    assert listed({"prompt": text}, {}) == "prompt contains what is on the server's block list"


@pytest.mark.parametrize(
    "text",
    ["", "tigers", "antigerm", "red", f"red{'.' * 17}apple", "apple red", "redapple", "good",
     "mi el", "t i", "武 器"],
)  # fmt: skip
def test_another_word_is_not_a_term(listed, text):
    assert listed({"prompt": text}, {}) is None


def test_folding_is_idempotent_and_leaves_plain_words():
    for text in ("plain words, 3 of them", "Straße", "İstanbul", "한국어", "カンガルー", "हिन्दी"):
        assert folded(folded(text)) == folded(text)
    assert folded("plain words, 3 of them") == "plain words, 3 of them"


def test_a_long_prompt_is_checked_to_its_end(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"term{i} of several" for i in range(200)), "utf-8")
    checker = BlockList(path)
    assert checker({"prompt": "term " * 6400}, {}) is None
    assert checker({"prompt": "word " * 6000 + "term7 of several"}, {}) is not None


def test_a_prompt_of_marks_that_stand_for_letters_is_checked_fast(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("a z", "utf-8")
    begun = time.perf_counter()
    assert BlockList(path)({"prompt": "@" * 32_000}, {}) is None
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no terms"), (b"# none\n", "no terms"), (b"\xff", "cannot be read"),
     ("ok\n\u200b\u0301\n".encode(), "line 2")],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        BlockList(path)


def test_the_example_is_a_block_list():
    checker = BlockList(EXAMPLE)
    assert checker({"prompt": "a n4ked person"}, {})
    assert checker({"prompt": "red apple"}, {}) is None


# -- in the server ------------------------------------------------------------------------------


def test_every_text_is_checked_and_counted(words, listed):
    with serving(words, safeguards=Safeguards([listed])) as server:
        assert "prompt" in blocked(server.draw(prompt="a t1ger"))
        assert "negative_prompt" in blocked(server.draw(prompt="pizza", negative_prompt="tiger"))
        assert "source_prompt" in blocked(server.edit(prompt="pizza", source_prompt="tiger"))
        blocked(server.form(prompt="tiger"))
        blocked(server.draw(prompt="tiger", stream=True))
        assert server.figure('flowturbo_refused_total{code="moderation_blocked"}') == 5
        assert server.figure("flowturbo_tick_rows_count") == 0  # nothing was drawn
        images(server.draw(prompt="pizza"))


def test_a_checker_sees_sources_and_every_image_that_leaves(words):
    seen = []

    def checker(texts, given):
        seen.append((dict(texts), {name: image.size for name, image in given.items()}))

    with serving(words, safeguards=Safeguards([checker])) as server:
        images(server.draw(prompt="pizza", n=2))
        texts = {"prompt": "pizza"}
        assert seen == [(texts, {}), (texts, {"output[0]": (8, 8), "output[1]": (8, 8)})]
        seen.clear()
        source = [{"image_url": data_url(photo())}]
        server.stream(EDITS, prompt="pizza", images=source, plan="AB2:6", partial_images=1)
        sizes = [given for _, given in seen]
        assert sizes[0] == {"image[0]": (20, 16)}
        assert sorted(size["output[0]"] for size in sizes[1:]) == [(8, 8), (20, 16)]


@pytest.mark.parametrize("partial_images", [0, 2])
def test_an_image_that_is_refused_is_not_sent(words, partial_images):
    def checker(texts, given):
        return "it shows what it must not" if "output[0]" in given else None

    with serving(words, safeguards=Safeguards([checker])) as server:
        assert "must not" in blocked(server.draw())
        fields = {"prompt": "tiger", "plan": "AB2:6", "partial_images": partial_images}
        if partial_images:
            ((name, data),) = server.stream(GENERATIONS, **fields)
            assert (name, data["error"]["code"]) == ("error", "moderation_blocked")
        else:
            blocked(server.draw(stream=True, **fields))


@pytest.mark.parametrize("answer", [False, True, 3, ZeroDivisionError("secret")])
def test_a_checker_that_fails_refuses(words, answer, caplog):
    def checker(texts, given):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with serving(words, safeguards=Safeguards([checker])) as server:
        made = server.draw()
        assert made.status_code == 503
        assert made.json()["error"]["code"] == "checker_failed"
        assert made.headers["retry-after"] == "5"
        assert "secret" not in made.text
        assert "checker" in caplog.text
        assert server.figure('flowturbo_refused_total{code="checker_failed"}') == 1


def test_a_slow_checker_holds_up_no_other_request(words):
    gate = threading.Event()

    def checker(texts, given):
        if texts["prompt"] == "tiger":
            gate.wait(20)

    with serving(words, safeguards=Safeguards([checker])) as server:
        waits = threading.Thread(target=server.draw)
        waits.start()
        images(server.draw(prompt="pizza"))
        assert server.client.get("/healthz").status_code == 200
        gate.set()
        waits.join()


# -- endpoints ----------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    """A service: its URL, what it was asked, and what it answers."""
    asked, answers = [], {"status": 200, "body": b'{"reason": null}'}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if answers["status"] is None:
                gate.wait(20)
            self.send_response(answers["status"] or 200)
            self.end_headers()
            self.wfile.write(answers["body"])

        def log_message(self, *args):
            pass

    gate = threading.Event()
    service = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}/check", asked, answers
    gate.set()
    service.shutdown()
    thread.join()
    service.server_close()


def test_an_endpoint_is_asked(words, endpoint):
    url, asked, answers = endpoint
    with serving(words, safeguards=Safeguards([Endpoint(url)])) as server:
        images(server.edit(prompt="pizza"))
        assert [sorted(given["images"]) for given in asked] == [["image[0]"], ["output[0]"]]
        assert asked[0]["texts"] == {"prompt": "pizza"}
        sent = Image.open(io.BytesIO(base64.b64decode(asked[0]["images"]["image[0]"])))
        assert (sent.format, sent.size) == ("PNG", (20, 16))
        answers["body"] = b'{"reason": "no pizza today"}'
        assert "no pizza today" in blocked(server.draw(prompt="pizza"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (200, b"{}"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"reason": 1}'),
        (None, b""),
    ],
)
def test_an_endpoint_that_does_not_answer_refuses(words, endpoint, status, body):
    url, _, answers = endpoint
    answers.update(status=status, body=body)
    with serving(words, safeguards=Safeguards([Endpoint(url, timeout=0.3)])) as server:
        made = server.draw()
        assert (made.status_code, made.json()["error"]["code"]) == (503, "checker_failed")


def test_an_endpoint_that_is_not_there_refuses(words):
    with serving(words, safeguards=Safeguards([Endpoint("http://127.0.0.1:9/")])) as server:
        assert server.draw().status_code == 503


# -- what --checker takes -----------------------------------------------------------------------


def test_a_checker_is_loaded_by_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "own_checks.py").write_text(
        "class Always:\n    def __call__(self, texts, images):\n        return 'always'\n"
        "def never(texts, images):\n    return None\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_checker("own_checks:Always")({}, {}) == "always"
    assert load_checker("own_checks:never")({}, {}) is None
    assert isinstance(load_checker("https://example.org/check", 2), Endpoint)
    assert isinstance(load_checker(str(EXAMPLE)), BlockList)
    for spec, message in {
        "own_checks:number": "must be a callable", "own_checks:missing": "no attribute",
        "no_such_module:name": "PYTHONPATH", "no/such/file.txt": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_checker(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checker", "no/such/file.txt"], "no/such/file.txt"),
        (["--checker-timeout", "0"], "--checker-timeout"),
        (["--checker", "json:loads"], "no-such-model"),
        (["--checker", "http://127.0.0.1:9/check"], "no-such-model"),
        (["--timeout", "0"], "--timeout"),
        (["--c2pa-cert", "chain.pem"], "give both"),
    ],
)
def test_the_command_refuses_wrong_options_before_it_loads(options, message, capsys):
    with pytest.raises(SystemExit) as status:
        main(["serve", "--model", "no-such-model", *options])
    assert status.value.code == 2
    assert message in capsys.readouterr().err


# -- content credentials ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """Files of a certificate of a test authority, and of its key."""
    pytest.importorskip("c2pa")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "signer")}
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)

    def named(name):
        parts = {NameOID.ORGANIZATION_NAME: "Test", NameOID.COMMON_NAME: name}
        return x509.Name([x509.NameAttribute(*part) for part in parts.items()])

    chain = b""
    for name in ("signer", "root"):
        root, public = name == "root", keys[name].public_key()
        usage = x509.KeyUsage(True, False, False, False, False, root, root, False, False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["root"].public_key())
        made = (
            x509.CertificateBuilder(
                named("root"), named(name), public, 1 + root, now - day, now + day
            )
            .add_extension(x509.BasicConstraints(root, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(issuer, False)
        )
        if not root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            made = made.add_extension(purpose, True)
        signed = made.sign(keys["root"], hashes.SHA256())
        chain += signed.public_bytes(serialization.Encoding.PEM)
    folder = tmp_path_factory.mktemp("identity")
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(
        keys["signer"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "chain.pem", folder / "key.pem"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_images_are_signed(words, identity, kind):
    import c2pa

    from flowturbo.serve.credentials import Credentials

    with serving(words, safeguards=Safeguards(credentials=Credentials(*identity))) as server:
        for answer, source in (
            (server.draw(output_format=kind), "trainedAlgorithmicMedia"),
            (server.edit(output_format=kind), "compositeWithTrainedAlgorithmicMedia"),
        ):
            (image,) = images(answer)
            assert image.format.lower() == kind
            data = base64.b64decode(answer.json()["data"][0]["b64_json"])
            found = json.loads(c2pa.Reader(f"image/{kind}", io.BytesIO(data)).json())
            # whole and signed, by nobody whom a list of trust knows
            assert [s["code"] for s in found["validation_status"]] == [
                "signingCredential.untrusted"
            ]
            manifest = found["manifests"][found["active_manifest"]]
            assert manifest["signature_info"]["common_name"] == "signer"
            (action,) = manifest["assertions"][0]["data"]["actions"]
            assert action["digitalSourceType"].rpartition("/")[2] == source


def test_files_that_do_not_sign_are_refused(identity, tmp_path):
    from flowturbo.serve.credentials import Credentials

    certificate, key = identity
    (tmp_path / "bad.pem").write_text("nothing")
    for pair in ((tmp_path / "bad.pem", key), (certificate, tmp_path / "bad.pem"),
                 (tmp_path / "none", key), (certificate, certificate)):  # fmt: skip
        with pytest.raises(ValueError, match="do not sign images"):
            Credentials(*pair)
