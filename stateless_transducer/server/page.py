"""What the page may do, as a Content Security Policy."""

from __future__ import annotations

import base64
import hashlib
import re


def page_policy(page: str) -> str:
    """The policy of a page: its own inline script and style, this server, and sounds and the worklet in memory."""
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    directives = {
        "default-src": "'none'",
        "script-src": f"{script} blob:",
        "worker-src": "blob:",
        "style-src": style,
        "connect-src": "'self'",
        "media-src": "blob:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hash(page: str, tag: str) -> str:
    """The hash by which a policy knows the one inline element of that kind."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
