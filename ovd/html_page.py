"""Self-contained HTML files with style, script and data, which open from disk and need no network.

The parts of the pages are in `ovd/assets/pages/`: `page.html`, `page.css` and `page.js` for all pages, and NAME.html
and NAME.js for each. Scripts insert data as text, never as markup, and the content security policy of the page blocks
all other scripts.
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
    """Return the HTML of a page.

    Args:
        name: name of the page's parts.
        title: title that the browser shows.
        data: JSON-serializable data, which the script gets as `data`.

    Raises:
        ValueError: a number in the data is not finite.
    """
    script = (PAGES / "page.js").read_text(encoding="utf-8") + (PAGES / f"{name}.js").read_text(encoding="utf-8")
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title.encode(errors="replace").decode()),  # a file name may have bytes that are no text
        "policy": f"default-src 'none'; img-src data:; script-src {_source_of(script)}; style-src {_source_of(style)}",
        "style": style,
        "body": (PAGES / f"{name}.html").read_text(encoding="utf-8"),
        # "</script" would end the script element and "<!--" would begin a comment in it, so every "<" is escaped.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": script,
    }
    frame = (PAGES / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)


def _source_of(text: str) -> str:
    """Return the content security policy source of an inline script or style: its hash."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
