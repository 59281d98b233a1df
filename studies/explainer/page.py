"""Join data, JavaScript and style into one HTML file that asks nothing of anyone.

- `whole_page(data)`: the page
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from fastdiff_lab.lab.widget.assets import joined, style

HERE = Path(__file__).parent / "js"
OF_THE_LAB = (
    "dom", "theme", "looking", "strip", "predict", "scrubber", "run", "race", "history", "architecture", "tour",
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


def _own(ending: str, names: tuple[str, ...]) -> str:
    return "\n".join((HERE / f"{name}.{ending}").read_text(encoding="utf-8") for name in names)
