"""Seals: what holds, what is refused, and which keys lie where."""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import stat
from pathlib import Path

import pytest
from crewline import seal as sealing
from crewline.errors import SealError, UsageError
from crewline.seal import Keyring, UnknownKey, key_id, load_keys, make_keys, pool_key, write_role_keys
from hypothesis import given
from hypothesis import strategies as st

RECORD = ("demo.conversations", b"c-1", "turn.started", "c-1:t1", b'{"turn":1}')
DEPLOYMENT_SECRET, GUARD_SEED, PEOPLE_SEED = b"d" * 32, b"g" * 32, b"p" * 32


def public_of(seed: bytes) -> bytes:
    from nacl.signing import SigningKey

    return bytes(SigningKey(seed).verify_key)


def halves(guard: bytes = GUARD_SEED, people: bytes = PEOPLE_SEED) -> dict[str, bytes]:
    guard_half, people_half = public_of(guard), public_of(people)
    return {f"guard-{key_id(guard_half)}": guard_half, f"people-{key_id(people_half)}": people_half}


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(deployment=DEPLOYMENT_SECRET, guard=GUARD_SEED, people=PEOPLE_SEED, public=halves())


@pytest.fixture
def reader() -> Keyring:
    """Holds what is needed to check everything, and has never seen a seal made."""
    return Keyring(deployment=DEPLOYMENT_SECRET, public=halves())


def seals_of(keyring: Keyring) -> dict[str, str]:
    """Return a seal of RECORD by everybody who can make one."""
    return {
        "deployment": keyring.seal(*RECORD),
        "pool/payments": keyring.seal_as_pool("payments", *RECORD),
        "guard": keyring.sign("guard", *RECORD),
        "people": keyring.sign("people", *RECORD),
    }


EVERYBODY = ["deployment", "pool/payments", "guard", "people"]


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_seal_names_who_made_it(keyring: Keyring, reader: Keyring, who: str) -> None:
    assert reader.check(seals_of(keyring)[who], *RECORD) == who


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_seal_with_any_bit_of_any_character_flipped_is_refused(keyring: Keyring, reader: Keyring, who: str) -> None:
    seal = seals_of(keyring)[who]
    for place in range(len(seal)):
        for bit in range(7):
            forged = seal[:place] + chr(ord(seal[place]) ^ (1 << bit)) + seal[place + 1 :]
            with pytest.raises(SealError):
                reader.check(forged, *RECORD)


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_seal_does_not_hold_for_a_record_with_any_bit_flipped(keyring: Keyring, reader: Keyring, who: str) -> None:
    seal, (topic, key, event_type, id, value) = seals_of(keyring)[who], RECORD
    for place in range(len(value)):
        for bit in range(8):
            changed = bytearray(value)
            changed[place] ^= 1 << bit
            with pytest.raises(SealError):
                reader.check(seal, topic, key, event_type, id, bytes(changed))


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize(
    "moved",
    [
        ("demo.tools.main", *RECORD[1:]),
        (RECORD[0], b"c-2", *RECORD[2:]),
        (*RECORD[:2], "turn.finished", *RECORD[3:]),
        (*RECORD[:3], "c-1:t2", RECORD[4]),
        (*RECORD[:4], b""),
        # the same bytes with the borders between the parts moved
        (RECORD[0][:-1], b"s" + RECORD[1], *RECORD[2:]),
        (*RECORD[:2], RECORD[2] + "c", RECORD[3][1:], RECORD[4]),
    ],
    ids=["topic", "key", "type", "id", "value", "border of topic and key", "border of type and id"],
)
def test_a_seal_cannot_be_moved_to_another_record(
    keyring: Keyring, reader: Keyring, who: str, moved: tuple[str, bytes, str, str, bytes]
) -> None:
    with pytest.raises(SealError):
        reader.check(seals_of(keyring)[who], *moved)


PART = st.text(st.characters(codec="ascii"), max_size=4)
PARTS = st.tuples(PART, PART.map(str.encode), PART, PART, PART.map(str.encode))


