"""Crew files loaded: YAML and its places, references and secrets, overlays, offline, the schema, any text at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crewline.crews import CrewConfig, CrewFileError, check_crew, config_digest, crew_schema, load_crew
from crewline.crews.models import OpenAIModel, ScriptedModel
from crewline.crews.models_bus import EmbeddedBus, KafkaBus
from crewline.crews.values import SecretText, duration_text, seconds_of
from crewline.errors import UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CREWS = Path(__file__).parents[2] / "configs" / "crews"
SMALL = """\
schema: crew/v1
name: small
version: 1.0.0
models:
  default: {provider: openai, model: m, api_key: "${KEY}"}
  spare: {provider: openai, model: m, api_key: "${SPARE_KEY}"}
  offline: {provider: scripted, script: s.yaml}
agents:
  a: {role: r, goal: g}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("{}")

    def written(text: str | bytes, name: str = "c.yaml") -> Path:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path(name)

    return written


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(CrewFileError) as caught:
        load_crew(path, **{"env": {"KEY": "k"}, **options})
    assert caught.value.exit_code == 3
    assert caught.value.code == "crew.invalid"
    return [str(problem) for problem in caught.value.problems]


# --- values and defaults ---------------------------------------------------------------------------


def test_the_smallest_crew_has_the_defaults_of_the_design() -> None:
    crew = load_crew(CREWS / "hello" / "crew.yaml", env={})
    assert crew.bus == EmbeddedBus(kind="embedded")
    assert crew.bus.partitions == 12
    agent = crew.agents["greeter"]
    assert (agent.model, agent.brain, agent.max_steps, agent.memory.scope) == ("default", "native", 10, "conversation")
    assert crew.tools["weather"].timeout == 5.0
    assert (crew.guardrails.budgets.run.tool_calls, crew.guardrails.budgets.run.wall_time) == (50, 600.0)
    assert (crew.console.host, crew.console.port, crew.entry) == ("127.0.0.1", 8700, "greeter")
    assert crew.folder == CREWS / "hello"


def test_the_support_crew_is_read_as_written() -> None:
    crew = load_crew(CREWS / "support-full" / "crew.yaml", env={"OPENAI_API_KEY": "sk-1"})
    model = crew.models["default"]
    assert isinstance(model, OpenAIModel)
    assert model.base_url == "https://api.openai.com/v1"
    assert model.api_key is not None
    assert model.api_key.reveal() == "sk-1"
    assert model.usd_per_million_tokens is not None
    assert model.usd_per_million_tokens.output == 1.6
    assert crew.guardrails.limits["refunds-per-customer"].window == 30 * 86_400
    assert crew.agents["frontdesk"].instructions.startswith("Find the order before you answer.")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("10m", 600.0), ("24h", 86_400.0), ("90d", 7_776_000.0), ("1.5h", 5_400.0), ("30", None),
     ("30 s", None), ("1w", None), ("-1s", None), ("", None), ("1h30m", None)],
)  # fmt: skip
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds
    if seconds is not None:
        assert seconds_of(duration_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["30", "'30'", "0s", "30sec", "[1s]"])
