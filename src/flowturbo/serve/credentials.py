"""Content credentials: a signed statement in an image that it was generated (C2PA).

The key and certificate are the user's; no network is used, so there is no time stamp of an
authority. Needs ``flowturbo[c2pa]``.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from flowturbo._version import __version__
from flowturbo.images import EDITED, GENERATED, encoded

__all__ = ["Credentials"]

_CURVES = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}


class Credentials:
    """Signs images.

    Args:
        certificate: a PEM file with the chain of certificates from the signer's to a root.
        key: a PEM file of its private key, without a password: EC, RSA or Ed25519.

    Raises:
        ImportError: without the package of the extra ``flowturbo[c2pa]``.
        ValueError: if a file cannot be read, or does not sign an image.
    """

    def __init__(self, certificate: str | Path, key: str | Path) -> None:
        try:
            import c2pa
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as e:
            raise ImportError(
                f"content credentials need {e.name}: pip install 'flowturbo[c2pa]'"
            ) from e
        files = f"--c2pa-cert {certificate} --c2pa-key {key}"
        try:
            chain, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
            kind = _algorithm(load_pem_private_key(secret, None))
            # a time stamp would need the network, a thumbnail is larger than the image
            self._context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(kind, chain, secret, None))
            self.signed(encoded(Image.new("L", (1, 1)), "png", {}), "png")
        except (OSError, ValueError, TypeError, c2pa.C2paError) as e:
            raise ValueError(f"{files}: do not sign images ({e})") from e

    def signed(self, image: bytes, kind: str, edited: bool = False) -> bytes:
        """A file with its credentials.

        Args:
            image: its content.
            kind: "png", "jpeg" or "webp".
            edited: whether it was made from another image.
        """
        import c2pa

        made, source_type = io.BytesIO(), EDITED if edited else GENERATED
        action = {"action": "c2pa.created", "digitalSourceType": source_type}
        manifest = {
            "claim_generator_info": [{"name": "flowturbo", "version": __version__}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        with c2pa.Builder(manifest, self._context) as builder:
            builder.sign(self._signer, f"image/{kind}", io.BytesIO(image), made)
        return made.getvalue()


def _algorithm(key: object) -> bytes:
    """The name of the signature that a private key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    raise ValueError("the key must be of P-256, P-384 or P-521, RSA or Ed25519")
