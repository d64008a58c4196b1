"""The Redis store when its server is restarted, emptied, frozen, full, not ours to write, or not there at all."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from crewline.errors import StoreError
from crewline.testing import until
from crewline_memory import Mark, Snapshot, redis_link
from crewline_memory.redis import RedisStore, open_store
from crewline_memory.redis_scripts import part_keys
from redis.asyncio import Redis
from redis_proxy import Proxy
from servers import RedisServer, free_port

pytestmark = pytest.mark.servers

SHORT_S = 1.0  # instead of what a call may take; still long for a machine that is busy
STATE = Snapshot(b"s" * 1_000, pending=True)
IDLE = Snapshot(b"idle", pending=False)


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = await open_store(redis_server.url, "demo")
    yield store
    await store.close()


@pytest.fixture
async def raw(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The same server for an administrator."""
    async with Redis.from_url(redis_server.url) as raw:
        yield raw


async def mark_when_back(store: RedisStore) -> Mark | None:
    """Return the mark as soon as the store answers."""

    async def answers() -> bool:
        try:
            await store.mark("worker", 0)
        except StoreError:
            return False
        return True

    await until(answers)
    return await store.mark("worker", 0)


# --- what is stored goes away -------------------------------------------------------------------


async def test_a_restart_that_keeps_nothing_is_noticed_by_the_next_writer(
    redis_server: RedisServer, store: RedisStore
) -> None:
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE})
    redis_server.stop()
    redis_server.start()

    assert await mark_when_back(store) is None
    assert not await store.write("worker", 0, Mark(9, "id-8"), {b"b": STATE}, after=5), "it relies on what is gone"
    assert await store.write("worker", 0, Mark(9, "id-8"), {b"a": STATE, b"b": STATE})
    assert await store.mark("worker", 0) == Mark(9, "id-8", 2)


async def test_a_restart_that_keeps_everything_changes_nothing(redis_server: RedisServer) -> None:
    redis_server.kill()
    redis_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    redis_server.start()
    store = await open_store(redis_server.url, "demo")
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE, b"b": IDLE})
    redis_server.kill()
    redis_server.start()

    assert await mark_when_back(store) == Mark(5, "id-4", 2)
    assert await store.pending("worker", 0) == {b"a": STATE}
    assert await store.write("worker", 0, Mark(6, "id-5"), {b"a": IDLE}, after=5), "its scripts are known again"
    await store.close()


async def test_an_emptied_server_has_no_mark(store: RedisStore, raw: Redis) -> None:
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE})
    await raw.flushall()
    await raw.script_flush()

    assert await store.mark("worker", 0) is None
    assert await store.pending("worker", 0) == {}
    assert await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE})


@pytest.mark.parametrize("lost", ["mark", "snapshots", "open"])
async def test_a_key_that_is_missing_makes_the_mark_none(
    store: RedisStore, raw: Redis, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE, b"b": IDLE})
    names = dict(zip(("mark", "snapshots", "open"), part_keys("demo", "worker", 0), strict=True))
    assert await raw.delete(names[lost]) == 1

    assert await store.mark("worker", 0) is None
    if lost != "mark":
        assert "lacks snapshots of worker, partition 0" in caplog.text
    await store.write("worker", 0, Mark(6, "id-5"), {b"c": STATE})
    found = await store.mark("worker", 0)
    assert found is None if lost != "mark" else found == Mark(6, "id-5", 1), "a later write hides no loss"


async def test_one_snapshot_that_is_missing_makes_the_mark_none(store: RedisStore, raw: Redis) -> None:
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": STATE, b"b": IDLE})
    assert await raw.hdel(part_keys("demo", "worker", 0)[1], "b") == 1

    assert await store.mark("worker", 0) is None
    await store.write("worker", 0, Mark(6, "id-5"), {b"c": STATE})
    assert await store.mark("worker", 0) is None, "a later write hides no loss"
    await store.drop("worker", 0)
    assert await store.write("worker", 0, Mark(6, "id-5"), {b"c": STATE})
    assert await store.mark("worker", 0) == Mark(6, "id-5", 1)


# --- the server does not answer, or its answers are lost ------------------------------------------


async def test_a_write_whose_answer_was_lost_counts_once(redis_server: RedisServer) -> None:
    async with Proxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}", "demo")
        await store.write("worker", 0, Mark(5), {b"a": STATE})
        proxy.lose_answers = 1

        assert await store.write("worker", 0, Mark(6, "id-5"), {b"b": STATE}, after=5), "sent again, it is known"
        assert proxy.lose_answers == 0
        assert await store.mark("worker", 0) == Mark(6, "id-5", 2)
        await store.close()


