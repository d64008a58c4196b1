"""The live view: frames in, lines out, the same every time."""

from __future__ import annotations

import json
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from crewline import events as ev
from crewline.cli.arguments import by_line, one_line
from crewline.cli.asking import Asking
from crewline.cli.decide import Holds, panel
from crewline.cli.live import Line, LiveView, format_line, summary
from crewline.cli.output import Output
from crewline.cli.runs_view import nodes_of, tree
from crewline.cli.settings import Settings
from crewline.conversation import Call, sha256_of
from crewline.projection import Frame, OpenCall

CONV, CHILD, RUN = "c1", "d1", "c1"
SHOT = '{"customer":"alice"}'
REFUND = '{"order_id":1042,"amount":89.0}'
_offsets = count()


def frame(at_ms: int, event: ev.Event, id: str = "", *, conv: str = CONV, stands: bool | None = None) -> Frame:
    return Frame(
        f"0.{next(_offsets)}", event.TYPE, stands, 1_000_000 + at_ms, conv, RUN, getattr(event, "agent", "") or "", "",
        id or f"e{at_ms}", ev.encode(event), event,
    )


def said(agent: str, *calls: tuple[str, str], text: str = "") -> ev.ModelReplied:
    return ev.ModelReplied(agent, 1, text, tuple(ev.CallText(f"w{k}", *call) for k, call in enumerate(calls)))


def judged(call: str, tool: str, decision: Any, proposed: str, agent: str = "billing", **more: Any) -> ev.CallJudged:
    return ev.CallJudged(call, 1, 1, CONV, agent, tool, "main", True, decision, sha256_of(proposed), **more)


def refund_run() -> list[Frame]:
    """A run with a call, a delegation, a hold, a decision and an answer."""
    held = ev.ApprovalAsked(("leads",), 1_000_000 + 900_000)
    reasons = (ev.Reason("policy.refund-limit", "89.00 is over 50.00"),)
    chosen = ev.DelegationChosen(
        "c1:t1:s2:c0", 1, "refund.decide", "shop", "billing", "shop.conversations", CHILD, {}, "token", ev.Grant(), 0,
        (ev.Candidate("shop", "billing", "i1", "least loaded (0.00)"),),
    )
    return [
        frame(0, ev.IntentPublished("Refund order 1042, it arrived broken.", agent="triage", user="alice"), "c1"),
        frame(5, ev.TurnStarted(1, "c1", "triage", "1", 1, ev.Limits()), "c1:t1"),
        frame(800, said("triage", ("search_orders", SHOT)), "c1:t1:s1"),
        frame(810, judged("c1:t1:s1:c0", "search_orders", "allow", SHOT, "triage"), "c1:t1:s1:c0:j1"),
        frame(1_212, ev.CallCompleted("c1:t1:s1:c0", 1, "ok", "1 order", duration_s=0.412), "c1:t1:s1:c0:x1"),
        frame(1_400, said("triage", ("delegate", "{}")), "c1:t1:s2"),
        frame(1_410, chosen, "c1:t1:s2:c0:x1:chosen"),
        frame(1_420, ev.IntentPublished({}, capability="refund.decide", reply_to=ev.ReplyTo("t", "c1", "e", "token")), "i2", conv=CHILD),
        frame(1_430, ev.TurnStarted(1, "i2", "billing", "1", 1, ev.Limits()), "d1:t1", conv=CHILD),
        frame(2_800, said("billing", ("issue_refund", REFUND)), "d1:t1:s1", conv=CHILD),
        frame(2_810, judged("d1:t1:s1:c0", "issue_refund", "require_approval", REFUND, approval=held, reasons=reasons), "d1:t1:s1:c0:j1", conv=CHILD),
        frame(5_400, ev.ApprovalDecided("d1:t1:s1:c0", 1, sha256_of(REFUND), "approve", "kim"), "a1", conv=CHILD),
        frame(5_630, ev.CallCompleted("d1:t1:s1:c0", 1, "ok", "refund rf_77\nqueued", duration_s=0.23), "d1:t1:s1:c0:x1", conv=CHILD),
        frame(6_000, said("billing", text="approved"), "d1:t1:s2", conv=CHILD),
        frame(6_010, ev.TurnFinished(1, "i2", "done", "approved", "billing"), "d1:t1:end", conv=CHILD),
        frame(6_020, ev.IntentAnswered("token", "done", "approved"), "c1:t1:s2:c0:x1"),
        frame(7_190, said("triage", text="Done."), "c1:t1:s3"),
        frame(7_200, ev.TurnFinished(1, "c1", "done", "Done.", "triage", None, ev.Spent(4, 3, 2_000, 608, 0.0073)), "c1:t1:end"),
    ]


