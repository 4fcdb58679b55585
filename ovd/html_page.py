"""One HTML file that holds all it needs: style, script and data. It opens from disk and asks no network for anything.

The parts of a page are in `ovd/assets/pages/`: `page.css` and `page.js` of all pages, and NAME.html and NAME.js of one.
Scripts build every element from the data as text, never as markup, and the page's policy lets no other script run.
"""

import html
import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "assets" / "pages"


def fill_page(name: str, *, title: str, data: Any) -> str:
    """The page as text.

    Args:
        name: of its parts.
        title: that the browser shows.
        data: what JSON can hold; the script finds it as `data`.

    Raises:
        ValueError: a number in the data is not finite.
    """
    script = (PAGES / "page.js").read_text(encoding="utf-8") + (PAGES / f"{name}.js").read_text(encoding="utf-8")
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; script-src {_source_of(script)}; style-src {_source_of(style)}",
        "style": style,
        "body": (PAGES / f"{name}.html").read_text(encoding="utf-8"),
        # An element of a script ends at "</script", and a comment in it begins with "<!--": no "<", neither.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": script,
    }
    frame = (PAGES / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)


def _source_of(text: str) -> str:
    """How a content security policy names a script or a style that is written in the page."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
