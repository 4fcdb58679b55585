"""The data that a page written by ovd holds for its own script."""

import json
import re
from pathlib import Path
from typing import Any


def data_of(page: Path) -> Any:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])  # type: ignore[index]