def shown(frames: list[Frame], **options: Any) -> list[str]:
    view = LiveView(**options)
    return [format_line(line) for each in frames for line in view.take(each)]


def test_a_run_is_shown_line_by_line() -> None:
    assert shown(refund_run()) == [
        "00.0   alice     › Refund order 1042, it arrived broken.",
        "00.8   triage    ⚙ search_orders(customer='alice')",
        "01.2   triage    ✓ 1 order                                                                    412 ms",
        "01.4   triage    → billing takes refund.decide: least loaded (0.00)",
        "02.8   billing   ⚙ issue_refund(order_id=1042, amount=89.0)",
        "02.8   guardrail ⏸ issue_refund held: 89.00 is over 50.00",
        "05.4   kim       ✓ approved issue_refund",
        "05.6   billing   ✓ refund rf_77 queued                                                        230 ms",
        "06.0   billing   ✓ approved",
    ]


def test_a_run_ends_with_what_it_took() -> None:
    view = LiveView()
    for each in refund_run():
        view.take(each)
    assert summary(view) == "run c1  done in 7.2 s · 2 agents · 3 calls · 1 approval · 2,608 tokens · $0.0073"


def test_the_end_of_an_earlier_run_of_the_conversation_is_not_ours() -> None:
    view = LiveView(run="c2")
    view.take(frame(0, ev.TurnFinished(1, "c1", "done", "Done.", "triage")))
    assert view.finished is None
    view.take(frame(1, ev.TurnFinished(2, "c2", "done", "Done too.", "triage")))
    assert view.finished is not None


