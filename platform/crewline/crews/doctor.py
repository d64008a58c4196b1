"""What must hold before a crew runs, looked at one by one: nothing is changed, and nothing stops at the first problem.

    setup_findings      Python, packages, state folder
    crew_findings       the crew file, and what its references give
    keys_findings       which roles the keys folder is enough for
    log_findings        the log, its topics, its clock; the store
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crewline.bus.base import Bus, Message
from crewline.crews.loader import check_crew, load_crew
from crewline.crews.models import CrewConfig
from crewline.crews.problems import CrewFileError
from crewline.crews.report import not_yet
from crewline.crews.where import Where
from crewline.errors import CrewlineError, NotAllowed, TopicMismatch, UnknownTopic
from crewline.seal import ROLE_KEYS, load_keys
from crewline.topics import CrewTopics, TopicSpec

PYTHON = (3, 11)
SKEW_S_MAX = 1.0
DISK_BYTES_MIN = 200 << 20
CLOCK_KEY = b"crewline.doctor"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look gave. A problem keeps the crew from running, a warning does not."""

    check: str
    verdict: Literal["ok", "warning", "problem"]
    say: str
    hint: str = ""
    exit_code: int = 0


def setup_findings(state: Path, config: CrewConfig | None, *, offline: bool) -> Iterator[Finding]:
    """Look at Python, the packages that the crew needs (with `offline`: for no other model than `offline`), and the state folder."""
    version = platform.python_version()
    if sys.version_info >= PYTHON:
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "problem", f"{version} is too old", "use Python 3.11 or newer", 1)
    for extra, packages in _packages(config, offline=offline).items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            hint = f"pip install 'crewline[{extra}]'"
            yield Finding("packages", "problem", f"{', '.join(missing)} not installed", hint, 1)
        else:
            yield Finding("packages", "ok", f"{extra}: {', '.join(packages)}")
    yield _folder(state)


def _packages(config: CrewConfig | None, *, offline: bool) -> dict[str, list[str]]:
    """Return the packages beyond the base install that the crew needs, by extra."""
    needed: dict[str, list[str]] = {}
    if config is not None and config.bus.kind == "kafka":
        needed["kafka"] = ["aiokafka", "cramjam"]
    if config is not None and config.memory.store == "redis":
        needed["redis"] = ["redis"]
    if config is not None and not offline and any(model.provider == "openai" for model in config.models.values()):
        needed["openai"] = ["openai"]
    return needed


def _folder(state: Path) -> Finding:
    there = state
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("state folder", "problem", f"{state}: cannot be written ({there})", "name another: --state DIR", 2)
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    say = f"{state}: {free / 1e9:.1f} GB free" + ("" if state.exists() else ", made at first start")
    if free < DISK_BYTES_MIN:
        return Finding("state folder", "warning", say, "make room: a full disk stops the log")
    return Finding("state folder", "ok", say)


def crew_findings(path: Path, overlays: Sequence[Path], found: list[CrewConfig], *, offline: bool) -> Iterator[Finding]:
    """Look at the crew file and at its references; append the crew to `found` if it can be loaded.

    With `offline` what only other models than `offline` need is not asked for.
    """
    problems = check_crew(path, overlays)
    for each in problems:
        verdict: Literal["warning", "problem"] = "problem" if each.severity == "error" else "warning"
        yield Finding("crew file", verdict, str(each), exit_code=3 if verdict == "problem" else 0)
    if any(each.severity == "error" for each in problems):
        return
    try:
        config = load_crew(path, overlays=overlays, offline=offline)
    except CrewFileError as error:  # a variable or a file that is not there: a model's key, a password
        for each in error.problems:
            yield Finding("references", "problem", str(each), "set it where the crew runs", 3)
        return
    found.append(config)
    yield Finding("crew file", "ok", f"{path}: {config.name} {config.version}")
    for each in not_yet(config):
        yield Finding("crew file", "problem", str(each), exit_code=3)
    for name, model in config.models.items():
        if model.provider == "openai" and not offline:
            has = "its api_key is set" if model.api_key is not None else "no api_key"
            yield Finding("model", "ok" if model.api_key is not None else "warning", f"{name}: {model.model}, {has}")


