"""What an executor checks before anything else: that this very call was allowed, by the guardrail, now.

A pool holds the guardrail's public key alone, so it can check verdicts and never make one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from crewline.errors import SealError
from crewline.events import CallJudged, CallRequested, Reason
from crewline.seal import Keyring

from crewline_tools.base import ToolSpec
from crewline_tools.pool_view import place_of

GUARD = "guard"
EXPIRED = "verdict.expired"

_DECODER = msgspec.json.Decoder(CallJudged)


class Verifier:
    """Checks requests of one pool.

    Args:
        keyring: holds the guardrail's public halves.
        pool: the pool's name.
        topic: `<ns>.conversations`, on which verdicts stand.
        tools: the pool's tools. Their digests are the catalogue that a verdict must have been made for.

    `epoch` is the newest policy epoch seen in a verdict that held; older ones are refused.
    """

    def __init__(self, keyring: Keyring, *, pool: str, topic: str, tools: Mapping[str, ToolSpec]) -> None:
        self.pool = pool
        self.topic = topic
        self.epoch = 0
        self._keyring = keyring
        self._digests = {name: spec.digest() for name, spec in tools.items()}

    def check(self, key: str, request: CallRequested, *, now_ms: int) -> Reason | None:
        """Return why this request, found under `key`, must not be run now; None if it may."""
        sealed = request.verdict
        try:
            value = sealed.value.encode()
            by = self._keyring.check(sealed.seal, sealed.topic, sealed.key.encode(), CallJudged.TYPE, sealed.id, value)
            verdict = _DECODER.decode(value)
        except (SealError, msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            return Reason("verdict.forged", f"The verdict does not hold: {error}.")
        if by != GUARD or sealed.topic != self.topic:
            return Reason("verdict.forged", f"The verdict was sealed by {by} on {sealed.topic}, not by the guardrail here.")
        reason = self._names(key, request, verdict) or self._in_force(verdict, now_ms)
        if reason is None:
            self.epoch = verdict.epoch
        return reason

    def _names(self, key: str, request: CallRequested, verdict: CallJudged) -> Reason | None:
        """Compare what the verdict is about with what is asked for."""
        sealed = request.verdict
        if verdict.decision not in ("allow", "amend"):
            return Reason("verdict.decision", f"The verdict is {verdict.decision}, not allow.")
        if key != sealed.key or key != verdict.conversation:
            return Reason("verdict.conversation", f"The verdict is for conversation {verdict.conversation}.")
        if (verdict.call, verdict.execution) != (request.call, request.execution):
            return Reason("verdict.call", f"The verdict is for execution {verdict.execution} of call {verdict.call}.")
        if place_of(key, verdict.call) is None or sealed.id != f"{verdict.call}:j{verdict.judgement}":
            return Reason("verdict.call", f"Verdict {sealed.id} is about no call of this conversation.")
        if verdict.tool != request.tool:
            return Reason("verdict.tool", f"The verdict is for tool {verdict.tool}.")
        if verdict.pool != self.pool:
            return Reason("verdict.pool", f"The verdict is for pool {verdict.pool}, this is {self.pool}.")
        if verdict.agent != request.agent:
            return Reason("verdict.call", f"The verdict is for agent {verdict.agent}.")
        try:
            given = hashlib.sha256(request.arguments.encode("utf-8", "surrogatepass")).hexdigest()
        except UnicodeEncodeError:
            given = ""
        if given != verdict.args_sha256:
            return Reason("verdict.arguments", "The arguments are not those that were judged.")
        return None

    def _in_force(self, verdict: CallJudged, now_ms: int) -> Reason | None:
        if verdict.tool not in self._digests:
            return Reason("tool.unknown", f"Pool {self.pool} has no tool {verdict.tool}.")
        if verdict.catalogue != self._digests[verdict.tool]:
            return Reason("verdict.catalogue", f"Tool {verdict.tool} is not, in pool {self.pool}, the one that was judged: "
                                               "guardrail and pool run different versions of the crew.")
        if now_ms >= verdict.expires_ms:
            late_s = (now_ms - verdict.expires_ms) / 1000
            return Reason(EXPIRED, f"The verdict ended {late_s:.1f} s ago.")
        if verdict.epoch < self.epoch:
            return Reason("verdict.epoch", f"The verdict is of policy epoch {verdict.epoch}; {self.epoch} is in force.")
        return None