@given(PARTS, PARTS)
def test_two_records_never_share_what_a_seal_covers(
    one: tuple[str, bytes, str, str, bytes], other: tuple[str, bytes, str, str, bytes]
) -> None:
    assert (sealing.sealed_bytes(*one) == sealing.sealed_bytes(*other)) == (one == other)


@pytest.mark.parametrize("seal", ["", ".", "..", "h1", "h1.", "e1.guard", "x1.deployment.00", "h2.a.b", "h1..00"])
def test_a_malformed_seal_is_refused(reader: Keyring, seal: str) -> None:
    with pytest.raises(SealError):
        reader.check(seal, *RECORD)


@given(st.text(max_size=60))
def test_no_seal_raises_anything_but_seal_error(text: str) -> None:
    with pytest.raises(SealError):
        Keyring(deployment=DEPLOYMENT_SECRET, public=halves()).check(text, *RECORD)


@pytest.mark.parametrize("spelled", [str.upper, lambda digits: " ".join([digits[:2], digits[2:]])])
def test_a_signature_has_one_spelling(keyring: Keyring, reader: Keyring, spelled) -> None:  # type: ignore[no-untyped-def]
    head, _, digits = keyring.sign("guard", *RECORD).rpartition(".")
    with pytest.raises(SealError):
        reader.check(f"{head}.{spelled(digits)}", *RECORD)


def test_a_signature_that_held_once_is_not_taken_for_another_record(keyring: Keyring, reader: Keyring) -> None:
    seal = keyring.sign("guard", *RECORD)
    for _ in range(2):  # the second answer comes from what was remembered
        assert reader.check(seal, *RECORD) == "guard"
    with pytest.raises(SealError):
        reader.check(seal, *RECORD[:4], b"other")


# --- unknown or broken -------------------------------------------------------------------------


def test_a_key_not_held_is_told_from_a_broken_seal(keyring: Keyring) -> None:
    other = Keyring(deployment=b"o" * 32, guard=b"q" * 32, public={})
    for unknown in (other.seal(*RECORD), other.sign("guard", *RECORD), "h1.pool/x", "h1.deployment.00"):
        with pytest.raises(SealError):
            keyring.check(unknown, *RECORD)
    for unknown in (other.seal(*RECORD), other.sign("guard", *RECORD)):
        with pytest.raises(UnknownKey):
            keyring.check(unknown, *RECORD)

    broken = keyring.seal(*RECORD)[:-1] + "x"
    with pytest.raises(SealError) as caught:
        keyring.check(broken, *RECORD)
    assert not isinstance(caught.value, UnknownKey)


def test_a_process_without_any_key_vouches_for_nothing(keyring: Keyring) -> None:
    for seal in seals_of(keyring).values():
        with pytest.raises(UnknownKey):
            Keyring().check(seal, *RECORD)


def test_a_public_half_counts_for_the_guardrail_and_the_people_only(keyring: Keyring) -> None:
    half = public_of(GUARD_SEED)
    seal = keyring.sign("guard", *RECORD).replace(f"guard-{key_id(half)}", "deployment-x")
    with pytest.raises(UnknownKey):
        Keyring(public={"deployment-x": half}).check(seal, *RECORD)


# --- pools -------------------------------------------------------------------------------------


def test_a_pool_seals_as_itself_and_as_nobody_else(keyring: Keyring, reader: Keyring) -> None:
    pool = keyring.for_pool("payments")

    assert reader.check(pool.seal_as_pool("payments", *RECORD), *RECORD) == "pool/payments"
    with pytest.raises(UsageError, match="crewline keys pool mail"):
        pool.seal_as_pool("mail", *RECORD)
    with pytest.raises(UsageError, match=r"seal\.key"):
        pool.seal(*RECORD)
    for who in ("guard", "people"):
        with pytest.raises(UsageError, match=f"{who}.key"):
            pool.sign(who, *RECORD)


def test_a_pools_seal_under_another_pools_name_is_refused(keyring: Keyring, reader: Keyring) -> None:
    seal = keyring.for_pool("payments").seal_as_pool("payments", *RECORD)
    for name in ("pool/mail", f"deployment-{key_id(DEPLOYMENT_SECRET)}", "pool/"):
        with pytest.raises(SealError):
            reader.check(seal.replace("pool/payments", name), *RECORD)


