import json

import pytest

from stepwarp.data.formats import read_foreign
from stepwarp.data.learn2reg import read_evaluation_config
from stepwarp.data.manifest import read_manifest
from stepwarp.errors import InputError
from stepwarp.files import read_landmarks, write_text
from stepwarp.files.json import parse_json
from stepwarp.files.label_names import read_label_names
from stepwarp.workflow.folders import RegistrationFolder

READERS = {
    "manifest.json": read_manifest,
    "config.json": read_evaluation_config,
    "points.mrk.json": read_landmarks,
    "names.json": read_label_names,
    "list.json": lambda path: read_foreign(path, path.parent),
    "registration.json": lambda path: RegistrationFolder(path.parent),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"4": "a", "4": "b"}', "the key '4' is there twice"),
        ('{"images": {"a": {}, "a": {}}}', "the key 'a' is there twice"),
        ('{"4": ', "is not JSON, or is cut off, at line 1"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_everywhere(tmp_path, name, text, problem):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_name_that_is_not_utf8_comes_back(tmp_path, ascii_only):
    name = b"J\xf6rg".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "a.json", json.dumps({"path": name}, ensure_ascii=ascii_only))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "J\\udcf6rg" in text
    assert parse_json(text, "a.json") == {"path": name}
