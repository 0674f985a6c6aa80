"""The door to Modal: the topology is `ltx2_video.py` in the repository's root, what its functions do stands here.

This module is also the command `ltx2 modal`: `doctor` looks at an account and a deployment before they cost anything,
`smoke URL` makes one video on a deployed service.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ltx2.doors.service_flags import show_as

if TYPE_CHECKING:
    from ltx2.doors.flags import Parser
    from ltx2.spec.settings import Settings

EXAMPLES = """in this order:
  ltx2 modal doctor            what would go wrong, and what a clip will cost; starts nothing
  ltx2 modal prices            dollars of a clip, with containers that stay or leave
  modal deploy ltx2_video.py   puts the service there
  ltx2 modal smoke URL         one video end to end; reads the token from ENTER_TOKEN

docs/06-modal.md says what an account needs before."""


def add_modal(parser: Parser) -> None:
    """The flags of `ltx2 modal`."""
    show_as(parser, "ACT [URL] [FLAGS]", EXAMPLES)
    parser.add_argument("act", choices=("doctor", "smoke", "prices"), metavar="ACT", help="doctor, smoke or prices")
    parser.add_argument("url", nargs="?", metavar="URL", help="smoke: the address that `modal deploy` printed")
    parser.add_argument(
        "--prompt", default="a red ball bounces on a dark background", help="smoke: what to make (default: %(default)s)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="smoke.mp4", help="smoke: the .mp4 to write (default: %(default)s)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="smoke: how long to wait for the video, the start of a container included (default: 1800)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def modal_command(values: argparse.Namespace, settings: Settings) -> int:
    """Run one act. Exit codes: 0 all is well, 1 something is wrong, 2 refused."""
    if values.act == "doctor":
        from ltx2.doors.modal.doctor import doctor

        return doctor(values.json)
    if values.act == "prices":
        from ltx2.doors.modal.prices import show

        return show(values.json)
    from ltx2.doors.modal.smoke import smoke

    return smoke(values)