async def test_a_frozen_server_is_said_once_and_not_waited_for_again(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", SHORT_S)
    async with Proxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}", "demo")
        await store.write("worker", 0, Mark(5), {b"a": STATE})
        redis_server.signal(signal.SIGSTOP)
        with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{proxy.port} did not answer within 1\.0 s; is it stopped"):
            await store.write("worker", 0, Mark(6, "id-5"), {b"b": STATE}, after=5)
        for _ in range(1_000):  # each would take a second, and the test longer than its time limit
            with pytest.raises(StoreError, match="did not answer within"):
                await store.mark("worker", 0)
        redis_server.signal(signal.SIGCONT)

        assert await mark_when_back(store) in (Mark(6, "id-5", 2), Mark(5, "", 1)), "the late write is whole, or not there"
        assert await store.write("worker", 0, Mark(7, "id-6"), {b"b": STATE}, after=5)
        assert await store.mark("worker", 0) == Mark(7, "id-6", 2)
        await store.close()

    told = [record.message for record in caplog.records if record.name == "crewline_memory.redis_link"]
    assert [("did not answer" in message, "answers again" in message) for message in told] == [(True, False), (False, True)]


async def test_the_next_call_after_one_that_timed_out_gets_its_own_answer(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", SHORT_S)
    async with Proxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}", "demo")
        await store.write("worker", 0, Mark(5), {b"a": STATE})
        proxy.answer_after_s = 1.5 * SHORT_S
        with pytest.raises(StoreError, match="did not answer"):
            await store.pending("worker", 0)
        proxy.answer_after_s = 0.0

        assert await mark_when_back(store) == Mark(5, "", 1)
        assert await store.snapshots("worker", 0, [b"a"]) == {b"a": STATE}
        await store.close()


async def test_a_slow_server_is_slow_and_correct(redis_server: RedisServer) -> None:
    many = {b"k%d" % key: STATE for key in range(300)}
    async with Proxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}", "demo")
        proxy.answer_after_s = 0.05

        assert await store.write("worker", 0, Mark(5), many)
        assert await store.pending("worker", 0) == many
        await store.close()


async def test_a_large_write_has_more_time(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", SHORT_S)
    monkeypatch.setattr(redis_link, "BYTES_PER_S", 100_000)
    many = {b"k%d" % key: STATE for key in range(1_000)}
    async with Proxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}", "demo")
        await store.write("worker", 0, Mark(1), {})
        proxy.answer_after_s = 1.5 * SHORT_S

        assert await store.write("worker", 0, Mark(5), many), "1 MB may take ten seconds more"
        with pytest.raises(StoreError, match="did not answer"):
            await store.write("worker", 0, Mark(6), {b"a": IDLE})
        await store.close()


