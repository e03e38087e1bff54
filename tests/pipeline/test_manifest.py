"""Reading a manifest: what is no manifest of acfuse is refused in one line that names the field."""

import contextlib
import json
import math
from pathlib import Path

import pytest

from acfuse.errors import AcfuseError, InputError, UnsafeError
from acfuse.pipeline.manifest import Manifest, describe
from acfuse.pipeline.schema import SCHEMAS
from acfuse.reports.render import report_of_manifest
from acfuse.system.atomic_write import Written
from acfuse.system.escape import as_json
from tests.reports.runs import bare, conversion

ROOT = Path(__file__).parents[2]
HASH = "0" * 64
OTHER = (None, True, -1, 3, 0.5, "", "a\0\ud800", [], [None], {}, {"": 1}, 10**30, math.inf)


def manifest(run=conversion):
    """What a conversion writes, as it is read."""
    written = {Path("a.fused.pth"): Written(1, HASH)}
    return json.loads(as_json(describe(run(), written)))


def read(folder, data):
    path = folder / "a.acfuse.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return Manifest.read(path)


def places(value, path=()):
    """The values of a document by their paths; of a list the first alone."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield from places(part, (*path, key))


def changed(data, path, value=None, *, remove=False):
    """The same document with another value at a place, or with none."""
    other = json.loads(json.dumps(data))
    *above, last = path
    part = other
    for step in above:
        part = part[step]
    if remove:
        del part[last]
    else:
        part[last] = value
    return other


@pytest.mark.parametrize("run", [conversion, bare])
def test_what_is_written_can_be_read(tmp_path, run):
    assert read(tmp_path, manifest(run)).data == manifest(run)


def test_a_file_may_have_a_name_that_is_no_text(tmp_path):
    data = changed(manifest(), ("source", "file"), "m\udc80.pth")
    assert read(tmp_path, data).job({}).source.name == "m\udc80.pth"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("outputs",), [], "a.acfuse.json, outputs: expected `array` of length >= 1"),
        (("outputs", 0, "bytes"), "3", "outputs[0].bytes: expected `int`, got `str`"),
        (("outputs", 0, "sha256"), "3", "outputs[0].sha256: expected `str` matching regex"),
        (("source", "file"), "a\0b", "source.file: expected `str` matching regex"),
        (("inputs", "samples"), -1, "inputs.samples: expected `int` >= 0"),
        (("found", 0, "convolutions"), [1], "found[0].convolutions: expected `array` of length 2"),
        (("limits", "tensors"), 0.5, "limits.tensors: expected `int`, got `float`"),
        (("bn_eps",), "\udc80", "a.acfuse.json: 'utf-8' codec can't encode"),
        (("model_args",), None, "model_args: expected `object`, got `null`"),
        (("schema_version",), 2, "a.acfuse.json has schema version 2, not 1"),
        (("schema_version",), "a\x1b\n", "a.acfuse.json has schema version"),
    ],
)
def test_a_message_names_the_field_and_what_is_expected(tmp_path, path, value, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, changed(manifest(), path, value))
    text = str(caught.value)
    assert message in text
    assert text.startswith("a.acfuse.json")
    assert text.endswith("convert again.")
    assert "\n" not in text


def test_a_message_names_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^a.acfuse.json: it lacks `found`; convert again\.$"):
        read(tmp_path, changed(manifest(), ("found",), remove=True))
    with pytest.raises(InputError, match=r"^a.acfuse.json, source: it lacks `sha256`; convert"):
        read(tmp_path, changed(manifest(), ("source", "sha256"), remove=True))


@pytest.mark.parametrize("text", ["", "{", "\xff", "null", "[]", "3", "[" * 100_000])
def test_what_is_no_object_is_no_manifest(tmp_path, text):
    with pytest.raises(InputError, match=r"^a\.acfuse\.json[ :]"):
        read(tmp_path, text)


def test_too_many_values_are_refused_before_they_are_made(tmp_path):
    with pytest.raises(UnsafeError, match="values"):
        read(tmp_path, "[" + "0," * 1_000_001 + "0]")


def test_whatever_is_altered_no_error_is_a_bug(tmp_path):
    """What can be read has all that a job and a report ask of it."""
    data, refused = manifest(), 0
    altered = [changed(data, path, remove=True) for path in places(data)]
    altered += [changed(data, path, value) for path in places(data) for value in OTHER]
    for other in altered:
        try:
            held = read(tmp_path, other)
        except InputError:
            refused += 1
            continue
        report_of_manifest(held)
        held.changed()
        with contextlib.suppress(AcfuseError):  # --model, patterns: whatever those find wrong
            held.job({})
    assert 0 < refused < len(altered)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_that_of_the_types(name):
    text = (ROOT / f"docs/schema/{name}.schema.json").read_text(encoding="utf-8")
    assert text == json.dumps(SCHEMAS[name](), indent=2) + "\n", "python -m acfuse.pipeline.schema"


@pytest.mark.parametrize("run", [conversion, bare])
def test_a_manifest_is_what_its_schema_says(run):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(manifest(run), SCHEMAS["manifest"]())
    for path in (("outputs",), ("source",), ("found", 0, "where")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(manifest(run), path, 3), SCHEMAS["manifest"]())
