"""What a stranger may read of a text that was written for whoever runs the machine: no path, no secret, no traceback."""

from __future__ import annotations

import re

from ltx2.spec.errors import GenerationFailed, Ltx2Error

HIDDEN = "…"
LONGEST = 1000
SECRETS = re.compile(
    r"\bltx2_[0-9A-Za-z]{10}_\w+|\bwhsec_\S+|\b(?:hf|sk|pk|ghp)[_-]\w{12,}|\b0x[0-9a-fA-F]{6,}"
    r"|(?<=://)[^/@\s]+(?=@)|(?i:(?<=bearer )|(?<=token=)|(?<=secret=)|(?<=password=)|(?<=sig=)|(?<=key=))[^\s&,;'\"]+"
)
# Routes of this package look like paths, and stand in hints.
ROUTES = r"(?:v1|generate_web|generate_post|enqueue|status|result|livez|readyz|metrics|version|openapi\.json)\b"
PATHS = re.compile(
    # In quotes a path may hold anything; elsewhere it ends where a word of the sentence would.
    rf"(?P<quote>['\"])(?:file://|~?/(?!/|{ROUTES})|\.{{1,2}}/)[^'\"]*(?P=quote)"
    rf"|(?:file://|(?<![\w/.…])~?/(?!/|{ROUTES})(?=\w|\.)|(?<![\w/.])\.{{1,2}}/)[^\s'\"<>|,;:()\[\]{{}}]+"
)


def discreet(text: str) -> str:
    """One line of a text, with paths, secrets and addresses in memory left out."""
    lines = text.strip().splitlines() or [""]
    # The last line of a traceback says what happened.
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return PATHS.sub(HIDDEN, SECRETS.sub(HIDDEN, line))[:LONGEST]


def told(error: Exception) -> str:
    """What a client hears of an error of its job: ours in our words, of any other only the kind."""
    if isinstance(error, Ltx2Error) and not is_unforeseen(error):
        return discreet(str(error))
    return f"the engine broke: {type(error.__cause__ or error).__name__}"


def is_unforeseen(error: Ltx2Error) -> bool:
    """Whether it only wraps what nobody foresaw, in whose text may stand anything."""
    return type(error) is GenerationFailed and error.__cause__ is not None