async def test_a_server_away_for_a_while_is_used_again_by_itself(
    redis_server: RedisServer, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.kill()
    with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{redis_server.port} cannot be reached \(.*refused"):
        await store.write("worker", 0, Mark(5), {b"a": STATE})
    redis_server.start()

    assert await mark_when_back(store) is None
    assert await store.write("worker", 0, Mark(5), {b"a": STATE})
    assert "answers again" in caplog.text


async def test_a_store_is_closed_while_its_server_is_away(redis_server: RedisServer, store: RedisStore) -> None:
    redis_server.kill()
    with pytest.raises(StoreError, match="cannot be reached"):
        await store.mark("worker", 0)
    await store.close()

    with pytest.raises(StoreError, match="is closed"):
        await store.mark("worker", 0)
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "redis-probe"] == []


# --- the server answers, and refuses ------------------------------------------------------------


async def test_a_full_server_writes_nothing_and_says_so(store: RedisStore, raw: Redis) -> None:
    await store.write("worker", 0, Mark(5), {b"a": STATE})
    await raw.config_set("maxmemory", "1mb")
    with pytest.raises(StoreError, match=r"is out of memory; raise `maxmemory`.* Nothing was written"):
        await store.write("worker", 0, Mark(6), {b"%d" % number: STATE for number in range(1_000)})

    assert await store.mark("worker", 0) == Mark(5, "", 1), "what is there can still be read"
    await raw.config_set("maxmemory", "0")
    assert await store.write("worker", 0, Mark(6), {b"b": STATE}, after=5)
    assert await store.mark("worker", 0) == Mark(6, "", 2)


async def test_a_server_that_became_a_replica_is_left_alone_until_it_is_primary_again(
    store: RedisStore, raw: Redis, tmp_path: Path
) -> None:
    await store.write("worker", 0, Mark(5), {b"a": STATE})
    await raw.config_set("replica-serve-stale-data", "yes")
    await raw.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    with pytest.raises(StoreError, match=r"is a read-only replica; give the primary's address\. Nothing was written"):
        await store.write("worker", 0, Mark(6), {b"b": STATE})
    await raw.execute_command("REPLICAOF", "NO", "ONE")

    assert await mark_when_back(store) == Mark(5, "", 1)
    assert await store.write("worker", 0, Mark(6), {b"b": STATE})


async def test_a_key_of_somebody_else_under_our_name_stops_the_write_before_it_began(store: RedisStore, raw: Redis) -> None:
    await store.write("worker", 0, Mark(5), {b"a": STATE})
    open_keys = part_keys("demo", "worker", 0)[2]
    await raw.delete(open_keys)
    await raw.set(open_keys, "no set")
    with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:\d+ refused: .*WRONGTYPE"):
        await store.write("worker", 0, Mark(6), {b"b": STATE})

    assert await raw.hget(part_keys("demo", "worker", 0)[0], "next_offset") == b"5"
    await store.drop("worker", 0)
    assert await store.write("worker", 0, Mark(6), {b"b": STATE})


# --- first contact ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused_with_the_remedy(redis_server: RedisServer, raw: Redis, policy: str) -> None:
    await raw.config_set("maxmemory-policy", policy)
    with pytest.raises(StoreError, match=rf"maxmemory-policy is {policy}\); set `maxmemory-policy noeviction`"):
        await open_store(redis_server.url, "demo")


async def test_a_replica_is_refused(redis_server: RedisServer, raw: Redis) -> None:
    await raw.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    with pytest.raises(StoreError, match="is a read-only replica; give the primary's address"):
        await open_store(redis_server.url, "demo")


async def test_a_wrong_password_is_said_and_no_password_is_shown(
    redis_server: RedisServer, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await raw.config_set("requirepass", "right-secret")
    url = f"redis://:{{}}@127.0.0.1:{redis_server.port}"
    for given in (url.format("wrong-secret"), redis_server.url):
        with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{redis_server.port} lets us in .*put them into the URL") as refused:
            await open_store(given, "demo")
        assert "secret" not in str(refused.value)
    store = await open_store(url.format("right-secret"), "demo")
    assert await store.write("worker", 0, Mark(5), {b"a": STATE})
    assert "secret" not in repr(store) + repr(store._link)
    await store.close()
    assert "secret" not in caplog.text


async def test_a_user_with_the_rights_that_the_page_names_is_enough(redis_server: RedisServer, raw: Redis) -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    [rights] = re.findall(r"`(~crewline:.*?)`", page)
    await raw.execute_command("ACL SETUSER", "crew", "on", ">secret", *rights.split())
    store = await open_store(f"redis://crew:secret@127.0.0.1:{redis_server.port}/1", "demo")

    assert await store.write("worker", 0, Mark(5), {b"a": STATE, b"b": IDLE})
    assert await store.write("worker", 0, Mark(6), {b"a": IDLE, b"b": STATE})
    assert await store.mark("worker", 0) == Mark(6, "", 2)
    assert await store.pending("worker", 0) == {b"b": STATE}
    await store.drop("worker", 0)
    assert [each["object"] for each in await raw.acl_log() if each["object"] != "client|setinfo"] == [], "nothing was refused"
    await raw.execute_command("ACL SETUSER", "crew", "-unlink")
    with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:\d+ refused: .*can't run this command"):
        await store.drop("worker", 0)
    await store.close()


async def test_nobody_there_is_said_with_host_and_port() -> None:
    port = free_port()
    with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{port} cannot be reached \(.*refused\); check that it runs"):
        await open_store(f"redis://127.0.0.1:{port}/3", "demo")


async def test_a_silent_host_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", SHORT_S)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreError, match=r"did not answer within 1\.0 s"):
            await open_store(f"redis://127.0.0.1:{silent.getsockname()[1]}", "demo")


async def test_tls_is_used_with_the_ca_that_the_url_names_and_no_other(
    redis_server: RedisServer, raw: Redis, tmp_path: Path
) -> None:
    for name in ("ours", "other"):
        subprocess.run(  # noqa: ASYNC221
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.crt"],
            cwd=tmp_path, check=True, capture_output=True,
        )
    port = redis_server.port + 1
    for option, value in (("cert-file", "ours.crt"), ("key-file", "ours.key"), ("ca-cert-file", "ours.crt")):
        redis_server.options += (f"--tls-{option}", str(tmp_path / value))
    redis_server.options += ("--tls-port", str(port), "--tls-auth-clients", "no")
    redis_server.kill()
    redis_server.start()

    store = await open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/ours.crt", "demo")
    assert await store.write("worker", 0, Mark(5), {b"a": STATE})
    await store.close()
    for url, says in (
        (f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/other.crt", r"no TLS \(self.signed certificate\); say which CA"),
        (f"rediss://127.0.0.1:{port}", r"no TLS \(self.signed certificate\); say which CA"),
        (f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/none.crt", "a file that the URL names is not there"),
        (f"redis://127.0.0.1:{port}", "cannot be reached .* whether it speaks TLS"),
    ):
        with pytest.raises(StoreError, match=rf"Redis at 127\.0\.0\.1:{port}:? {says}"):
            await open_store(url, "demo")


async def test_tls_where_there_is_none_is_said(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "CALL_S", SHORT_S)
    with pytest.raises(StoreError, match=r"did not answer within .* or does it speak no TLS"):
        await open_store(f"rediss://127.0.0.1:{redis_server.port}", "demo")


@pytest.mark.parametrize("url", ["http://:hidden@h:1", "redis://:hidden@h:port", "redis://:hidden@h:1/?no_such_option=1"])
async def test_what_is_no_redis_url_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(StoreError, match="expected redis://") as refused:
        await open_store(url, "demo")
    assert "hidden" not in str(refused.value)


# --- a cluster ----------------------------------------------------------------------------------


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[list[RedisServer]]:
    """Two primaries, each with half of the slots."""
    servers = []
    for name in ("one", "two"):
        port = free_port()
        options = ("--cluster-enabled", "yes", "--cluster-port", str(port + 1), "--cluster-node-timeout", "1000")
        servers.append(RedisServer(tmp_path / name, *options, port=port).start())
    raws = [Redis.from_url(server.url) for server in servers]
    try:
        for raw, (first, last) in zip(raws, ((0, 8191), (8192, 16383)), strict=True):
            await raw.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        await raws[0].execute_command("CLUSTER MEET", "127.0.0.1", servers[1].port, servers[1].port + 1)
        await until(lambda: whole(raws))
        yield servers
    finally:
        for raw in raws:
            await raw.aclose()
        for server in servers:
            server.kill()


async def whole(raws: Sequence[Redis]) -> bool:
    said = [await raw.execute_command("CLUSTER INFO") for raw in raws]
    return all(each["cluster_state"] == "ok" and each["cluster_known_nodes"] == "2" for each in said)


async def test_a_cluster_keeps_each_part_on_one_of_its_nodes(cluster: list[RedisServer]) -> None:
    one, other = [await open_store(server.url, "demo") for server in cluster]
    for partition in range(12):
        assert await one.write("worker", partition, Mark(5, "id-4"), {b"a": STATE, b"b": IDLE})
        assert await other.mark("worker", partition) == Mark(5, "id-4", 2)
        assert await other.pending("worker", partition) == {b"a": STATE}
        assert not await other.write("worker", partition, Mark(5), {})
    for server in cluster:
        async with Redis.from_url(server.url) as raw:
            assert 0 < await raw.dbsize() < 36
    await one.close()
    await other.close()


async def test_a_node_of_a_cluster_that_was_away_is_used_again_by_itself(cluster: list[RedisServer]) -> None:
    store = await open_store(cluster[0].url, "demo")
    cluster[1].kill()
    refused = []
    for partition in range(12):
        try:
            await store.write("worker", partition, Mark(5), {b"a": STATE})
        except StoreError as error:
            refused.append(str(error))
    assert refused
    assert all(f"Redis at 127.0.0.1:{cluster[0].port}" in said for said in refused)
    cluster[1].start()

    async def all_written() -> bool:
        try:
            for partition in range(12):
                await store.write("worker", partition, Mark(6), {b"a": STATE})
        except StoreError:
            return False
        return True

    await until(all_written)
    for partition in range(12):
        assert await store.mark("worker", partition) == Mark(6, "", 1)
    await store.close()


async def test_a_cluster_of_which_one_node_evicts_is_refused(cluster: list[RedisServer]) -> None:
    async with Redis.from_url(cluster[1].url) as raw:
        await raw.config_set("maxmemory-policy", "allkeys-lfu")
    with pytest.raises(StoreError, match="maxmemory-policy is allkeys-lfu"):
        await open_store(cluster[0].url, "demo")