def test_what_does_not_stand_is_shown_only_when_asked_for() -> None:
    forged = frame(10, ev.CallCompleted("c1:t1:s1:c0", 1, "ok", "1 order"), stands=False)
    assert shown([forged]) == []
    assert "does not stand" in shown([forged], verbose=True)[0]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (judged("x", "pay", "deny", "{}", reasons=(ev.Reason("p", "Too much."),)), "guardrail ✗ pay denied: Too much."),
        (judged("x", "pay", "amend", "{}", arguments='{"a":1}'), "guardrail ✓ pay(a=1) (amended)"),
        (ev.CallCompleted("x", 1, "error", "no such order"), "agent     ✗ call: no such order"),
        (ev.CallCompleted("x", 1, "unknown"), "agent     ⏸ nobody knows whether call ran; crewline approvals resolve"),
        (ev.CallResolved("x", 1, "ran", "kim"), "kim       ✓ says it ran: call"),
        (ev.ApprovalDecided("x", 1, "", "deny", "kim", note="no photo"), "kim       ✗ denied call: no photo"),
        (ev.ModelFailed(1, "model.rate", "slow down", 1_002_000), "agent     ✗ model.rate: slow down; tried again in 2.0 s"),
        (ev.CancelRequested(by="kim"), "kim       ✗ asked to stop the turn"),
        (ev.RecordRejected(0, 7, "record.seal", "forged"), "log       ✗ record rejected: record.seal: forged"),
        (said("triage", ("pay", "{}"), text="I look."), "triage    › I look."),
    ],
)  # fmt: skip
def test_each_event_has_its_line(event: ev.Event, line: str) -> None:
    text = shown([frame(0, event)])[0]
    assert text.removesuffix("0 ms").rstrip() == f"00.0   {line}"


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    evil = said("triage", ("pay", json.dumps({"to": "\x1b[2Jalice\u202egnp"})), text="\x1b]0;owned\x07hi")
    text = "\n".join(shown([frame(0, evil)]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "U+001B" in text


def test_numbers_are_shown_as_the_model_wrote_them() -> None:
    assert one_line("pay", '{"amount":89.0,"account":12345678901234567890,"x":1e400}') == (
        "pay(amount=89.0, account=12345678901234567890, x=1e400)"
    )
    assert one_line("pay", "[1]") == "pay([1])"
    assert by_line('{"a":[true,null],"b":{"c":"d"}}') == ["a = [true, null]", "b = {'c': 'd'}"]


def test_a_line_is_cut_at_its_width_and_the_duration_stays() -> None:
    text = format_line(Line(1.0, "triage", "✓", "x" * 200, "412 ms"), width=60)
    assert len(text) == 60
    assert text.endswith("…  412 ms")


def test_wide_characters_keep_the_columns() -> None:
    text = format_line(Line(0, "案内", "›", "注文" * 40), width=60)
    assert text.startswith("00.0   案内      ›")
    assert text.endswith("…")


def test_colour_is_never_the_only_signal() -> None:
    line = Line(0, "triage", "✗", "denied")
    plain, painted = format_line(line), format_line(line, color=True)
    assert "✗" in plain
    assert "\x1b[31m✗" in painted


def test_streamed_text_goes_to_the_footer_alone() -> None:
    view = LiveView()
    assert view.take(frame(0, ev.TokensStreamed("s", 1, "triage", "Done in "))) == []
    view.take(frame(1, ev.TokensStreamed("s", 1, "triage", "a moment")))
    assert view.busy == "triage writes: Done in a moment"


def tokens(text: str, *, step: str = "c1:t1:s1", attempt: int = 1) -> Frame:
    return frame(next(_offsets), ev.TokensStreamed(step, attempt, "triage", text))


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([tokens("The ti"), tokens("ll holds 12"), frame(1, said("triage", text="The till holds 12."), "c1:t1:s1")], "The till holds 12.\n"),
        ([frame(1, said("triage", text="All at once."), "c1:t1:s1"), tokens("All at")], "All at once.\n"),
        ([tokens("Wro"), tokens("Right", attempt=2), frame(1, ev.ModelReplied("triage", 2, "Right"), "c1:t1:s1")], "Wro\nRight\n"),
        ([tokens("lost"), frame(1, said("triage", text="Other words"), "c1:t1:s1")], "lost\nOther words\n"),
        ([tokens("I look"), frame(1, said("triage", ("look", "{}"), text="I look."), "c1:t1:s1"),
          tokens("12", step="c1:t1:s2"), frame(2, said("triage", text="12"), "c1:t1:s2")], "I look.\n12\n"),
        ([tokens("\x1b[1mraw")], "\x1b[1mraw"),  # a pipe gets it to the letter
    ],
)  # fmt: skip
def test_an_answer_streams_and_the_record_has_the_last_word(
    frames: list[Frame], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session: Any = SimpleNamespace(client=None, background=None, again=None)
    handle: Any = SimpleNamespace(conversation=CONV, intent=RUN)
    asking = Asking(session, Output(Settings(quiet=True)), Holds("wait", "kim"), streams=True)
    for each in frames:
        asking._show(each, handle)
    assert capsys.readouterr().out == text


def test_the_panel_shows_every_argument_whole() -> None:
    arguments = json.dumps({"note": "n" * 300, "amount": 89.5})
    verdict = judged("d1:t1:s1:c0", "pay", "require_approval", arguments, reasons=(ev.Reason("p", "Over 50."),),
                     approval=ev.ApprovalAsked(("leads",), 3_600_000))
    call = Call("d1:t1:s1:c0", "w", "pay", arguments, True, None, "held", 0, verdict=verdict)
    lines = panel(OpenCall(call, CONV, RUN, "billing", None), color=False, width=60)
    assert {len(line) for line in lines} == {60}
    assert sum(line.count("n") for line in lines if "n" * 20 in line) >= 300
    text = "\n".join(lines)
    assert "billing wants to run  pay" in text
    assert "amount = 89.5" in text
    assert "Held: Over 50." in text
    assert "Nothing has run. For: leads. Denied by itself after" in text


def test_the_tree_has_delegated_turns_below_their_call() -> None:
    (root,) = nodes_of(refund_run())
    assert [node.title.partition("(")[0] for node in root.below] == ["step 1", "search_orders", "step 2", "delegate", "step 3"]
    (billing,) = root.below[3].below
    assert [node.title.partition("(")[0] for node in billing.below] == ["step 1", "issue_refund", "step 2"]
    assert billing.below[1].held == [(1_002_810, 1_005_400)]


def test_waiting_for_a_person_is_hatched() -> None:
    run = {"run": "c1", "asked": "Refund", "status": "done", "took_s": 7.2, "tokens": 0, "cost_usd": 0, "user": None,
           "reason": None, "answer": "Done."}
    lines = tree(run, refund_run())
    refund = next(line for line in lines if "issue_refund" in line)
    assert refund.count("░") > 5
    assert lines[0] == "Refund"
    assert lines[-1] == "Done."
