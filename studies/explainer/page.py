"""Join data, JavaScript and style into one HTML file that asks nothing of anyone.

- `whole_page(data)`: the page
- `data_of(page)`: its data again, to put newer JavaScript around them
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fastdiff_lab.lab.widget.assets import joined, style

HERE = Path(__file__).parent / "js"
OF_THE_LAB = (
    "dom", "theme", "tips", "looking", "strip", "form", "predict", "scrubber", "run", "race", "history", "architecture", "tour",
)  # fmt: skip
OWN = ("costs", "model", "tiles", "pictures", "film", "stops", "page")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hash}'">
<link rel="icon" href="data:,">
<title>Which steps need the encoder? An explainer of encoder propagation</title>
<style>
{style}
</style>
</head>
<body>
<main id="page"><noscript><p>This page computes and draws with JavaScript, which is off in this browser.</p></noscript></main>
<script type="application/json" id="data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def whole_page(data: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
        data: What `measured.costs_of` and `measured.images_of` give.
    """
    script = f"\n{joined(OF_THE_LAB)}\n{_own('js', OWN)}\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    told = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return PAGE.format(hash=digest, style=style() + _own("css", ("page",)), data=told, script=script)


def data_of(page: str) -> dict[str, Any]:
    """The data of a page that `whole_page` made. Raises ValueError for another one."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    if found is None:
        raise ValueError("a page without data given; accepted: one that `python -m studies.explainer` wrote")
    return json.loads(found[1])


def _own(ending: str, names: tuple[str, ...]) -> str:
    return "\n".join((HERE / f"{name}.{ending}").read_text(encoding="utf-8") for name in names)
