"""What an executor refuses: every way in which a verdict can be another one's, old, or made up."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from crewline.events import CallJudged, CallRequested, SealedVerdict, encode
from crewline.seal import Keyring, key_id
from crewline_tools.base import ToolSpec
from crewline_tools.verify import Verifier
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from nacl.signing import SigningKey

NOW_MS = 1_000_000
KEY = "c1"
CALL = "c1:t1:s1:c0"
TOPIC = "demo.conversations"
ARGUMENTS = '{"amount": 5}'
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
PAY = ToolSpec("pay", "Pay.", SCHEMA, "destructive", pool="money")
REFUND = ToolSpec("refund", "Refund.", SCHEMA, "destructive", pool="money")


def keyring(seed: bytes, *, deployment: bytes | None = None, people: bytes | None = None) -> Keyring:
    public = {f"guard-{key_id(key)}": key for key in [bytes(SigningKey(seed).verify_key)]}
    if people:
        half = bytes(SigningKey(people).verify_key)
        public[f"people-{key_id(half)}"] = half
    return Keyring(deployment=deployment, guard=seed, people=people, public=public)


GUARD = keyring(b"g" * 32, deployment=b"d" * 32, people=b"p" * 32)
FOREIGN = keyring(b"f" * 32)

VERDICT = CallJudged(
    call=CALL, judgement=1, execution=1, conversation=KEY, agent="desk", tool="pay", pool="money", safe=False,
    decision="allow", args_sha256=hashlib.sha256(ARGUMENTS.encode()).hexdigest(), epoch=3, catalogue=PAY.digest(),
    issued_ms=NOW_MS - 1_000, expires_ms=NOW_MS + 59_000,
)


def sealed(verdict: CallJudged, *, by: Keyring = GUARD, who: str = "guard", topic: str = TOPIC, key: str = KEY,
           id: str | None = None, type: str = CallJudged.TYPE) -> SealedVerdict:
    value = encode(verdict)
    id = id or f"{verdict.call}:j{verdict.judgement}"
    return SealedVerdict(topic, key, id, value.decode(), by.sign(who, topic, key.encode(), type, id, value))


def asked(judged: CallJudged = VERDICT, /, **changes: Any) -> CallRequested:
    request = CallRequested(CALL, 1, "pay", ARGUMENTS, sealed(judged), "desk", "r1")
    return replace(request, **changes)


def verifier(keys: Keyring | None = None) -> Verifier:
    return Verifier(keys or GUARD.for_pool("money"), pool="money", topic=TOPIC, tools={"pay": PAY, "refund": REFUND})


def code(request: CallRequested, *, key: str = KEY, now_ms: int = NOW_MS, by: Verifier | None = None) -> str | None:
    reason = (by or verifier()).check(key, request, now_ms=now_ms)
    return reason.code if reason else None


def flipped(text: str, index: int) -> str:
    return text[:index] + ("0" if text[index] != "0" else "1") + text[index + 1 :]


def test_a_verdict_that_holds_is_taken_by_a_pool_that_could_not_have_made_it() -> None:
    assert code(asked()) is None


def test_an_amended_verdict_is_for_the_amended_bytes() -> None:
    amended = replace(VERDICT, decision="amend", arguments='{"amount": 4}',
                      args_sha256=hashlib.sha256(b'{"amount": 4}').hexdigest())

    assert code(asked(amended, arguments='{"amount": 4}')) is None
    assert code(asked(amended)) == "verdict.arguments"


def _seal_of_the_deployment() -> SealedVerdict:
    verdict = sealed(VERDICT)
    seal = GUARD.seal(TOPIC, KEY.encode(), CallJudged.TYPE, verdict.id, verdict.value.encode())
    return replace(verdict, seal=seal)


def _seal_of_the_pool() -> SealedVerdict:
    verdict = sealed(VERDICT)
    seal = GUARD.seal_as_pool("money", TOPIC, KEY.encode(), CallJudged.TYPE, verdict.id, verdict.value.encode())
    return replace(verdict, seal=seal)


OTHER_CALL = "c1:t1:s1:c1"
FORGED: dict[str, tuple[Callable[[], CallRequested], str]] = {
    "not sealed": (lambda: asked(verdict=replace(sealed(VERDICT), seal="")), "verdict.forged"),
    "a broken seal": (lambda: asked(verdict=replace(sealed(VERDICT), seal=flipped(sealed(VERDICT).seal, -9))), "verdict.forged"),
    "a foreign guardrail": (lambda: asked(verdict=sealed(VERDICT, by=FOREIGN)), "verdict.forged"),
    "a person's seal": (lambda: asked(verdict=sealed(VERDICT, who="people")), "verdict.forged"),
    "the deployment's seal": (lambda: asked(verdict=_seal_of_the_deployment()), "verdict.forged"),
    "the pool's own seal": (lambda: asked(verdict=_seal_of_the_pool()), "verdict.forged"),
    "sealed as another type": (lambda: asked(verdict=sealed(VERDICT, type="approval.decided")), "verdict.forged"),
    "of another crew": (lambda: asked(verdict=sealed(VERDICT, topic="other.conversations")), "verdict.forged"),
    "moved to another topic": (lambda: asked(verdict=replace(sealed(VERDICT, topic="other.conversations"), topic=TOPIC)), "verdict.forged"),
    "a larger amount allowed": (lambda: asked(verdict=replace(sealed(VERDICT), value=sealed(replace(VERDICT, args_sha256="00")).value)), "verdict.forged"),
    "no verdict at all": (lambda: asked(verdict=replace(sealed(VERDICT), value="{}")), "verdict.forged"),
    "denied": (lambda: asked(replace(VERDICT, decision="deny")), "verdict.decision"),
    "held for a person": (lambda: asked(replace(VERDICT, decision="require_approval")), "verdict.decision"),
    "for another call": (lambda: asked(replace(VERDICT, call=OTHER_CALL)), "verdict.call"),
    "asked for as another call": (lambda: asked(call=OTHER_CALL), "verdict.call"),
    "for another execution": (lambda: asked(replace(VERDICT, execution=2)), "verdict.call"),
    "replayed as the next execution": (lambda: asked(execution=2), "verdict.call"),
    "with the id of another judgement": (lambda: asked(verdict=sealed(VERDICT, id=f"{CALL}:j2")), "verdict.call"),
    "for another agent": (lambda: asked(replace(VERDICT, agent="intern")), "verdict.call"),
    "for another tool": (lambda: asked(replace(VERDICT, tool="refund")), "verdict.tool"),
    "asked for as another tool": (lambda: asked(tool="refund"), "verdict.tool"),
    "for another pool": (lambda: asked(replace(VERDICT, pool="mail")), "verdict.pool"),
    "for another conversation": (lambda: asked(replace(VERDICT, conversation="c2")), "verdict.conversation"),
    "sealed under another key": (lambda: asked(verdict=sealed(VERDICT, key="c2")), "verdict.conversation"),
    "for other arguments": (lambda: asked(arguments='{"amount": 500}'), "verdict.arguments"),
    "for the same arguments written otherwise": (lambda: asked(arguments='{"amount":5}'), "verdict.arguments"),
    "for a tool that is not here": (lambda: asked(replace(VERDICT, tool="gone"), tool="gone"), "tool.unknown"),
    "for another version of the tool": (lambda: asked(replace(VERDICT, catalogue=REFUND.digest())), "verdict.catalogue"),
    "without a catalogue": (lambda: asked(replace(VERDICT, catalogue="")), "verdict.catalogue"),
    "at its expiry": (lambda: asked(replace(VERDICT, expires_ms=NOW_MS)), "verdict.expired"),
    "without an expiry": (lambda: asked(replace(VERDICT, expires_ms=0)), "verdict.expired"),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_verdict_that_is_not_for_this_is_refused(how: str) -> None:
    request, expected = FORGED[how][0](), FORGED[how][1]

    assert code(request) == expected


def test_a_conversation_cannot_use_the_verdict_of_another() -> None:
    assert code(asked(), key="c2") == "verdict.conversation"


def test_a_call_that_is_none_of_the_conversation_is_refused() -> None:
    strange = replace(VERDICT, call="c10:t1:s1:c0")

    assert code(asked(strange, call="c10:t1:s1:c0")) == "verdict.call"


def test_an_older_policy_than_the_newest_seen_is_refused() -> None:
    by = verifier()

    assert code(asked(replace(VERDICT, epoch=4)), by=by) is None
    assert code(asked(), by=by) == "verdict.epoch"
    assert code(asked(replace(VERDICT, epoch=4)), by=by) is None


def test_a_verdict_that_does_not_hold_says_nothing_about_the_policy_in_force() -> None:
    by = verifier()
    code(asked(verdict=sealed(replace(VERDICT, epoch=9), by=FOREIGN)), by=by)
    code(asked(replace(VERDICT, epoch=9), arguments="{}"), by=by)
    code(asked(replace(VERDICT, epoch=9, expires_ms=1)), by=by)

    assert code(asked(), by=by) is None


def test_an_expired_verdict_is_judged_again_even_if_its_policy_is_old_too() -> None:
    by = verifier()
    code(asked(replace(VERDICT, epoch=4)), by=by)

    assert code(asked(), by=by, now_ms=VERDICT.expires_ms) == "verdict.expired"


def test_a_rotated_key_counts_while_its_public_half_is_there() -> None:
    both = Keyring(public={**GUARD._public, **FOREIGN._public})

    assert code(asked(verdict=sealed(VERDICT, by=FOREIGN)), by=verifier(both)) is None


@given(st.data())
def test_no_single_changed_character_of_a_sealed_verdict_gets_through(data: st.DataObject) -> None:
    request = asked()
    field = data.draw(st.sampled_from(["topic", "key", "id", "value", "seal"]))
    text = getattr(request.verdict, field)
    index = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(exclude_categories=[]).filter(lambda c: c != text[index]))
    changed = replace(request.verdict, **{field: text[:index] + character + text[index + 1 :]})
    same_digits = field == "seal" and changed.seal.lower() == request.verdict.seal  # hex has two spellings

    assert same_digits or code(replace(request, verdict=changed)) is not None


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])))
def test_whatever_stands_in_the_request_is_an_answer_not_an_exception(value: str, arguments: str) -> None:
    request = asked(verdict=replace(sealed(VERDICT), value=value), arguments=arguments)

    assert code(request) == "verdict.forged"
    assert arguments == ARGUMENTS or code(asked(arguments=arguments)) == "verdict.arguments"