def keys_findings(where: Where) -> Iterator[Finding]:
    """Look at the keys folder: which roles could start with it, and who may read it."""
    if where.embedded and not where.keys.exists():
        yield Finding("keys", "ok", f"{where.keys}: made at first start")
        return
    try:
        held = load_keys(where.keys)
    except CrewlineError as error:
        yield Finding("keys", "problem", error.message, error.hint or "", error.exit_code)
        return
    files = sorted(where.keys.glob("*.key"))
    there = {file.stem for file in files}
    roles = [role for role, needed in ROLE_KEYS.items() if there.issuperset(needed)]
    roles += ["tools.*"] if "seal" in there else [f"tools.{name.removeprefix('pool-')}" for name in there if name.startswith("pool-")]
    yield Finding("keys", "ok" if roles else "problem", f"{where.keys}: enough for {', '.join(roles) or 'no role'}",
                  "" if roles else "crewline keys role ROLE DIR --from DEPLOYMENT", 0 if roles else 2)  # fmt: skip
    if not any(name.startswith("guard-") for name in held.holds()):
        yield Finding("keys", "problem", f"{where.keys}: no guard-*.pub, so no verdict can be checked",
                      "copy the public halves of the deployment's keys there", 2)  # fmt: skip
    for file in files:
        if file.stat().st_mode & 0o077:
            yield Finding("keys", "warning", f"{file} can be read by others on this host", f"chmod 600 {file}")


async def log_findings(where: Where, config: CrewConfig | None, *, create: bool) -> AsyncIterator[Finding]:
    """Look at the log, its topics (made here, with `create`), its clock, and at the store."""
    if where.embedded and not (Path(where.bus.partition(":")[2]) / "log.db").exists():
        yield Finding("log", "ok", f"{where.bus}: made at first start")
        return
    try:
        bus = await where.open_bus("crewline.doctor")
    except CrewlineError as error:
        yield Finding("log", "problem", error.message, error.hint or "", error.exit_code)
        return
    try:
        yield Finding("log", "ok", f"{bus.address}" + (f" with {where.kafka.tried}" if where.kafka is not None else ""))
        if config is not None:
            specs = topics_of_crew(config)
            yield await _topics(bus, specs, create=create)
            if not where.embedded:
                yield await _clock(bus, CrewTopics(config.bus.topic_prefix or config.name).tokens)
            yield await _store(where, config)
    finally:
        await bus.close()


def topics_of_crew(config: CrewConfig) -> list[TopicSpec]:
    """Return every topic that a crew needs."""
    topics = CrewTopics(config.bus.topic_prefix or config.name)
    pools = tuple(sorted({tool.pool for tool in config.tools.values()}))
    specs = topics.specs(pools, partitions=config.bus.partitions)
    return specs + (topics.trigger_specs(partitions=config.bus.partitions) if config.triggers else [])


async def _topics(bus: Bus, specs: Sequence[TopicSpec], *, create: bool) -> Finding:
    missing, hidden = [], []
    try:
        if create:
            await bus.create_topics(specs)
        for spec in specs:
            try:
                await bus.partitions(spec.name)
            except UnknownTopic:
                missing.append(spec.name)
            except NotAllowed:
                hidden.append(spec.name)
        seen = [spec for spec in specs if spec.name not in (*missing, *hidden)]
        await bus.create_topics(seen)  # creates none: it names each difference
    except TopicMismatch as error:
        return Finding("topics", "problem", error.message, error.hint or "alter them, or set another `bus.topic_prefix`", 3)
    except CrewlineError as error:
        return Finding("topics", "problem", error.message, error.hint or "", error.exit_code)
    say = f"{len(seen)} there, as they must be"
    say += f"; hidden from this user: {', '.join(hidden)}" if hidden else ""
    if missing:
        return Finding("topics", "warning", f"{say}; not there: {', '.join(missing)}",
                       "crewline doctor --create-topics makes them, as does the first `up` of a user who may")  # fmt: skip
    return Finding("topics", "ok", say)


async def _clock(bus: Bus, topic: str) -> Finding:
    """Compare our clock with the broker's, by a record among the streamed text, which is kept for minutes."""
    try:
        before = time.time()
        [at] = await bus.append([Message(topic, CLOCK_KEY, b"{}")])
        after = time.time()
        [record] = (await bus.read(at.topic, at.partition, at.offset, records_max=1)).records
    except CrewlineError as error:
        return Finding("clock", "warning", f"not compared with the broker's: {error.message}", "a worker's user may")
    stamped = record.timestamp_ms / 1000
    skew_s = min(stamped - before, 0.0) or max(stamped - after, 0.0)
    say = f"the broker's is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) > SKEW_S_MAX:
        return Finding("clock", "warning", say, "set both by NTP: deadlines fire early or late")
    return Finding("clock", "ok", f"within {max(abs(skew_s), after - before):.1f} s of the broker's")


async def _store(where: Where, config: CrewConfig) -> Finding:
    try:
        store = await where.open_store(config.bus.topic_prefix or config.name)
        await store.close()
    except CrewlineError as error:
        return Finding("store", "problem", error.message, error.hint or "", error.exit_code)
    return Finding("store", "ok", where.store_kind)
