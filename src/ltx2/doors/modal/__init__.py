"""The door to Modal: the topology is `ltx2_video.py` in the repository's root, what its functions do stands here.

This module is also the command `ltx2 modal`: `doctor` looks at an account and a deployment before they cost anything,
`smoke URL` makes one video on a deployed service.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltx2.doors.flags import Parser
    from ltx2.spec.settings import Settings


def add_modal(parser: Parser) -> None:
    """The flags of `ltx2 modal`."""
    parser.add_argument("act", choices=("doctor", "smoke", "prices"), help="what to do")
    parser.add_argument("url", nargs="?", metavar="URL", help="smoke: the address that `modal deploy` printed")
    parser.add_argument("--prompt", default="a red ball bounces on a dark background", help="smoke: of the video")
    parser.add_argument("-o", "--output", metavar="FILE", default="smoke.mp4", help="smoke: the .mp4 to write")
    parser.add_argument(
        "--wait", type=float, default=1800.0, metavar="SECONDS", help="smoke: patience, cold start included"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


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