def test_a_pool_checks_verdicts_and_its_own_seals_but_no_other_pools(keyring: Keyring) -> None:
    pool = keyring.for_pool("payments")
    assert pool.check(keyring.sign("guard", *RECORD), *RECORD) == "guard"
    assert pool.check(keyring.seal_as_pool("payments", *RECORD), *RECORD) == "pool/payments"
    for seal in (keyring.seal(*RECORD), keyring.seal_as_pool("mail", *RECORD)):
        with pytest.raises(UnknownKey):
            pool.check(seal, *RECORD)


def test_a_pools_key_is_hkdf_of_the_deployments() -> None:
    extracted = hmac.new(b"\0" * 32, DEPLOYMENT_SECRET, hashlib.sha256).digest()
    expected = hmac.new(extracted, b"pool/payments\x01", hashlib.sha256).digest()
    assert pool_key(DEPLOYMENT_SECRET, "payments") == expected


def test_names_in_forged_seals_leave_no_trace(keyring: Keyring) -> None:
    before = keyring.holds()
    for n in range(3 * sealing._DERIVED_MAX):
        with pytest.raises(SealError):
            keyring.check(f"h1.pool/made-up-{n}.00", *RECORD)
    assert keyring.holds() == before
    assert len(keyring._derived) <= sealing._DERIVED_MAX


def test_what_a_keyring_lacks_it_lacks_whatever_was_done_before(keyring: Keyring) -> None:
    keyring.seal_as_pool("payments", *RECORD)
    for lesser in (keyring.without("deployment"), keyring.without("deployment", "guard", "people")):
        with pytest.raises(UsageError):
            lesser.seal_as_pool("payments", *RECORD)
        with pytest.raises(UsageError):
            lesser.seal(*RECORD)
    with pytest.raises(UsageError):
        keyring.without("guard").sign("guard", *RECORD)
    assert keyring.without("guard").sign("people", *RECORD)


# --- Ed25519 and rotation ----------------------------------------------------------------------


def test_signatures_are_ed25519_of_what_is_covered(keyring: Keyring) -> None:
    from nacl.signing import VerifyKey

    digits = keyring.sign("people", *RECORD).rpartition(".")[2]
    VerifyKey(public_of(PEOPLE_SEED)).verify(sealing.sealed_bytes(*RECORD), bytes.fromhex(digits))
    assert len(bytes.fromhex(digits)) == 64


def test_old_and_new_halves_side_by_side_are_a_rotation() -> None:
    old, new = Keyring(guard=GUARD_SEED), Keyring(guard=b"n" * 32)
    both = Keyring(public=halves(GUARD_SEED) | halves(b"n" * 32))
    retired = Keyring(public=halves(b"n" * 32))

    assert both.check(old.sign("guard", *RECORD), *RECORD) == "guard"
    assert both.check(new.sign("guard", *RECORD), *RECORD) == "guard"
    assert retired.check(new.sign("guard", *RECORD), *RECORD) == "guard"
    with pytest.raises(UnknownKey, match="public half"):
        retired.check(old.sign("guard", *RECORD), *RECORD)


def test_no_secret_is_ever_shown(keyring: Keyring) -> None:
    keyring.seal_as_pool("payments", *RECORD)
    shown = f"{keyring!r} {keyring!s} {keyring.holds()}"
    for secret in (DEPLOYMENT_SECRET, GUARD_SEED, PEOPLE_SEED, pool_key(DEPLOYMENT_SECRET, "payments")):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
    assert keyring.holds()[:3] == ["deployment", "guard", "people"]


