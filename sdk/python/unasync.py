"""Makes ``src/mayfly/_sync.py`` of ``src/mayfly/_async.py``; with ``--check``, says whether it is up to date."""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "src" / "mayfly"
RULES = [
    (
        r'\A"""[^"]*"""',
        '"""The client for programs without an event loop: made of ``_async.py`` by ``unasync.py``."""',
    ),
    (r"import anyio\nimport anyio.to_thread\n", ""),
    (r"await anyio\.to_thread\.run_sync\((\w+\.\w+), ([^)]*)\)", r"\1(\2)"),
    (r"await anyio\.sleep", "time.sleep"),
    (r"await (\w+)\.__anext__\(\)", r"next(\1)"),
    (r"\(await (\w+\.[^\n]*?\))\)([.\[])", r"\1\2"),
    (r"\bawait ", ""),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bAsync(Client|HTTPTransport|Session|Background|Iterator|Iterable)\b", r"\1"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\ba(iter_lines|iter_bytes|read|close)\b", r"\1"),
]


def unasync(text: str) -> str:
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    made = unasync((FOLDER / "_async.py").read_text())
    target = FOLDER / "_sync.py"
    if "--check" in sys.argv:
        sys.exit(None if target.read_text() == made else f"{target} is not what {__file__} makes: run it")
    target.write_text(made)
