"""Where a crew runs: bus, models, memory, console."""

from __future__ import annotations

import ipaddress

from crewline.crews.known import Known
from crewline.crews.view import View
from crewline.errors import UsageError


def check_where(known: Known) -> None:
    """Bus, models, memory, console."""
    _check_bus(known.root["bus"])
    _check_models(known)
    _check_memory(known.root["memory"])
    _check_console(known, known.root["console"])


def _check_bus(bus: View) -> None:
    if not bus["kind"].says("kafka"):
        return
    plaintext = bus["plaintext"].says(True)
    if not bus["tls"].there and not plaintext:
        bus.say("Kafka without TLS sends everything readable; set 'tls: {ca_file: …}', or say 'plaintext: true'", at=bus.key)
    if bus["tls"].there and plaintext:
        bus["plaintext"].say("'plaintext: true' and 'tls' contradict each other; leave one out", at=bus["plaintext"].key)
    if not bus["keys"].there:
        bus.say("'keys' is missing: the folder of the seal keys, made by 'crewline keys init'", at=bus.key)
    _check_servers(bus["bootstrap_servers"])
    if plaintext and bus["sasl"]["mechanism"].says("PLAIN"):
        say = "PLAIN without TLS sends the password readable; set 'tls: {ca_file: …}', or use SCRAM-SHA-512"
        bus["sasl"]["mechanism"].say(say, severity="warning")
    for name in ("key_file", "key_password"):
        if bus["tls"][name].there and not bus["tls"]["cert_file"].there:
            bus["tls"][name].say(f"'{name}' goes with 'cert_file'", at=bus["tls"][name].key)


def _check_servers(servers: View) -> None:
    # Here, for who has no Kafka: it brings TLS along.
    from crewline.bus.kafka.options import PREFIX, parse_address

    try:
        if servers.text is not None:
            parse_address(PREFIX + servers.text)
    except UsageError:
        servers.say(f"{servers.text!r}: expected HOST:PORT, or several with commas between")


def _check_models(known: Known) -> None:
    offline = known.models.get("offline")
    if offline is not None and offline["provider"].says("openai"):
        offline.say("'offline' must have 'provider: scripted': it is what --offline uses", at=offline.key)
    for model in known.models.values():
        script = model["script"]
        if model["provider"].says("scripted") and script.text and not _is_file(known, script.text):
            script.say(f"there is no file {script.text!r} beside the crew file", severity="warning")
    if known.offline and offline is None:
        for agent in known.agents.values():
            used = known.models.get(agent["model"].text or "default")
            if used is not None and not used["provider"].says("scripted"):
                models = known.root["models"]
                models.say("--offline needs a model 'offline' with 'provider: scripted'", at=models.key)
                return


def _is_file(known: Known, script: str) -> bool:
    try:
        return (known.folder / script).is_file()
    except (OSError, ValueError):
        return False


def _check_memory(memory: View) -> None:
    redis = memory["store"].says("redis")
    if redis and not memory["url"].there:
        memory.say("'store: redis' needs 'url: ${REDIS_URL}'", at=memory.key)
    if redis and memory["path"].there:
        memory["path"].say("'path' goes with 'store: sqlite'", at=memory["path"].key)
    if not redis and memory["url"].there and (memory["store"].text in (None, "sqlite")):
        memory["url"].say("'url' goes with 'store: redis'", at=memory["url"].key)


def _check_console(known: Known, console: View) -> None:
    known.agent(console["entry"])
    host = console["host"].text
    if host is not None and not _is_loopback(host) and not console["token"].there:
        console.say(f"console on {host} is reachable from outside; set 'token: ${{CONSOLE_TOKEN}}'", at=console.key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