# --- files -------------------------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_made_once_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "keys"
    make_keys(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    make_keys(folder)

    assert before == {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(name.partition("-")[0] for name in before) == sorted(
        ["seal.key", "guard.key", "people.key", "guard", "people"]
    )
    assert mode_of(folder) == 0o700
    assert {mode_of(path) for path in folder.iterdir()} == {0o600}


def test_keys_from_files_seal_and_check(tmp_path: Path) -> None:
    make_keys(tmp_path)
    one, other = load_keys(tmp_path), load_keys(tmp_path)

    assert {who: other.check(seal, *RECORD) for who, seal in seals_of(one).items()} == {who: who for who in EVERYBODY}


def _make(folder: str) -> str:
    make_keys(Path(folder))
    keyring = load_keys(Path(folder))
    return " ".join([keyring.seal(*RECORD), keyring.sign("guard", *RECORD), keyring.sign("people", *RECORD)])


def test_processes_that_start_at_once_get_the_same_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "keys"
    with context.Pool(4) as processes:
        made = processes.map(_make, [str(folder)] * 12, chunksize=1)

    assert len(set(made)) == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".key"] * 3 + [".pub"] * 2  # and no drafts


def test_a_pools_folder_holds_its_key_and_the_public_halves_alone(tmp_path: Path) -> None:
    keys, target = tmp_path / "keys", tmp_path / "payments"
    make_keys(keys)
    written = write_role_keys(keys, "tools.payments", target)

    secrets_of_others = [path.read_text().strip() for path in keys.glob("*.key")]
    assert sorted(written) == sorted(target.iterdir())
    assert sorted(path.suffix for path in written) == [".key", ".pub", ".pub"]
    assert not any(secret in path.read_text() for secret in secrets_of_others for path in written)
    assert {mode_of(path) for path in written} == {0o600}
    assert load_keys(target).holds()[0] == "pool/payments"
    seal = load_keys(target).seal_as_pool("payments", *RECORD)
    assert load_keys(keys).check(seal, *RECORD) == "pool/payments"


def test_a_pools_folder_may_not_be_one_with_other_keys(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with pytest.raises(UsageError, match=r"holds guard\.key, which tools\.payments may not have"):
        write_role_keys(tmp_path, "tools.payments", tmp_path)


def test_a_pools_old_key_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    for keys in ("old", "new"):
        make_keys(tmp_path / keys)
    write_role_keys(tmp_path / "old", "tools.payments", tmp_path / "pool")
    with pytest.raises(UsageError, match="another key"):
        write_role_keys(tmp_path / "new", "tools.payments", tmp_path / "pool")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0"])
def test_a_pools_name_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    make_keys(tmp_path / "keys")
    with pytest.raises(UsageError, match="no name for a tool pool"):
        write_role_keys(tmp_path / "keys", f"tools.{name}", tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(("role", "secret"), [
    ("worker", ["seal.key"]), ("guardrail", ["guard.key", "seal.key"]), ("triggers", ["seal.key"]),
    ("client", ["seal.key"]), ("console", ["people.key", "seal.key"]), ("tools.a.b", ["pool-a.b.key"]),
])
def test_a_roles_folder_holds_what_the_role_signs_with_and_nothing_else(tmp_path: Path, role: str, secret: list[str]) -> None:
    keys, target = tmp_path / "keys", tmp_path / "role"
    make_keys(keys)
    written = write_role_keys(keys, role, target)

    assert sorted(path.name for path in target.glob("*.key")) == secret
    assert {path.name for path in keys.glob("*.pub")} == {path.name for path in target.glob("*.pub")}
    assert {mode_of(path) for path in written} == {0o600}
    assert mode_of(target) == 0o700
    assert sorted(write_role_keys(keys, role, target)) == sorted(target.iterdir()), "again: no change"


def test_a_role_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    with pytest.raises(UsageError, match=r"no role 'boss'; .*worker, guardrail, .*tools\.NAME"):
        write_role_keys(tmp_path / "keys", "boss", tmp_path / "boss")
    assert not (tmp_path / "boss").exists()


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="crewline keys init"):
        load_keys(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "00", "zz" * 32, "0" * 63, "00" * 33, "\ud7ff" * 3])
def test_a_file_that_is_no_key_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    make_keys(tmp_path)
    (tmp_path / "seal.key").write_text(content)
    with pytest.raises(UsageError, match=r"seal\.key") as caught:
        load_keys(tmp_path)
    assert len(content) < 3 or content not in str(caught.value)
