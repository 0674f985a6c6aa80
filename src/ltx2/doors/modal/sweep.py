"""The sweep of a deployment without a database: jobs that nobody looks at are ended, old files and pages go."""

from __future__ import annotations

import time

from ltx2.doors.modal.board import Board
from ltx2.doors.modal.ledger import Ledger
from ltx2.doors.modal.outputs import Outputs
from ltx2.doors.modal.queue import DictQueue

# A folder that no job knows may be of one that is just being accepted.
YOUNG = 3600.0


def sweep(queue: DictQueue, outputs: Outputs, ledger: Ledger, keep: float) -> dict[str, int]:
    """End open jobs whose calls are over, forget jobs that ended `keep` seconds ago, and delete their files."""
    board, now = queue.board, time.time()
    counts = {"settled": 0, "forgotten": 0, "files": 0}
    for job in board.open().values():
        record = board.record(job["token"], job["id"])
        if record is not None:
            queue.settle(record)
            counts["settled"] += board.ending(record.number) is not None
    counts["forgotten"] = _forget(board, now - keep)
    counts["files"] = _clear(board, outputs)
    ledger.clean()
    return counts


def _forget(board: Board, before: float) -> int:
    gone = 0
    for number, token, id_ in board.everything():
        record, ending = board.record(token, id_), board.ending(number)
        if record is not None and ending is not None and ending["at"] < before:
            board.forget(record)
            gone += 1
    return gone


def _clear(board: Board, outputs: Outputs) -> int:
    """Delete folders of jobs that there are no more, and attempts that did not count; one commit for all."""
    known = {number: (token, id_) for number, token, id_ in board.everything()}
    gone = 0
    for folder in outputs.folder.glob("[0-9]*"):
        if not folder.name.isdigit():
            continue
        number = int(folder.name)
        if number not in known:
            # Job numbers are times in nanoseconds.
            if time.time() - number / 1e9 > YOUNG:
                outputs.discard(number)
                gone += 1
            continue
        ending = board.ending(number)
        if ending is None:
            continue
        for attempt in folder.glob("[0-9]*"):
            if attempt.name != str(ending["attempt"]) or ending["state"] != "done":
                outputs.discard(number, int(attempt.name))
                gone += 1
    if gone:
        outputs.volume.commit()
    return gone
