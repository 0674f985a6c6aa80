"""A contact sheet: eight frames of a clip in a row and the spectrogram of its sound, to look at results as pictures."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ltx2.judge.sound import spectrogram

FRAMES = 8
GAP = 4
TITLE = 16
FLOOR_DB = -70.0
HIGHEST_HZ = 4000.0


def contact_sheet(
    video: NDArray[np.uint8], audio: NDArray[np.float32] | None, sampling_rate: int, title: str
) -> Image.Image:
    """Draw `video` [F, H, W, 3] and `audio` [2, S] (left above right, 0 to 4 kHz, low below) under a line of text."""
    chosen = np.linspace(0, len(video) - 1, FRAMES).round().astype(int)
    pictures = [Image.fromarray(video[index]) for index in chosen]
    if audio is not None:
        pictures.append(_spectrogram_picture(audio, sampling_rate, pictures[0].size))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height + TITLE), "white")
    ImageDraw.Draw(sheet).text((2, 2), title, fill="black")
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (column * (width + GAP), TITLE))
    return sheet


def stack(sheets: list[Image.Image]) -> Image.Image:
    """Put contact sheets under each other."""
    size = max(sheet.width for sheet in sheets), sum(sheet.height + GAP for sheet in sheets)
    page = Image.new("RGB", size, "white")
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height + GAP
    return page


def _spectrogram_picture(audio: NDArray[np.float32], sampling_rate: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    page = Image.new("L", size)
    for row, channel in enumerate(audio):
        power, _, hertz = spectrogram(channel, sampling_rate)
        decibels = 10 * np.log10(power[:, hertz <= HIGHEST_HZ].T[::-1] + 1e-12)
        grey = (255 * np.clip(1 - decibels / FLOOR_DB, 0, 1)).astype(np.uint8)
        part = Image.fromarray(grey).resize((width, height // 2 - 1))
        page.paste(part, (0, row * (height - height // 2 + 1)))
    return page.convert("RGB")
