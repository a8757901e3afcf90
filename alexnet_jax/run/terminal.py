"""A run's progress on a terminal: one line at the bottom, drawn anew in any width."""

import os
import sys

import tqdm

_LEAST_BAR = 8  # columns


def duration(seconds: float) -> str:
    """Such as 01:40, 2h05 or 121h."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours}h"
    return f"{hours}h{minutes:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def progress_line(
    width: int, *, epoch: float, loss: float | None, images_per_second: float | None, left: float | None
) -> str:
    """What a bar says in `width` columns; `left` in seconds. What is not known yet is left out."""
    parts = [(f"epoch {epoch:.2f}", f"epoch {epoch:.1f}")]  # long and short
    if loss is not None:
        parts.append((f"loss {loss:.3f}", f"loss {loss:.2f}"))
    if images_per_second is not None:
        parts.append((f"{images_per_second:.0f} images/s", f"{images_per_second:.0f}/s"))
    if left is not None:
        parts.append((text := f"left {duration(left)}", text))
    long, short = zip(*parts, strict=True)
    return text if len(text := "  ".join(long)) <= width else " ".join(short)[:width]


class Bar:
    """The line; `is_shown` unless standard error is no terminal."""

    def __init__(self, steps: range) -> None:
        self.is_shown = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=steps.stop,
            initial=steps.start,
            file=sys.stderr,
            bar_format="{desc}",
            dynamic_ncols=True,
            leave=False,
            disable=not self.is_shown,
        )

    def width(self) -> int:
        """Columns of the terminal, but for the last one, after which some begin a new line."""
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1

    def advance(self, text: str) -> None:
        """Says that a step is done."""
        has_room = len(text) + 3 + _LEAST_BAR <= self.width()
        self._bar.bar_format = "{desc} |{bar}| " if has_room else "{desc}"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """Shows a text at once, such as what is being done instead of a step."""
        self._bar.set_description_str(text)

    def close(self) -> None:
        """Removes the line."""
        self._bar.close()
