"""The description of the API in OpenAPI's format, and as an HTML page."""

import json
from html import escape
from typing import Any

Json = dict[str, Any]

_REFUSALS = {
    400: "The form cannot be read, or a field is missing or wrong.",
    403: "The request comes from a page of another site.",
    408: "The request was not sent in time.",
    413: "The picture has too many bytes or pixels.",
    415: "The file is not a readable picture, or the body is not a form.",
    421: "The server does not accept the host name of the request.",
    431: "The address and the headers are too long.",
    503: "The server is busy; try again.",
}


def describe_api(info: Json) -> Json:
    """Return the OpenAPI 3.1 description of a server.

    Args:
        info: content of the server's /api/info.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Detector {info['model']}",
            "version": info["version"],
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Detect classes of any name in a picture: send the picture and the names, and get boxes.",
        },
        "paths": {
            "/api/detect": {"post": _detect(info)},
            "/api/info": _get("About the detector and the limits of this server", "Info", example=info),
            "/openapi.json": _get("This description", None),
            "/docs": _get("This description as a page", None, media="text/html"),
            "/health": _get("Whether the server answers", None),
            "/metrics": _get("Metrics of the server, for Prometheus", None, media="text/plain"),
            "/": _get("The page", None, media="text/html"),
        },
        "components": {"schemas": _schemas()},
    }


def _detect(info: Json) -> Json:
    limits, least = info["limits"], info["threshold"]
    fields = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": f"The picture: {', '.join(info['formats'])}; at most {limits['megabytes']:g} megabytes and "
            f"{limits['megapixels']:g} megapixels.",
        },
        "names": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Class names to detect, in any words; several in one field are separated by commas or line "
            f"ends. At most {limits['names']} names of {limits['name_length']} characters.",
        },
        "example": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "Example pictures of classes, cropped tightly, in addition to names or instead of them. At "
            f"most {limits['examples']}.",
        },
        "example_name": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The class name of each example, in the order of the examples. Several may have one name; "
            "a name that is also among 'names' is detected by its text and its examples.",
        },
        "threshold": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": least,
            "description": "Minimum score of a box, for all names; names such as 'keyboard:0.95' do not set one.",
        },
        "limit": {
            "type": "integer",
            "minimum": 1,
            "maximum": limits["boxes"],
            "default": limits["boxes"],
            "description": "Maximum number of boxes, those with the highest scores.",
        },
        "overlapping": {
            "type": "boolean",
            "default": False,
            "description": "Whether overlapping boxes of different names are kept; by default only the best one is.",
        },
    }
    schema = {
        "type": "object",
        "required": ["image"],
        "anyOf": [{"required": ["names"]}, {"required": ["example", "example_name"]}],
        "additionalProperties": False,
        "properties": fields,
    }
    refusals = {
        str(status): {"description": text, "content": _content("application/json", "Error")}
        for status, text in _REFUSALS.items()
    }
    return {
        "summary": "Detect named classes in a picture",
        "operationId": "detect",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "The boxes, best first, in COCO's form.",
                "content": _content("application/json", "Found"),
            },
            **refusals,
        },
    }


def _get(summary: str, schema: str | None, *, media: str = "application/json", example: Json | None = None) -> Json:
    content = _content(media, schema)
    if example is not None:
        shortened = {**example, "trained_names": example["trained_names"][:3]}
        content[media]["example"] = shortened
    return {"get": {"summary": summary, "responses": {"200": {"description": summary, "content": content}}}}


def _content(media: str, schema: str | None) -> Json:
    return {media: {} if schema is None else {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _schemas() -> Json:
    number, integer, text = {"type": "number"}, {"type": "integer"}, {"type": "string"}

    def record(**properties: Json) -> Json:
        return {"type": "object", "required": list(properties), "properties": properties}

    def rows(**properties: Json) -> Json:
        return {"type": "array", "items": record(**properties)}

    box = {
        "type": "array",
        "items": number,
        "minItems": 4,
        "maxItems": 4,
        "description": "x and y of the upper left corner, width and height, in pixels of the picture as displayed.",
    }
    color = {
        "type": "array",
        "items": integer,
        "minItems": 3,
        "maxItems": 3,
        "description": "Red, green and blue, 0 to 255; a name has the same color in all pictures.",
    }
    score = {
        "type": "number",
        "description": "From 0 to 1; for a calibrated detector, the probability that the box is correct.",
    }
    return {
        "Found": record(
            info=record(detector=text, threshold=number, calibrated={"type": "boolean"}, seconds=number),
            images=rows(id=integer, file_name=text, width=integer, height=integer),
            categories=rows(id=integer, name=text, color=color),
            annotations=rows(
                id=integer, image_id=integer, category_id=integer, bbox=box, area=number, iscrowd=integer, score=score
            ),
        ),
        "Info": record(
            model=text,
            version=text,
            threshold={"type": "number", "description": "Default minimum score of a box."},
            calibrated={"type": "boolean", "description": "Whether scores are probabilities."},
            size={"type": "integer", "description": "Longest side that pictures are resized to, in pixels."},
            device=text,
            trained_names={"type": "array", "items": text},
            formats={"type": "array", "items": text},
            limits={"type": "object", "additionalProperties": number},
        ),
        "Error": record(error={"type": "string", "description": "One plain sentence."}),
    }


def docs_page(api: Json) -> str:
    """Return the description of an API as an HTML page, which loads nothing from other sites."""
    parts = [
        _operation(path, method, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f"<section id='{escape(name)}'><h3>{escape(name)}</h3>{_schema_table(schema)}</section>"
        for name, schema in api["components"]["schemas"].items()
    ]
    title = escape(api["info"]["title"])
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}: API</title><link rel='icon' href='data:,'><link rel='stylesheet' href='style.css'></head>"
        f"<body><header><h1>{title}: API</h1><nav><a href='./'>Page</a> <a href='openapi.json'>OpenAPI</a></nav>"
        f"</header><main class='docs'><p>{escape(api['info']['description'])}</p>{''.join(parts)}"
        f"<h2>Schemas of replies</h2>{''.join(schemas)}</main></body></html>"
    )


def _operation(path: str, method: str, operation: Json) -> str:
    parts = [f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>"]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body: {escape(media)}</h3>{_schema_table(content['schema'])}")
    rows = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(reply['description'])}</td><td>{_media(reply)}</td></tr>"
        for status, reply in operation["responses"].items()
    )
    parts.append(f"<table><thead><tr><th>Status<th>Meaning<th>Form</tr></thead><tbody>{rows}</tbody></table>")
    for reply in operation["responses"].values():
        for content in reply["content"].values():
            if "example" in content:
                parts.append(f"<h3>Example</h3><pre>{escape(json.dumps(content['example'], indent=1))}</pre>")
    return "".join(parts) + "</section>"


def _media(reply: Json) -> str:
    return " ".join(
        _type(content["schema"]) if "schema" in content else escape(media)
        for media, content in reply["content"].items()
    )


def _schema_table(schema: Json) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(value)}</td><td>{'yes' if name in required else 'no'}</td>"
        f"<td>{escape(value.get('description', ''))}"
        f"{' Default: ' + escape(json.dumps(value['default'])) + '.' if 'default' in value else ''}</td></tr>"
        for name, value in schema["properties"].items()
    )
    head = "<tr><th>Field<th>Type<th>Required<th>Meaning</tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _type(schema: Json) -> str:
    """Return the type of a value in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object" and "properties" in schema:
        fields = ", ".join(f"<code>{escape(name)}</code>" for name in schema["properties"])
        return f"record ({fields})"
    return "file" if schema.get("format") == "binary" else escape(schema["type"])
