"""`python -m ltx2` is the same as the command `ltx2`."""

from ltx2.doors.cli import entry

if __name__ == "__main__":
    entry()
