"""Text cleaning as CLIP's tokenizer does it. Imports neither torch nor open_clip.

The result is what open_clip splits into tokens, except that these are left unchanged here: text damaged by a wrong
encoding, entities in capitals (`&EACUTE;`), the letters ŉ and ſ, and the escape sequences of terminals.
"""

import html
import re
import unicodedata

_STRAIGHT = str.maketrans(
    {
        **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        "\u3000": " ",
    }
)
_LIGATURES = "\u0132\u0133\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06"
_COMPATIBLE = re.compile(f"[{_LIGATURES}\uff01-\uffef]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufff9-\ufffc\u206a-\u206f]")


def clean(text: str) -> str:
    """Replace entities, typographic quotes, ligatures and wide letters, collapse white space, and lowercase."""
    text = html.unescape(html.unescape(text)).translate(_STRAIGHT)
    text = _COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = unicodedata.normalize("NFC", _CONTROL.sub("", text))
    return " ".join(text.split()).lower()
