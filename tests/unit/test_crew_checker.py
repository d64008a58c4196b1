"""What `check` says about a crew file: the design's sample line by line, then every rule between keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crewline.crews import Problem, check_crew

CREWS = Path(__file__).parents[2] / "configs" / "crews"
FULL = (CREWS / "support-full" / "crew.yaml").read_text()

# The sample file: the support crew, broken in a dozen places.
BREAKS = [
    ("version: 1.0.0", "version: 1.1"),
    ("api_key: ${OPENAI_API_KEY}    # secrets are references, never values", "api_key: sk-live-1234567890"),
    ("goal: Resolve the customer's request", "gaol: Resolve the customer's request"),
    ("tools: [find_order, kb.search]\n    delegates: [refund.decide]", "tools: [find_ordr, kb.search]\n    delegates: [refund.decid]"),
    ("brain: langchain", "brain: langchian"),
    ("    idempotent: true              # the payment API honours our idempotency key\n", ""),
    ("order: {tool: find_order", "order: {tool: issue_refund"),
    ("when: args.amount <= 50.0", "when: args.amount <= "),
    ("when: args.amount > 50.0", "when: arg.amount > 50.0"),
    ("  approvals:\n    approvers: [support-leads]\n    timeout: 4h\n", ""),
    ("intent: support.answer", "intent: suport.answer"),
    ("console:\n", "console:\n  host: 0.0.0.0\n"),
]  # fmt: skip
SAMPLE = """\
bad.yaml:4:1: version: YAML reads 1.1 here as a float; put it in quotes
bad.yaml:15:5: models.default.api_key: a secret must be a reference such as ${OPENAI_API_KEY} or ${file:/run/secrets/x}, never the value itself
bad.yaml:24:3: agents.frontdesk: 'goal' is missing
bad.yaml:26:5: agents.frontdesk.gaol: unknown field 'gaol'; did you mean 'goal'?
bad.yaml:30:13: agents.frontdesk.tools.0: tool 'find_ordr' is not defined; did you mean 'find_order'?
bad.yaml:31:17: warning: agents.frontdesk.delegates.0: no agent of this crew offers 'refund.decid'; did you mean 'refund.decide'?
bad.yaml:52:5: agents.specialist.brain: got 'langchian', expected 'native', 'autogen' or 'langchain'; did you mean 'langchain'?
bad.yaml:63:3: tools.issue_refund: retries: 3 on a 'destructive' tool may run it twice; set 'idempotent: true' if that is safe, or 'retries: 0'
bad.yaml:77:19: guardrails.facts.order.tool: a fact may only come from a tool with 'effect: read'; 'issue_refund' is 'destructive'
bad.yaml:86:13: guardrails.policies.small-refund.when: not a valid CEL expression near column 13: args.amount <=
bad.yaml:91:13: guardrails.policies.large-refund.when: unknown name 'arg' in expression; did you mean 'args'? (known: agent, args, effect, facts, origins, run, tool, untrusted_seen, user)
bad.yaml:92:15: guardrails.policies.large-refund: policies ask for approval but 'guardrails.approvals' names no approvers
bad.yaml:95:5: guardrails.limits.refunds-per-customer: limits ask for approval but 'guardrails.approvals' names no approvers
bad.yaml:114:13: triggers.ticket_opened.intent: capability 'suport.answer' is not defined; did you mean 'support.answer'?
bad.yaml:123:1: console: console on 0.0.0.0 is reachable from outside; set 'token: ${CONSOLE_TOKEN}'
""".splitlines()

SMALL = """\
schema: crew/v1
name: small
version: 1.0.0
models:
  default: {provider: openai, model: m}
agents:
  a: {role: r, goal: g, tools: [look], capabilities: {work.do: {description: d}}}
  b: {role: r, goal: g}
tools:
  look: {python: "t:look", effect: read}
  pay: {python: "t:pay", effect: destructive}
guardrails:
  policies:
    pay: {tools: [pay], action: deny, reason: no}
