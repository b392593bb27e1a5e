"""The bodies of requests: how they are read, and how OpenAPI describes them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from flowturbo.serve.errors import ApiError
from flowturbo.serve.schema import EditRequest, GenerationRequest, ImageRequest
from flowturbo.serve.work import data_url

__all__ = ["EDIT_BODY", "GENERATION_BODY", "content_type", "edit_body"]


def content_type(request: Request) -> str:
    """The media type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def edit_body(request: Request) -> tuple[EditRequest, list[bytes], bytes | None]:
    """The fields, images and mask of an edit, sent as JSON or as a form."""
    kind = content_type(request)
    if kind == "application/json":
        return await asyncio.to_thread(_edit_json, await request.body())
    if kind != "multipart/form-data":
        raise ApiError(415, f"content-type {kind!r}: send application/json or multipart/form-data")
    fields: dict[str, Any] = {}
    images, mask = [], None
    async with request.form(max_files=20, max_fields=100) as form:
        for name, value in form.multi_items():
            if name in ("image", "image[]") and isinstance(value, UploadFile):
                images.append(await value.read())
            elif (
                name in fields
                or isinstance(fields.get(name.removesuffix("[]")), str)  # "box", then "box[]"
                or (name == "mask" and mask is not None)
            ):
                raise ApiError(400, f"{name}: is given twice", param=name, code="invalid_value")
            elif name == "mask" and isinstance(value, UploadFile):
                mask = await value.read()
            elif isinstance(value, UploadFile) or name in ("images", "mask", "image"):
                raise ApiError(
                    400, f"{name}: send images as files named 'image', and a mask as 'mask'",
                    param=name, code="invalid_value",
                )  # fmt: skip
            elif name.endswith("[]"):
                fields.setdefault(name[:-2], []).append(value)
            else:
                fields[name] = value
    if not images:
        raise ApiError(400, "image: is missing", param="image", code="missing_required_parameter")
    return EditRequest.model_validate(fields), images, mask


def _edit_json(content: bytes) -> tuple[EditRequest, list[bytes], bytes | None]:
    body = EditRequest.model_validate_json(content)
    if body.images is None:
        raise ApiError(400, "images: is missing", param="images", code="missing_required_parameter")
    images = [
        data_url(f"images[{i}].image_url", image.image_url) for i, image in enumerate(body.images)
    ]
    return (
        body,
        images,
        None if body.mask is None else data_url("mask.image_url", body.mask.image_url),
    )


def _schema(model: type[ImageRequest]) -> dict[str, Any]:
    """The JSON schema of a body, whole."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    for name, value in schema["properties"].items():
        schema["properties"][name] = _inlined(value, parts)
    return schema


def _inlined(value: Any, parts: dict[str, Any]) -> Any:
    """``value`` with its references replaced by what they refer to."""
    if isinstance(value, list):
        return [_inlined(item, parts) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return parts[value["$ref"].rpartition("/")[2]]
    return {key: _inlined(item, parts) for key, item in value.items()}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an edit as a form."""
    file = {"type": "string", "format": "binary"}
    files = {"image": {"type": "array", "items": file}, "mask": file}
    fields = {name: value for name, value in schema["properties"].items() if name != "images"}
    required = ["image", "prompt"]
    return {**schema, "required": required, "properties": {**fields, **files}}


_EDIT = _schema(EditRequest)
GENERATION_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _schema(GenerationRequest)}},
    }
}
EDIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _EDIT},
            "multipart/form-data": {"schema": _form(_EDIT)},
        },
    }
}
