import pytest

from stepwarp.errors import InputError
from stepwarp.printable import counted, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jörg 試験 é [1]", "Jörg 試験 é [1]"),
        ("a\x1b]0;title\x07", "a\\x1b]0;title\\x07"),
        ("a\nverdict pass\r\t", "a\\nverdict pass\\r\\t"),
        ("\x9b2J\x7f\x00", "\\x9b2J\\x7f\\x00"),
        ("\u202egnp.exe\u2066\u200b\ufeff\u00ad", "\\u202egnp.exe\\u2066\\u200b\\ufeff\\xad"),
        ("\u2028\u2029\u3164\ufe0f\U000e0041", "\\u2028\\u2029\\u3164\\ufe0f\\U000e0041"),
        ("J\udcf6rg", "J\\udcf6rg"),
    ],
)
def test_what_is_not_seen_is_shown_once(text, expected):
    assert shown(text) == shown(shown(text)) == str(InputError(text)) == expected


def test_what_is_kept():
    assert shown("a\n\x1b", keep="\n") == "a\n\\x1b"


def test_words_go_with_their_numbers():
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [counted(n, "voxel folds", "voxels fold") for n in (1, 5)] == ["1 voxel folds", "5 voxels fold"]