def test_anything_else_is_no_duration(write: Write, text: str) -> None:
    path = write(SMALL.replace('"${KEY}"', '"${KEY}", timeout: ' + text))
    assert any("expected a duration such as 30s, 10m, 24h or 90d" in each for each in problems(path))


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("version: 1.0.0", "version: 1", "c.yaml:3:1: version: YAML reads 1 here as an integer; put it in quotes"),
        ("version: 1.0.0", "version: true", "c.yaml:3:1: version: YAML reads true here as a boolean; put it in quotes"),
        ("version: 1.0.0", "version:", "c.yaml:3:1: version: got nothing, expected text"),
        ("version: 1.0.0", "version: one", "c.yaml:3:1: version: got 'one', expected a version such as 1.0.0"),
        ("schema: crew/v1\n", "", "c.yaml:1:1: 'schema' is missing; set 'schema: crew/v1'"),
        ("schema: crew/v1", "schema: crew/v2", "c.yaml:1:1: schema: got 'crew/v2', expected 'crew/v1'; did you mean 'crew/v1'?"),
        ("name: small", "name: Small Crew", "c.yaml:2:1: name: got 'Small Crew', expected lower-case letters, digits, '_' and '-', a letter first"),
        ("  a: {", "  A-b: {", "c.yaml:9:3: agents.A-b: got 'A-b', expected lower-case letters, digits and '_', a letter first"),
        ("agents:\n  a: {role: r, goal: g}", "agents: []", "c.yaml:8:1: agents: got a list, expected a map"),
        ("agents:\n  a: {role: r, goal: g}", "agents: {}", "c.yaml:8:1: agents: must not be empty"),
        ("goal: g", "goal: [g]", "agents.a.goal: got a list, expected text"),
        ("goal: g", "goal: g, tools: look", "agents.a.tools: got 'look', expected a list such as [a, b]"),
        ("goal: g", "goal: g, max_steps: '3'", "agents.a.max_steps: got '3', expected a whole number"),
        ("goal: g", "goal: g, max_steps: 0", "agents.a.max_steps: got 0, expected a number >= 1"),
        ("provider: openai, model: m, api_key: \"${KEY}\"", "provider: openai, model: m, temperature: .inf", "temperature: got '.inf', expected a number"),
        ("provider: openai, model: m, api_key: \"${KEY}\"", "provider: openai, model: m, temperature: 1e999", "temperature: got 1e999, expected a number"),
        ("goal: g", "goal: g, memory: {write: yes}", "agents.a.memory.write: got 'yes', expected true or false"),
        ("goal: g", "goal: g, backstory: b", "agents.a.backstory: unknown field 'backstory'"),
        ("goal: g", "goal: g, capabilities: {work: {description: d}}", "expected a dotted name such as refund.decide"),
        ("goal: g", "goal: g, brain: langchain, factory: x.y", "agents.a.factory: got 'x.y', expected a Python name such as package.module:name"),
        ("provider: scripted, ", "", "models.offline: 'provider' is missing"),
        ("provider: scripted", "provider: script", "c.yaml:7:13: models.offline.provider: got 'script', expected 'openai' or 'scripted'; did you mean 'scripted'?"),
        ("script: s.yaml", "skript: s.yaml", "models.offline.skript: unknown field 'skript'; did you mean 'script'?"),
        ("agents:", "agent:", "c.yaml:8:1: agent: unknown field 'agent'; did you mean 'agents'?"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_said_in_plain_words(write: Write, before: str, after: str, line: str) -> None:
    assert SMALL.count(before) == 1, before
    said = problems(write(SMALL.replace(before, after)))
    assert any(line in each for each in said), said


# --- YAML ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "c.yaml:1:1: the file is empty"),
        ("# nothing\n", "c.yaml:1:1: the file is empty"),
        ("- a\n", "c.yaml:1:1: a crew file is a map"),
        ("a:\n\tb: 1\n", "c.yaml:2:1: a tab; YAML is indented with spaces"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: a second document; a crew file is one"),
        ("%YAML 1.1\n---\na: yes\n", "takes no %YAML or %TAG line"),
        ("a: !!python/object:os.system x\n", "takes no tags"),
        ("a: *b\n", "c.yaml:1:4: a: nothing is named '&b' above"),
        ("a: &a [*a]\n", "a.0: nothing is named '&a' above"),
        ("a: [1\n", "expected ',' or ']'"),
        ("a: \x00\n", "c.yaml:1:4: a character that YAML does not allow"),
        ("[" * 100, "more than 32 levels inside each other"),
        ("? [a]\n: 1\n", "a key must be a name"),
        ("a: 1\nb: {c: 1, c: 2}\na: 3\n", "c.yaml:2:11: b: 'c' is given twice (first at line 2)"),
        (b"a: \xff\n", "c.yaml:1:1: not UTF-8"),
        (b"#" * 1_000_001, "c.yaml: larger than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_crew_file_is_said_with_its_place(write: Write, text: str | bytes, line: str) -> None:
    said = problems(write(text))
    assert any(line in each for each in said), said


def test_an_alias_bomb_is_counted_and_not_unfolded(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert "more than 50,000 values, aliases unfolded" in problems(write("\n".join(lines)))[0]


def test_plain_anchors_and_merge_keys_are_yaml(write: Write) -> None:
    text = SMALL.replace("  a: {role: r, goal: g}", "  a: &a {role: r, goal: g}\n  b: {<<: *a, goal: h}")
    crew = load_crew(write(text), env={"KEY": "k"})
    assert (crew.agents["b"].role, crew.agents["b"].goal) == ("r", "h")


def test_yes_and_no_are_words(write: Write) -> None:
    crew = load_crew(write(SMALL.replace("goal: g", "goal: no")), env={"KEY": "k"})
    assert crew.agents["a"].goal == "no"


def test_a_file_that_is_not_there_is_said(write: Write, tmp_path: Path) -> None:
    assert problems(Path("none.yaml")) == ["none.yaml: there is no such file"]
    assert "cannot be read" in problems(tmp_path)[0]
    assert [str(each) for each in check_crew("none.yaml")] == ["none.yaml: there is no such file"]


# --- references and secrets ------------------------------------------------------------------------


def test_references_are_resolved_once_and_anywhere_but_in_instructions(write: Write) -> None:
    text = SMALL.replace("goal: g", 'goal: "be ${HOW:-kind} to ${WHO}", instructions: "write ${THIS}", max_steps: "${STEPS}"')
    agent = load_crew(write(text), env={"KEY": "k", "WHO": "${HOW}", "STEPS": "7"}).agents["a"]
    assert agent.goal == "be kind to ${HOW}"
    assert agent.instructions == "write ${THIS}"
    assert agent.max_steps == 7


def test_a_variable_that_is_needed_and_not_set_is_said_with_its_place(write: Write) -> None:
    assert problems(write(SMALL), env={}) == [
        "c.yaml:5:50: models.default.api_key: the environment variable KEY is not set; set it, or run with --offline"
    ]


def test_what_nobody_uses_is_not_asked_for(write: Write) -> None:
    path = write(SMALL)
    crew = load_crew(path, env={}, offline=True)
    assert crew.model_name("a", offline=True) == "offline"
    assert isinstance(crew.models["offline"], ScriptedModel)
    spare = load_crew(path, env={"KEY": "k"}).models["spare"]
    assert isinstance(spare, OpenAIModel)
    assert spare.api_key is not None
    with pytest.raises(UsageError, match="SPARE_KEY is not set"):
        spare.api_key.reveal()
    assert check_crew(path) == []


def test_a_check_reads_no_variable_even_where_a_number_belongs(write: Write) -> None:
    path = write(SMALL + 'console: {port: "${PORT}"}\n')
    assert check_crew(path) == []
    assert "PORT is not set" in problems(path)[0]
    assert load_crew(path, env={"KEY": "k", "PORT": "80"}).console.port == 80


def test_offline_without_a_scripted_model_is_said(write: Write) -> None:
    text = SMALL.replace("  offline: {provider: scripted, script: s.yaml}\n", "")
    assert problems(write(text), offline=True) == [
        "c.yaml:4:1: models: --offline needs a model 'offline' with 'provider: scripted'"
    ]
    assert load_crew(CREWS / "hello" / "crew.yaml", env={}, offline=True).model_name("greeter", offline=True) == "default"


def test_a_secret_can_come_from_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    path = write(SMALL.replace("${KEY}", f"${{file:{tmp_path}/key}}"))
    model = load_crew(path).models["default"]
    assert isinstance(model, OpenAIModel)
    assert model.api_key is not None
    assert model.api_key.reveal() == "from-file"
    (tmp_path / "key").unlink()
    assert "cannot be read" in problems(path)[0]
    assert check_crew(path) == []


@pytest.mark.parametrize("reference", ["${}", "${a b}", "${1A}", "${A:default}", "${file:}", "${A"])
def test_what_is_no_reference_is_said(write: Write, reference: str) -> None:
    path = write(SMALL.replace("goal: g", f'goal: "{reference}"'))
    assert problems(path) == ["c.yaml:9:22: agents.a.goal: not a reference; write ${NAME}, ${NAME:-default} or ${file:/path}"]


@pytest.mark.parametrize("literal", ["sk-live-1", "x${KEY}", "${KEY:-sk-live-1}", "12345"])
def test_a_secret_that_is_written_down_is_refused_and_not_repeated(write: Write, literal: str) -> None:
    (said,) = problems(write(SMALL.replace('"${KEY}"', f'"{literal}"')))
    assert "models.default.api_key: a secret must be a reference such as ${OPENAI_API_KEY}" in said
    assert "sk-live" not in said
    assert "12345" not in said


def test_secrets_are_never_shown(write: Write) -> None:
    text = SMALL + 'mcp_servers: {m: {url: u, headers: {A: "Bearer ${TOKEN}"}, tools: {t: {effect: read}}}}\n'
    crew = load_crew(write(text), env={"KEY": "hunter2", "TOKEN": "swordfish"})
    header = crew.mcp_servers["m"].headers["A"]
    assert isinstance(header, SecretText)
    assert header.reveal() == "Bearer swordfish"
    for shown in (repr(crew), str(crew), crew.model_dump_json(), repr(crew.model_dump()), f"{header}{header!r}"):
        assert "hunter2" not in shown
        assert "swordfish" not in shown
        assert "****" in shown


def test_a_value_that_came_from_a_variable_is_not_repeated_in_an_error(write: Write) -> None:
    path = write(SMALL.replace("goal: g", 'goal: g, brain: "${B}", max_steps: "${N}"'))
    said = " ".join(problems(path, env={"KEY": "k", "B": "hunter2", "N": "swordfish"}))
    assert "hunter2" not in said
    assert "swordfish" not in said
    assert "${B}" in said


# --- overlays --------------------------------------------------------------------------------------


def test_the_production_overlay_changes_where_and_keeps_what() -> None:
    folder = CREWS / "support-full"
    env = {"OPENAI_API_KEY": "k", "KAFKA_BOOTSTRAP_SERVERS": "b:9093", "KAFKA_USERNAME": "u", "KAFKA_PASSWORD": "1234", "REDIS_URL": "redis://r"}
    crew = load_crew(folder / "crew.yaml", overlays=[folder / "prod.yaml"], resolve=False)
    assert isinstance(crew.bus, KafkaBus)
    assert crew.bus.sasl is not None
    assert (crew.memory.store, crew.memory.retention) == ("redis", 90 * 86_400)
    assert (crew.console.host, crew.console.port, crew.console.entry) == ("0.0.0.0", 8700, "frontdesk")
    said = problems(folder / "crew.yaml", overlays=[folder / "prod.yaml"], env=env)
    assert [each.split(": ", 1)[1] for each in said] == ["console.token: the file /run/secrets/console_token cannot be read"]


def test_an_overlay_may_not_say_what_a_crew_does(write: Write) -> None:
    over = write("guardrails: {policies: {}}\nmodel: {}\nmemory: {retention: 1d}\n", "over.yaml")
    assert problems(write(SMALL), overlays=[over]) == [
        "over.yaml:1:1: guardrails: an overlay may set bus, models, memory, console only",
        "over.yaml:2:1: model: an overlay may set bus, models, memory, console only; did you mean 'models'?",
    ]


def test_a_place_is_in_the_file_that_said_it(write: Write) -> None:
    path, over = write(SMALL), write("memory:\n  retention: 30\nconsole:\n  host: 0.0.0.0\n", "over.yaml")
    assert problems(path, overlays=[over]) == [
        "over.yaml:2:3: memory.retention: got 30, expected a duration such as 30s, 10m, 24h or 90d",
        "over.yaml:3:1: console: console on 0.0.0.0 is reachable from outside; set 'token: ${CONSOLE_TOKEN}'",
    ]
    assert problems(write(SMALL.replace("name: small\n", "")), overlays=[write("console: {}\n", "over.yaml")])[0].startswith("c.yaml:")


def test_another_variant_leaves_the_old_ones_fields_behind(write: Write) -> None:
    over = write("models:\n  default: {provider: scripted, script: s.yaml}\n", "over.yaml")
    assert isinstance(load_crew(write(SMALL), overlays=[over], env={}).models["default"], ScriptedModel)


# --- digest and schema -----------------------------------------------------------------------------


def test_the_digest_changes_with_what_is_said_and_not_with_secrets_or_layout(write: Write) -> None:
    first = config_digest(load_crew(write(SMALL), env={"KEY": "a"}))
    assert len(first) == 64
    assert config_digest(load_crew(write("# a comment\n" + SMALL), env={"KEY": "b"})) == first
    assert config_digest(load_crew(write(SMALL.replace("goal: g", "goal: h")), env={"KEY": "a"})) != first


def test_the_schema_is_pydantics_and_small() -> None:
    schema = crew_schema()
    exported = CrewConfig.model_json_schema(by_alias=True)
    assert {key: value for key, value in schema.items() if key not in ("$schema", "title")} == {
        key: value for key, value in exported.items() if key != "title"
    }
    assert len(json.dumps(schema)) < 40_000
    assert sorted(schema["required"]) == ["agents", "models", "name", "schema", "version"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["schema"]["const"] == "crew/v1"


@pytest.mark.parametrize("crew", sorted(path.parent.name for path in CREWS.glob("*/crew.yaml")))
def test_the_examples_fit_the_schema_as_an_editor_sees_them(crew: str) -> None:
    import jsonschema_rs
    from crewline.crews.yaml_text import plain, read_yaml

    text = (CREWS / crew / "crew.yaml").read_text()
    jsonschema_rs.validator_for(crew_schema()).validate(plain(read_yaml(text, "crew.yaml")))


# --- anything at all -------------------------------------------------------------------------------

WORDS = st.sampled_from([*SMALL.split(), "${KEY}", "${", "&a", "*a", "<<:", "- ", "[", "]", "{", "}", "|", "!!x", "\t", "'", '"', "\n"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=30).map(" ".join)))
def test_any_text_gives_a_crew_or_a_crew_file_error(write: Write, text: str) -> None:
    path = write(text.encode("utf-8", "surrogatepass"))
    check_crew(path)
    with pytest.raises(CrewFileError):
        load_crew(path, env={})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_crew_file_with_any_value_swapped_gives_a_crew_or_a_crew_file_error(write: Write, data: st.DataObject) -> None:
    lines = (CREWS / "support-full" / "crew.yaml").read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[at].partition(":")
    lines[at] = key + colon + " " + data.draw(st.sampled_from(["1", "[]", "{}", "null", "x", "[{a: 1}]", "{a: {b: c}}", "1.5", "true", "'${X}'", "[[x]]"]))
    path = write("\n".join(lines))
    check_crew(path)
    try:
        load_crew(path, env={})
    except CrewFileError as error:
        assert error.problems  # noqa: PT017
