"""A text file as rows, and what is said when it is none."""

import pytest

from curlora_lab.data import DataError
from curlora_lab.data.text_file import TextFile


def test_paragraphs_between_blank_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\nOne line\r\nand another.\r\n \r\n\r\nSecond \xc3\xa9.\r\n")
    rows = TextFile(path).rows("train")
    assert [row.values["text"] for row in rows] == ["One line\nand another.", "Second é."]
    assert [row.where for row in rows] == ["text.txt:2", "text.txt:6"]
    assert [row.row_id for row in rows] == ["train-0", "train-1"]


@pytest.mark.parametrize(("content", "message"), [(b" \n\n", "holds no text"), (b"\xff\xfe\x00", "no UTF-8 text")])
def test_what_is_no_text_is_named(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextFile(path).rows()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt' can't be read: No such file"):
        TextFile(tmp_path / "none.txt").rows()
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        TextFile(tmp_path).rows()
    with pytest.raises(DataError, match="has no split 'test'; use role=train"):
        TextFile(tmp_path).rows("test")