"""
Check = Callable[[str], list[str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.chdir(tmp_path)

    def checked(text: str, name: str = "c.yaml") -> list[str]:
        Path(name).write_text(text, encoding="utf-8")
        return [str(problem) for problem in check_crew(name)]

    return checked


@pytest.fixture
def scripts(tmp_path: Path) -> None:
    shutil.copytree(CREWS / "support-full" / "scripts", tmp_path / "scripts")


def broken() -> str:
    text = FULL
    for before, after in BREAKS:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def small(before: str, after: str, *more: str) -> str:
    text = SMALL
    for old, new in zip((before, *more[::2]), (after, *more[1::2]), strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


# --- the sample of the design ----------------------------------------------------------------------


@pytest.mark.usefixtures("scripts")
def test_the_file_broken_in_a_dozen_places_gives_the_sample_line_by_line(check: Check) -> None:
    assert check(broken(), "bad.yaml") == SAMPLE


@pytest.mark.usefixtures("scripts")
def test_a_key_given_twice_says_where_it_was_first(check: Check) -> None:
    text = FULL.replace("\n  specialist:\n", "\n  refunds:\n")
    assert check(text, "dup.yaml") == ["dup.yaml:49:3: agents: 'refunds' is given twice (first at line 36)"]


def test_a_syntax_error_says_its_place(check: Check) -> None:
    text = FULL.replace("role: Refund officer", "role Refund officer")
    assert check(text, "syn.yaml") == ["syn.yaml:38:9: mapping values are not allowed here"]


@pytest.mark.usefixtures("scripts")
def test_each_break_alone_gives_its_own_line(check: Check) -> None:
    for before, after in BREAKS:
        assert len(check(FULL.replace(before, after))) >= 1, before


def test_the_small_file_of_these_tests_is_right(check: Check) -> None:
    assert check(SMALL) == []


# --- the examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("crew", sorted(path.parent.name for path in CREWS.glob("*/crew.yaml")))
def test_the_example_crews_pass_without_any_variable(crew: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_USERNAME", "KAFKA_PASSWORD", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert check_crew(CREWS / crew / "crew.yaml") == []


def test_the_production_overlay_passes() -> None:
    folder = CREWS / "support-full"
    assert check_crew(folder / "crew.yaml", [folder / "prod.yaml"]) == []


# --- rules between keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("tools: [look]", "tools: [pya]", "c.yaml:7:33: agents.a.tools.0: tool 'pya' is not defined"),
        ("tools: [look]", "tools: [look, look]", "agents.a.tools.1: 'look' is listed twice"),
        ("b: {role: r", "b: {handoffs: [aa], role: r", "agents.b.handoffs.0: agent 'aa' is not defined"),
        ("b: {role: r", "b: {handoffs: [b], role: r", "agents.b.handoffs.0: an agent cannot hand over to itself"),
        ("b: {role: r", "b: {model: defualt, role: r", "agents.b.model: model 'defualt' is not defined; did you mean 'default'?"),
        ("default: {", "main: {", "agents.a: there is no model 'default', so 'model' must say which one"),
        ("b: {role: r", "b: {brain: autogen, role: r", "agents.b.brain: a 'autogen' brain needs 'factory: package.module:name'"),
        ("b: {role: r", "b: {factory: 'x:y', role: r", "agents.b.factory: 'factory' goes with 'brain: langchain'"),
        ("b: {role: r", "b: {delegates: [work.dot], role: r", "warning: agents.b.delegates.0: no agent of this crew offers 'work.dot'; did you mean 'work.do'?"),
        ("b: {role: r", "b: {delegates: [x.y], role: r", "warning: agents.b.delegates.0: no agent of this crew offers 'x.y'; if another crew does, write 'crew:x.y'"),
        ("effect: read", "effect: write, retries: 2", "tools.look: retries: 2 on a 'write' tool may run it twice"),
        ("effect: read", "retries: 2", "tools.look: 'effect' is missing; say 'read', 'write' or 'destructive'"),
        ("tools: [pay]", "tools: [look]", "tools.pay: no policy covers this 'destructive' tool"),
        ("tools: [pay]", "stage: tool_result, tools: [pay]", "tools.pay: no policy covers this 'destructive' tool"),
        ("  look:", "  delegate: {python: 't:d', effect: read}\n  look:", "tools.delegate: 'delegate' is a built-in tool"),
        ("effect: read", "effect: read, inject: {c: usr.id}", "tools.look.inject.c: unknown name 'usr' in expression; did you mean 'user'? (known: agent, run, user)"),
        ("tools: [pay]", "tools: [pay, lok]", "guardrails.policies.pay.tools.1: tool 'lok' is not defined; did you mean 'look'?"),
        ("tools: [pay]", "agents: [c], tools: [pay]", "guardrails.policies.pay.agents.0: agent 'c' is not defined"),
        ("action: deny", "action: deny, when: facts.ordr.x", "guardrails.policies.pay.when: fact 'ordr' is not defined (known: none)"),
        ("action: deny", "action: deny, when: 'result.x'", "unknown name 'result' in expression"),
        ("action: deny", "action: deny, when: 'true == ${X}'", "an expression takes no ${…}"),
        ("tools: [pay]", "stage: input, tools: [pay]", "at stage 'input' there is no tool"),
        ("guardrails:\n", "guardrails:\n  budgets: {run: {cost_usd: 1}}\n", "models.default: 'guardrails.budgets.run.cost_usd' needs this model's prices"),
        ("guardrails:\n", "guardrails:\n  facts: {f: {tool: lok}}\n", "guardrails.facts.f.tool: tool 'lok' is not defined; did you mean 'look'?"),
        ("guardrails:\n", "guardrails:\n  facts: {f: {tool: look, args: {a: facts.x}}}\n", "guardrails.facts.f.args.a: unknown name 'facts'"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k}\nmodels:\n", "bus: Kafka without TLS sends everything readable"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', plaintext: true}\nmodels:\n", "bus: 'keys' is missing"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, tls: {}, plaintext: true}\nmodels:\n", "bus.plaintext: 'plaintext: true' and 'tls' contradict each other"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1,y', keys: k, tls: {}}\nmodels:\n", "bus.bootstrap_servers: 'x:1,y': expected HOST:PORT"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, tls: {key_file: f}}\nmodels:\n", "bus.tls.key_file: 'key_file' goes with 'cert_file'"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, plaintext: true, sasl: {mechanism: PLAIN, username: u, password: '${P}'}}\nmodels:\n", "warning: bus.sasl.mechanism: PLAIN without TLS sends the password readable"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, tls: {}, sasl: {mechanism: OAUTHBEARER, username: u, token: 'm:f'}}\nmodels:\n", "bus.sasl.username: field 'username' does not go with what the others here say"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, tls: {}, sasl: {mechanism: SCRAM-SHA-1, username: u, password: '${P}'}}\nmodels:\n", "bus.sasl.mechanism: got 'SCRAM-SHA-1', expected 'PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512' or 'OAUTHBEARER'"),
        ("models:\n", "bus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, tls: {}, sasl: {mechanism: PLAIN, username: u, password: geheim}}\nmodels:\n", "bus.sasl.password: a secret must be a reference"),
        ("models:\n", "models:\n  offline: {provider: openai, model: m}\n", "models.offline: 'offline' must have 'provider: scripted'"),
        ("models:\n", "models:\n  offline: {provider: scripted, script: no.yaml}\n", "warning: models.offline.script: there is no file 'no.yaml'"),
        ("models:\n", "memory: {store: redis}\nmodels:\n", "memory: 'store: redis' needs 'url: ${REDIS_URL}'"),
        ("models:\n", "memory: {url: '${U}'}\nmodels:\n", "memory.url: 'url' goes with 'store: redis'"),
        ("models:\n", "console: {entry: c}\nmodels:\n", "console.entry: agent 'c' is not defined"),
        ("models:\n", "console: {host: '::'}\nmodels:\n", "console: console on :: is reachable from outside"),
        ("models:\n", "mcp_servers: {m: {tools: {t: {effect: read}}}}\nmodels:\n", "mcp_servers.m: an MCP server has either 'command' or 'url'"),
        ("models:\n", "mcp_servers: {m: {url: u, env: {A: '${B}'}, tools: {t: {effect: read}}}}\nmodels:\n", "mcp_servers.m.env: 'env' goes with 'command'"),
        ("models:\n", "mcp_servers: {m: {url: u, headers: {A: secret}, tools: {t: {effect: read}}}}\nmodels:\n", "mcp_servers.m.headers.A: a secret must be a reference such as ${A}"),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken_is_said(check: Check, before: str, after: str, line: str) -> None:
    said = check(small(before, after))
    assert any(line in each for each in said), said


TRIGGER = "triggers:\n  t: {topic: x, key: event.k, %s}\n"


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ("", "triggers.t: a trigger has either 'intent', or 'scatter' with 'gather'"),
        ("intent: work.do, scatter: [work.do]", "a trigger has either 'intent', or 'scatter' with 'gather'"),
        ("scatter: [work.do]", "triggers.t.scatter: 'scatter' goes with 'gather'"),
        ("intent: work.do, gather: {intent: work.do, timeout: 1s}", "triggers.t.gather: 'gather' goes with 'scatter'"),
        ("intent: work.dot", "triggers.t.intent: capability 'work.dot' is not defined; did you mean 'work.do'?"),
        ("intent: work.do, aggregate: {n: count()}", "an 'aggregate' needs a 'window'"),
        ("intent: work.do, window: {kind: session, gap: 1m}", "a 'window' needs an 'aggregate'"),
        ("intent: work.do, window: {kind: hopping, size: 1m, advance: 2m}, aggregate: {n: count()}", "larger than 'size'"),
        ("intent: work.do, window: {kind: session, gap: 1m}, aggregate: {n: cuont()}", "unknown aggregate 'cuont'; did you mean 'count'?"),
        ("intent: work.do, window: {kind: session, gap: 1m}, aggregate: {event: count()}", "'event' is taken"),
        ("intent: work.do, when: 'n > 3'", "triggers.t.when: unknown name 'n' in expression (known: event)"),
        ("intent: work.do, input: {a: window.start}", "triggers.t.input.a: unknown name 'window'"),
        ("intent: work.do, user: evnt.u", "triggers.t.user: unknown name 'evnt' in expression; did you mean 'event'?"),
        ("intent: work.do, window: {kind: sliding, size: 1m}", "triggers.t.window.kind: got 'sliding', expected 'tumbling', 'hopping' or 'session'"),
    ],
)  # fmt: skip
def test_a_trigger_that_cannot_work_is_said(check: Check, rest: str, line: str) -> None:
    said = check(SMALL + TRIGGER % rest)
    assert any(line in each for each in said), said


def test_what_is_right_is_not_complained_about(check: Check) -> None:
    text = SMALL.replace("b: {role: r", "b: {delegates: ['other:x.y'], handoffs: [a], role: r")
    text += TRIGGER % "intent: 'other:x.y', window: {kind: tumbling, size: 1m}, aggregate: {n: count()}, when: n > 3, input: {f: window.start}"
    text += "console: {host: 127.0.0.2}\nbus: {kind: kafka, bootstrap_servers: 'x:1', keys: k, plaintext: true}\n"
    assert check(text) == []


def test_the_order_of_the_top_keys_does_not_matter(check: Check) -> None:
    head, models = SMALL.split("models:\n")
    assert check("models:\n" + models + head) == []


def test_problems_stand_in_the_order_of_the_file_and_once(check: Check) -> None:
    said = check(broken())
    lines = [int(each.split(":")[1]) for each in said]
    assert lines == sorted(lines)
    assert len(set(said)) == len(said)


def test_a_problem_reads_as_one_line() -> None:
    assert str(Problem("f.yaml", 3, 5, "a.b", "is wrong; do this")) == "f.yaml:3:5: a.b: is wrong; do this"
    assert str(Problem("f.yaml", 3, 5, "a", "odd", "warning")) == "f.yaml:3:5: warning: a: odd"
    assert str(Problem("f.yaml", 0, 0, "", "there is no such file")) == "f.yaml: there is no such file"


def test_the_policies_of_a_tool_read_as_a_table() -> None:
    from crewline.crews import effective_policies, load_crew

    rows = effective_policies(load_crew(CREWS / "support-full" / "crew.yaml", resolve=False))
    assert [str(row) for row in rows] == [
        "find_order: allow",
        "issue_refund: amount ≤ 0 || amount > facts.order.total deny, amount ≤ 50 allow, "
        "amount > 50 approval by support-leads, amount > 200/30d per user.id approval, otherwise deny",
        "kb.search: allow",
    ]


def test_what_cannot_run_yet_passes_the_check_and_is_named() -> None:
    from crewline.crews import load_crew, not_yet

    fraud = not_yet(load_crew(CREWS / "fraud-full" / "crew.yaml", resolve=False))
    assert [problem.path for problem in fraud] == [
        "agents.case_officer.memory.scope", "agents.case_officer.memory.recall", "guardrails.pii",
        "memory.retention",
    ]  # fmt: skip
    assert all(problem.line and "cannot be run by this version yet" in str(problem) for problem in fraud)
    assert not_yet(load_crew(CREWS / "hello" / "crew.yaml")) == []


def test_expressions_see_the_names_that_the_guardrail_gives_them() -> None:
    from crewline.crews import checks_guard
    from crewline.guardrail import policies

    assert set(checks_guard.CALL_NAMES) == set(policies.NAMES)
    assert set(checks_guard.FACT_NAMES) == set(policies.FACT_NAMES)
