"""Patterns that users bring: as TOML, by plug-ins, on the command line."""

import inspect
import json
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch

import acfuse
from acfuse.errors import InputError, UsageError
from acfuse.files.pattern_file import BYTES, LINE
from acfuse.patterns import PATTERNS, Pattern, known_patterns, registry, seq
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.registry import assumed
from acfuse.patterns.toml_files import read_patterns, to_toml
from acfuse.sources.bare import BareSource
from acfuse.sources.base import FindOptions
from tests.bounds import assert_within, gamma, rounding
from tests.cli.command import refused, run, worked
from tests.patterns import house

ONE = '[[pattern]]\nname = "mine"\nblock = "a + b"\nfused = "c"\n'
OLD = {  # what four settings were called before, what they are called, and a value as TOML
    "tail": ("ignore", '["act"]'),
    "alone": ("ambiguity", '"it may be two"'),
    "claim": ("assumption", '"it is one"'),
    "witness": ("requires", '"a.bias"'),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    house.write(tmp_path)
    registry.plug_ins.cache_clear()
    yield
    registry.plug_ins.cache_clear()


def shown(command):
    """What docs/patterns.md shows below a command."""
    return house.PAGE.split(f"$ {command}\n")[1].split("```")[0]


def test_the_example_of_the_page(tmp_path):
    command = "patterns test house.toml house.pth"
    assert run(*command.split()).stdout == shown(f"acfuse {command}")
    worked(run(*["convert", "house.pth", "--patterns", "house.toml"]))
    fused = torch.load("house.fused.pth", weights_only=True)
    for i, stage in enumerate(house.network().stages[:2]):
        stage.act = torch.nn.Identity()
        weight, bias = (fused[f"stages.{i}.deploy.{kind}"] for kind in ("weight", "bias"))
        image = torch.randn(2, weight.shape[1], 7, 9)
        given = torch.nn.functional.conv2d(image, weight, bias, padding=1)
        assert_within(given, stage(image), rounding(stage, image, dtype=torch.float32))
        assert f"stages.{i}.main.weight" not in fused
        assert f"stages.{i}.act.weight" in fused
    assert "stages.2.main.weight" in fused


def test_a_pattern_labels_a_live_model_too():
    model = house.House(6, 6).eval()
    assert acfuse.fuse(model).found[0].pattern is None
    found = acfuse.fuse(model, patterns=known_patterns(["house.toml"])).found[0]
    assert (found.pattern, found.names) == ("house", ("deploy",))


def test_the_file_may_be_named_by_the_environment_or_the_configuration(tmp_path):
    worked(run("convert", "house.pth", env={"ACFUSE_PATTERNS": "house.toml"}))
    (tmp_path / "acfuse.toml").write_text('patterns = "house.toml"\n')
    worked(run("convert", "house.pth", "--force"))
    assert "house " in worked(run("patterns")).stdout


def test_verify_reads_the_file_again_and_knows_it_by_its_hash(tmp_path):
    worked(run("convert", "house.pth", "--patterns", "house.toml"))
    data = json.loads((tmp_path / "house.fused.acfuse.json").read_text())
    (record,) = data["patterns"]
    assert record["file"] == "house.toml"
    worked(run("verify"))
    changed = house.toml().replace("since 2024", "since 2025")
    (tmp_path / "house.toml").write_text(changed)
    refused_after(run("verify"), 1, "house.toml is not the file")
    (tmp_path / "house.toml").unlink()
    refused_after(run("verify"), 3, "house.toml")


def refused_after(result, code, words):
    assert result.exit_code == code
    assert words in result.stderr


def test_they_are_listed_with_their_owner():
    lines = worked(run("patterns", "--patterns", "house.toml")).stdout.splitlines()
    assert lines[1].split()[:5] == ["house", "deploy", "1e-05", "yes", "house.toml"]
    listed = run("patterns", "--patterns", "house.toml", "--format", "json").json
    assert [p["owner"] for p in listed][:2] == ["house.toml", "acfuse"]
    told = run("patterns", "show", "house", "--patterns", "house.toml").stdout
    assert "block    main > main_bn + side > side_bn + [skip_bn]" in told
    assert "owner    house.toml" in told


def test_a_trial_says_which_shape_differs(tmp_path):
    text = house.toml().replace('"main >', '"main (5x5) >')
    (tmp_path / "house.toml").write_text(text)
    result = run("patterns", "test", "house.toml", "house.pth")
    assert result.exit_code == 5
    assert "main has a kernel of (3, 3), where its pattern has (5, 5)" in result.stdout
    assert "side [6, 6, 1, 1]" in result.stdout
    tried = run("patterns", "test", "house.toml", "house.pth", "--format", "json").json
    assert {trial["where"] for trial in tried} == {"stages.0", "stages.1", "stages.2"}
    assert all(trial["why"] for trial in tried)
    (tmp_path / "house.toml").write_text(ONE)
    assert "no two of its names" in run("patterns", "test", "house.toml", "house.pth").stdout


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_can_be_written_as_toml(pattern, tmp_path):
    (tmp_path / "all.toml").write_text(to_toml(pattern), encoding="utf-8")
    assert read_patterns(tmp_path / "all.toml") == (pattern,)


@pytest.mark.parametrize("old", OLD)
def test_a_setting_may_have_its_old_name_in_a_file(old):
    new, value = OLD[old]
    before, now = house.Path("before.toml"), house.Path("now.toml")
    before.write_text(f"{ONE}source = 'us'\n{old} = {value}\n")
    now.write_text(f"{ONE}source = 'us'\n{new} = {value}\n")
    ((first,), (second,)) = read_patterns(before), read_patterns(now)
    assert first == second
    assert getattr(first, new)
    assert to_toml(first) == to_toml(second)
    assert f"\n{new} = {value}\n" in to_toml(first)
    assert f"{old} =" not in to_toml(first)


@pytest.mark.parametrize("old", OLD)
def test_a_setting_may_have_its_old_name_in_code(old):
    new, value = OLD[old]
    given = tuple(json.loads(value)) if old == "tail" else json.loads(value)
    before = Pattern("mine", seq("a") + "b", "c", "", **{old: given})
    assert before == Pattern("mine", seq("a") + "b", "c", "", **{new: given})
    assert getattr(before, old) == getattr(before, new) == given
    with pytest.raises(TypeError, match=f"{old} is the old name of {new}: give one of them"):
        Pattern("mine", seq("a") + "b", "c", "", **{old: given, new: given})


def test_a_pattern_has_no_other_names():
    mine = Pattern("mine", seq("a") + "b", "c", "")
    with pytest.raises(AttributeError, match="no attribute 'tails'"):
        mine.tails  # noqa: B018
    with pytest.raises(TypeError, match="tails"):
        Pattern("mine", seq("a") + "b", "c", "", tails=())
    assert list(inspect.signature(Pattern).parameters)[5:11] == [
        "ignore", "bn_eps", "usual_eps", "ambiguity", "assumption", "requires",
    ]  # fmt: skip


def test_a_pattern_in_json_has_the_fields_that_it_always_had():
    told = run("patterns", "show", "repvgg/detr", "--format", "json").json
    assert told["beside"] == ["act"]
    assert told["alone"].startswith("two layers of these names")
    assert told["claim"] == "the two read the same input and are added"
    listed = {p["name"]: p for p in run("patterns", "--format", "json").json}
    assert listed["repvgg/detr"]["alone"] == told["alone"]
    assert {*listed["acnet"]} == {"name", "fused", "source", "bn_eps", "alone", "owner"}


WRONG = [
    ("", "it has none"),
    ("x = 1", "it has 'x'"),
    ("pattern = 3", "expected tables [[pattern]]"),
    ("pattern = [3]", "pattern 1: expected a table"),
    ("[[pattern]]", "pattern 1: name is missing"),
    (ONE + "e = 1", "pattern 1 (mine): unknown key 'e'"),
    (ONE + "ignore = 'x'", "ignore is 'x', expected a list of strings"),
    (ONE + "ignore = [1]", "ignore is [1], expected a list of strings"),
    (ONE + "ignore = ['a..b']", "'a..b' is no name of a layer"),
    (ONE + "tail = 'x'", "tail is 'x', expected a list of strings"),
    (ONE + "tail = ['a..b']", "'a..b' is no name of a layer"),
    *(
        (ONE + f"{old} = {value}\n{new} = {value}", f"{old} is the old name of {new}")
        for old, (new, value) in OLD.items()
    ),
    (ONE + "bn_eps = true", "bn_eps is True, expected a number"),
    (ONE + "bn_eps = nan", "bn_eps is nan"),
    (ONE + "bn_eps = -1", "bn_eps is -1"),
    (ONE + "bn_eps = 1" + "0" * 400, "bn_eps is 1000"),
    (ONE.replace('"c"', '"c."'), "'c.' is no name of a layer"),
    (ONE.replace('"c"', '"\\u001b"'), "'\\x1b' is no name of a layer"),
    (ONE.replace("mine", "a b"), "name is 'a b'"),
    (ONE.replace("mine", "a/original"), "name is 'a/original'"),
    (ONE.replace("a + b", "a +"), "pattern 1 (mine): block: expected a name at character 4"),
    (ONE.replace("a + b", "[a] + [b]"), "one must always be there"),
    (ONE.replace('"a + b"', "['a']"), "block is ['a'], expected a string"),
    (ONE + "\x00", "cannot be read as TOML"),
    ("a = " + "[" * (LINE - 4), "cannot be read as TOML"),
    ("a = " + "[" * LINE, "a line of more than"),
    ("#\n" * BYTES, "more than 65,536 bytes"),
    (ONE + "::error::\x1b[31m = 1", "cannot be read as TOML"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_file_that_is_wrong_is_refused_in_one_line(text, words, tmp_path):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    result = run("convert", "house.pth", "--patterns", "mine.toml")
    refused(result, 3, "mine.toml", words)
    assert "\x1b" not in result.stderr


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    refused(run("patterns", "--patterns", "no.toml"), 3, "no.toml cannot be read: No such file")
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    refused(run("patterns", "--patterns", "mine.toml"), 3, "cannot be read as TOML")


def test_two_patterns_of_one_name_are_refused_with_both_owners(tmp_path):
    (tmp_path / "mine.toml").write_text(ONE.replace("mine", "acnet"))
    refused(
        run("patterns", "--patterns", "mine.toml"), 3, "'acnet': one of mine.toml, one of acfuse"
    )
    (tmp_path / "mine.toml").write_text(ONE + ONE)
    refused(
        run("patterns", "--patterns", "mine.toml"), 3, "'mine': one of mine.toml, one of mine.toml"
    )


def plug_in(monkeypatch, value, owner="acfuse-house"):
    point = EntryPoint("house", value, "acfuse.patterns")
    object.__setattr__(point, "dist", SimpleNamespace(name=owner))
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_a_plug_in_brings_patterns(monkeypatch, tmp_path):
    code = (
        "from acfuse.patterns import Pattern, maybe, seq\n"
        'PATTERNS = (Pattern("house", seq("main", "main_bn") + seq("side", "side_bn")'
        ' + maybe("skip_bn"), "deploy", "", tail=("act",)),)\n'
    )
    (tmp_path / "house_nets.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    plug_in(monkeypatch, "house_nets:PATTERNS")
    (first, *_) = known_patterns()
    assert (first.name, first.owner) == ("house", "acfuse-house")
    worked(run("convert", "house.pth"))
    refused(run("patterns", "--patterns", "house.toml"), 3, "house.toml, one of acfuse-house")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:PATTERNS", "cannot be imported: ModuleNotFoundError"),
        ("os:no_such_name", "cannot be imported: AttributeError"),
        ("os:sep", "gives str, expected patterns"),
        ("sys:path", "gives list, expected patterns"),
    ],
)
def test_a_plug_in_that_is_broken_is_named(monkeypatch, value, words):
    plug_in(monkeypatch, value)
    refused(run("patterns"), 3, "the plug-in acfuse-house", "house = ", words)
    assert run("--help").exit_code == 0


def test_only_what_can_be_assumed_is():
    known = assumed(PATTERNS, ["repvgg/detr"])
    assert [p.name for p in known if p.is_assumed] == ["repvgg/detr"]
    for name, words in (
        ("acnet/inlined", "cannot be assumed: the layers stand in a larger block"),
        ("nothing", "no pattern 'nothing'"),
    ):
        with pytest.raises(UsageError, match=words):
            assumed(PATTERNS, [name])
    refused(run("inspect", "house.pth", "--assume", "nothing"), 2, "no pattern 'nothing'")
    with pytest.raises(UsageError, match="found without it"):
        BareSource({}).find(FindOptions(assumed(PATTERNS, ["acnet"])))


def test_what_is_assumed_is_remembered(tmp_path):
    from sample_models import samples

    torch.save(samples()["repvgg_dialects/detr"].build().state_dict(), "detr.pth")
    result = run("convert", "detr.pth")
    refused(result, 5, "--assume repvgg/detr if the two read the same input and are added")
    done = worked(run("convert", "detr.pth", "--assume", "repvgg/detr"))
    assert "repvgg/detr: the two read the same input and are added, as --assume says" in done.stdout
    assert json.loads((tmp_path / "detr.fused.acfuse.json").read_text())["assume"] == [
        "repvgg/detr"
    ]
    worked(run("verify"))
    seen = worked(run("inspect", "detr.pth", "--assume", "repvgg/detr"))
    assert "body.conv" in seen.stdout


def test_a_pattern_that_needs_an_even_kernel_in_the_middle_has_to_place_it():
    even = {"a.weight": torch.randn(4, 4, 3, 3), "b.weight": torch.randn(4, 4, 2, 2)}
    loose = Pattern("mine", seq("a") + "b", "c", "")
    (refusal,) = acfuse.fuse_tensors(even, patterns=(loose,)).refused
    assert "even kernel" in refusal.why


def test_an_input_without_tensors_is_added_only_where_it_fits():
    text = ONE.replace("a + b", "a + b + [x]")
    with open("mine.toml", "w") as file:
        file.write(text)
    own = read_patterns(house.Path("mine.toml"))
    for width, fits in ((6, True), (8, False)):
        tensors = {f"{n}.weight": torch.randn(6, width, 3, 3) for n in "ab"}
        fused = acfuse.fuse_tensors(tensors, patterns=own).tensors["c.weight"]
        identity = torch.zeros(6, width, 3, 3, dtype=torch.float64)
        if fits:
            identity[range(6), range(6), 1, 1] = 1
        arms = (tensors["a.weight"].double(), tensors["b.weight"].double(), identity)
        size = sum(arm.abs() for arm in arms)
        assert_within(fused, sum(arms), gamma(2, torch.float32) * size)


def test_a_pattern_whose_factor_another_lacks_is_not_half_fused():
    from sample_models import samples

    known = assumed(PATTERNS, ["repvgg/ppyoloe"])
    tensors = samples()["repvgg_dialects/ppyoloe"].build().state_dict()
    findings = find_in_tensors(tensors, known)
    assert {found.pattern for found in findings.found} == {"repvgg/ppyoloe"}
    assert findings.state == ()


def test_files_are_read_by_name_or_path():
    with pytest.raises(InputError, match="cannot be read: No such file"):
        known_patterns(["no.toml"])
    assert known_patterns(["house.toml"])[0].file == house.Path("house.toml")
