"""A plain text file as rows: paragraphs between blank lines."""

from pathlib import Path

from curlora_lab.data.faults import DataError
from curlora_lab.data.source import Row


class TextFile:
    """The paragraphs of a text file in UTF-8, one row each in the column ``text``; nothing is read before :meth:`rows`.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def rows(self, role: str = "train") -> list[Row]:
        """All paragraphs.

        Args:
            role: Only ``train``: a file of text has no other splits.

        Raises:
            DataError: If the file is not there, is no text in UTF-8, holds no paragraph, or another role is asked for.
        """
        if role != "train":
            raise DataError(f"{self.path} is a file of text and has no split {role!r}; use role=train.")
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise DataError(f"the text file {str(self.path)!r} can't be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is no UTF-8 text (byte {error.start}); save it as UTF-8.") from error
        found: list[tuple[int, list[str]]] = []
        gap = True
        for number, line in enumerate(lines, start=1):
            if line.strip():
                if gap:
                    found.append((number, []))
                found[-1][1].append(line)
            gap = not line.strip()
        if not found:
            raise DataError(f"{self.path} holds no text.")
        return [
            Row(f"{self.path.name}:{number}", f"train-{index}", {"text": "\n".join(paragraph)})
            for index, (number, paragraph) in enumerate(found)
        ]
