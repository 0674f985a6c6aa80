"""Progress of a running generation on stderr: a bar for each phase on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx2.spec.events import Progress


class Reporter:
    """Shows Progress events; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.phase = ""
        self.started = time.time()
        self.bar: Any = None

    def show(self, event: Progress) -> None:
        """Move the bar of the event's phase, or print the phase's line when it is done."""
        if self.quiet:
            return
        if event.phase != self.phase:
            self.close()
            self.phase = event.phase
            self.bar = _bar(event, self.started) if sys.stderr.isatty() else None
        if self.bar is not None:
            self.bar.n = event.step
            self.bar.refresh()
        elif event.step == event.steps:
            self.say(f"{event.phase:<9} {event.step}/{event.steps}  {time.time() - self.started:.1f} s")
        if event.step == event.steps:
            self.started = time.time()

    def say(self, text: str) -> None:
        """One line on stderr that does not break a bar."""
        if not self.quiet:
            self.close()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar of the present phase."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _bar(event: Progress, started: float) -> Any:
    from tqdm import tqdm

    layout = "{desc:<9} {bar:30} {n_fmt}/{total_fmt}  {elapsed}"
    # A fixed size, since some terminals of containers say that they have none, and then nothing would be drawn.
    bar = tqdm(total=event.steps, desc=event.phase, bar_format=layout, file=sys.stderr, ncols=72, nrows=20)
    # The phase began when the one before it ended, not with its first event.
    bar.start_t = started
    return bar
