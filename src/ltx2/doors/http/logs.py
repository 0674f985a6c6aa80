"""One line of JSON for each event, on stderr: time, level, event, the request that it belongs to; never a prompt."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

# Libraries that say too much: uvicorn would write a line with the path of each request, and its query.
SILENT = ("uvicorn.access", "httpx", "httpcore")
# Values under such names are never written, whoever logs them.
HIDDEN = ("token_value", "secret", "authorization", "password", "webhook_secret")
PROMPTS = ("prompt", "negative_prompt")


def configure(level: str = "info", prompts: bool = False) -> None:
    """Send everything that is logged in this process to stderr as JSON; `prompts` lets prompts through."""
    hidden = HIDDEN if prompts else HIDDEN + PROMPTS

    def redact(_: Any, __: str, event: EventDict) -> EventDict:
        event.pop("color_message", None)
        return {name: "(hidden)" if name in hidden else value for name, value in event.items()}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    # JSON escapes line breaks, so that nothing that a client sends can begin a line of its own.
    render = [ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer(default=str)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=shared, processors=render))
    # A closed stderr is no reason to stop serving.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", *SILENT):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name not in SILENT
