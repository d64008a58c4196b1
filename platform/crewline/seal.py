"""Who wrote a record: seals, and the keys behind them.

A seal covers (topic, key, type, ce_id, sha256 of the value), so it cannot be moved to another record.
On the wire, in the `seal` header: `<algorithm>.<key name>.<hex>`.

  h1.deployment-ID.… HMAC-SHA256, the deployment's seal key: workers, intake, the guardrail's ordinary records
  h1.pool/NAME.…    HMAC-SHA256, a key derived from it by HKDF: the tool pool NAME
  e1.guard-ID.…     Ed25519, the guardrail: verdicts, checkpoints, denials at a deadline
  e1.people-ID.…    Ed25519, the people (console, CLI): approvals, resolutions

Keys are files in one folder (0600): `seal.key`, `pool-NAME.key`, `guard.key` and `people.key` with
their public halves `guard-ID.pub`, `people-ID.pub`. Several public halves side by side are a rotation.
A process holds only the keys of its folder: what it cannot check, it does not accept.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewline.errors import SealError, UsageError
from crewline.recent import Recent

if TYPE_CHECKING:
    from nacl.signing import SigningKey, VerifyKey

DEPLOYMENT = "deployment"
_DOMAIN = b"crewline seal v1\n"
# HMAC's pads (RFC 2104), for keys of at most 64 bytes.
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_LENGTHS = struct.Struct(">4I")
_VERIFIED = 512
_MADE = 1_024
_DERIVED_MAX = 256


def pool_key(deployment: bytes, pool: str) -> bytes:
    """Return a pool's key: HKDF-SHA256 (RFC 5869), salt empty, info `pool/NAME`, 32 bytes (one block)."""
    extracted = hmac.digest(b"\0" * 32, deployment, "sha256")
    return hmac.digest(extracted, f"pool/{pool}".encode() + b"\x01", "sha256")


def sealed_bytes(topic: str, key: bytes, event_type: str, id: str, value: bytes) -> bytes:
    """Return what a seal covers. The lengths of its parts come first, so no two records share it."""
    topic_, type_, id_ = topic.encode(), event_type.encode(), id.encode()
    lengths = _LENGTHS.pack(len(topic_), len(key), len(type_), len(id_))
    return b"".join((_DOMAIN, lengths, topic_, key, type_, id_, hashlib.sha256(value).digest()))


class UnknownKey(SealError):
    """A seal of a key that this process does not hold: nobody here can vouch for the record."""


class Keyring:
    """The keys a process holds. Never shows one in `repr`.

    Args:
        deployment: the deployment's seal key, for those who may write ordinary records.
        pools: pool keys this process holds without the deployment's key.
        guard, people: Ed25519 seeds, for those who sign.
        public: public halves by key name (`guard-ID`, `people-ID`).
    """

    def __init__(
        self,
        *,
        deployment: bytes | None = None,
        pools: Mapping[str, bytes] | None = None,
        guard: bytes | None = None,
        people: bytes | None = None,
        public: Mapping[str, bytes] | None = None,
    ) -> None:
        self._deployment = deployment
        self._pools = dict(pools or {})
        self._derived: dict[str, bytes] = {}
        self._seeds = {"guard": guard, "people": people}
        self._public = dict(public or {})
        self._deployment_name = f"{DEPLOYMENT}-{key_id(deployment)}" if deployment else ""
        self._signers: dict[str, tuple[str, SigningKey]] = {}
        self._pads: dict[str, tuple[Any, Any]] = {}
        self._verifiers: dict[str, VerifyKey] = {}
        # Ed25519 costs 100 µs a check, and roles of one process read the same records: remember what held.
        self._verified: Recent[tuple[str, bytes], bool] = Recent(_VERIFIED)
        # By seal, what `Scribe` made of late and `Reader` will see again (see `records.Made`).
        self.made: Recent[bytes, Any] = Recent(_MADE)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.holds())}>"

    def holds(self) -> list[str]:
        """Return the names of the keys held, secret ones first, for `crewline keys show`."""
        secret = [DEPLOYMENT] if self._deployment else []
        secret += [f"pool/{name}" for name in self._pools]
        secret += [name for name, seed in self._seeds.items() if seed]
        return secret + sorted(self._public)

    def without(self, *names: str) -> Keyring:
        """Return a keyring that lacks the named secret keys (`deployment`, `guard`, `people`)."""
        return self._sharing(Keyring(
            deployment=None if DEPLOYMENT in names else self._deployment,
            pools=self._pools,
            guard=None if "guard" in names else self._seeds["guard"],
            people=None if "people" in names else self._seeds["people"],
            public=self._public,
        ))

    def for_pool(self, pool: str) -> Keyring:
        """Return what a tool pool's process holds: its own key and the public halves."""
        return self._sharing(Keyring(pools={pool: self._pool(pool)}, public=self._public))

    def _sharing(self, other: Keyring) -> Keyring:
        """Let roles of one process share what was verified and made: they trust the same keys, and each
        takes only what is sealed with a key it holds."""
        other._verified = self._verified
        other.made = self.made
        return other

    def seal(self, topic: str, key: bytes, event_type: str, id: str, value: bytes) -> str:
        """Return the deployment's seal. Raises: UsageError if this process does not hold the key."""
        if self._deployment is None:
            raise UsageError("this process holds no seal key; give it `seal.key` of the keys folder")
        return self._mac(self._deployment_name, self._deployment, sealed_bytes(topic, key, event_type, id, value))

    def seal_as_pool(self, pool: str, topic: str, key: bytes, event_type: str, id: str, value: bytes) -> str:
        """Return a pool's seal. Raises: UsageError if this process holds no key for it."""
        return self._mac(f"pool/{pool}", self._pool(pool), sealed_bytes(topic, key, event_type, id, value))

    def sign(self, who: str, topic: str, key: bytes, event_type: str, id: str, value: bytes) -> str:
        """Return an Ed25519 seal by `who` (`guard` or `people`). Raises: UsageError without that key."""
        name, signer = self._signer(who)
        covered = sealed_bytes(topic, key, event_type, id, value)
        seal = f"e1.{name}.{signer.sign(covered).signature.hex()}"
        self._verified.put((seal, covered), True)
        return seal

    def vouched(self, seal: str) -> str | None:
        """Return who `check` says made this seal, which was made by this ring or one that shares with it; or None
        if this ring lacks the key."""
        name = seal.split(".", 2)[1]
        if name == self._deployment_name:
            return DEPLOYMENT
        if name.startswith("pool/"):
            return name if self._deployment is not None or name[5:] in self._pools else None
        return name.partition("-")[0] if name in self._public else None

    def check(self, seal: str, topic: str, key: bytes, event_type: str, id: str, value: bytes) -> str:
        """Return the name of the key that sealed this record: `deployment`, `pool/NAME`, `guard`, `people`.

        Raises: UnknownKey if this process does not hold its key; SealError if it is malformed or broken.
        """
        algorithm, _, rest = seal.partition(".")
        name, _, digest = rest.rpartition(".")
        covered = sealed_bytes(topic, key, event_type, id, value)
        if algorithm == "h1":
            expected = self._mac(name, self._secret(name), covered)
            if not hmac.compare_digest(expected.encode(), seal.encode()):
                raise SealError(f"the seal of key {name!r} does not hold: the record was changed or forged")
            return name if name != self._deployment_name else DEPLOYMENT
        if algorithm == "e1":
            self._verify(name, digest, seal, covered)
            return name.partition("-")[0]
        raise SealError("the seal is malformed; expected h1.KEY.HEX or e1.KEY.HEX")

    def _mac(self, name: str, secret: bytes, covered: bytes) -> str:
        pads = self._pads.get(name)
        if pads is None:
            if len(self._pads) >= _DERIVED_MAX:
                self._pads.clear()
            padded = secret.ljust(64, b"\0")
            pads = self._pads[name] = (
                hashlib.sha256(padded.translate(_INNER)), hashlib.sha256(padded.translate(_OUTER))
            )
        # hmac.digest gives the GIL away on each call; from prepared pads it takes a third of the time.
        inner, outer = pads[0].copy(), pads[1].copy()
        inner.update(covered)
        outer.update(inner.digest())
        return f"h1.{name}.{outer.hexdigest()}"

    def _secret(self, name: str) -> bytes:
        if self._deployment is not None and name == self._deployment_name:
            return self._deployment
        if name.startswith("pool/"):
            try:
                return self._pool(name[5:])
            except UsageError:
                pass  # said below, as what it is to a reader: a key not held
        raise UnknownKey(f"sealed with key {name!r}, which this process does not hold")

    def _pool(self, pool: str) -> bytes:
        if (held := self._pools.get(pool)) is not None:
            return held
        if self._deployment is None:
            raise UsageError(f"this process holds no key for pool {pool!r}; make it with `crewline keys pool {pool}`")
        if (derived := self._derived.get(pool)) is None:
            if len(self._derived) >= _DERIVED_MAX:
                self._derived.clear()  # names come from seals, which anybody can make up
            self._derived[pool] = derived = pool_key(self._deployment, pool)
        return derived

    def _signer(self, who: str) -> tuple[str, SigningKey]:
        if who not in self._signers:
            from nacl.signing import SigningKey

            seed = self._seeds.get(who)
            if seed is None:
                raise UsageError(f"this process holds no {who} key; give it `{who}.key` of the keys folder")
            key = SigningKey(seed)
            self._signers[who] = (f"{who}-{key_id(bytes(key.verify_key))}", key)
        return self._signers[who]

    def _verify(self, name: str, digest: str, seal: str, covered: bytes) -> None:
        if self._verified.get((seal, covered)):
            return
        from nacl.exceptions import CryptoError
        from nacl.signing import VerifyKey

        if name not in self._public or name.partition("-")[0] not in self._seeds:
            raise UnknownKey(f"signed with key {name!r}, whose public half is not in the keys folder")
        if name not in self._verifiers:
            self._verifiers[name] = VerifyKey(self._public[name])
        try:
            signature = bytes.fromhex(digest)
            if signature.hex() != digest:
                raise ValueError("capitals or blanks among its digits")  # one signature, one text
            self._verifiers[name].verify(covered, signature)
        except (CryptoError, ValueError, TypeError):
            raise SealError(f"the signature of key {name!r} does not hold: the record was changed or forged") from None
        self._verified.put((seal, covered), True)


def key_id(public: bytes) -> str:
    """Return the short name of a public key: the first 8 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:8]


def make_keys(folder: Path) -> None:
    """Make a deployment's keys in `folder` (0700, files 0600). Keeps what is there.

    Safe against several processes starting at once: each file is made whole under another name and
    linked into place, and the first one counts.
    """
    from nacl.signing import SigningKey

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_once(folder / "seal.key", secrets.token_bytes(32))
    for who in ("guard", "people"):
        _write_once(folder / f"{who}.key", secrets.token_bytes(32))
        public = bytes(SigningKey(_read_key(folder / f"{who}.key")).verify_key)
        _write_once(folder / f"{who}-{key_id(public)}.pub", public)


def load_keys(folder: Path) -> Keyring:
    """Return the keys found in `folder`; a role's folder holds only what that role needs.

    Raises: UsageError if the folder is missing, or a file in it is no key.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no keys folder; make one with `crewline keys init {folder}`",
                         hint="or name another folder: --keys DIR")  # fmt: skip
    secret = {path.stem: _read_key(path) for path in sorted(folder.glob("*.key"))}
    return Keyring(
        deployment=secret.get("seal"),
        pools={name[5:]: key for name, key in secret.items() if name.startswith("pool-")},
        guard=secret.get("guard"),
        people=secret.get("people"),
        public={path.stem: _read_key(path) for path in sorted(folder.glob("*.pub"))},
    )


ROLE_KEYS: Mapping[str, tuple[str, ...]] = {
    "worker": ("seal",),
    "guardrail": ("seal", "guard"),
    "triggers": ("seal",),
    "client": ("seal",),
    "console": ("seal", "people"),
}
"""The secret keys of each role; a tool pool `tools.NAME` has its own, derived one. `client` is a program that asks,
`console` (the command line too) decides besides."""


def write_role_keys(folder: Path, role: str, target: Path) -> list[Path]:
    """Make the keys folder of a role (`worker`, `tools.NAME`…): its secret keys, the public halves. Return the files.

    Raises: UsageError for a role or a pool's name that there cannot be, or if `target` holds a key that
    the role must not have, or another key of the same name.
    """
    keyring = load_keys(folder)
    pool = role.removeprefix("tools.") if role.startswith("tools.") else None
    if pool is not None:
        secret = {_pool_file(pool): keyring._pool(pool)}
    elif role in ROLE_KEYS:
        secret = {f"{name}.key": _read_key(folder / f"{name}.key") for name in ROLE_KEYS[role]}
    else:
        raise UsageError(f"there is no role {role!r}; roles with keys are: {', '.join(ROLE_KEYS)}, tools.NAME")
    for path in sorted(target.glob("*.key")):
        if path.name not in secret:
            raise UsageError(f"{target} holds {path.name}, which {role} may not have; name another folder")
    public = {path.name: _read_key(path) for path in sorted(folder.glob("*.pub"))}
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {target / name: content for name, content in (secret | public).items()}
    for path, content in files.items():
        _write_once(path, content)
        if _read_key(path) != content:
            raise UsageError(f"{path} holds another key; remove it if the deployment's keys were made anew")
    return list(files)


def _pool_file(pool: str) -> str:
    if not pool or pool.startswith(".") or "/" in pool or "\0" in pool:
        raise UsageError(f"{pool!r} is no name for a tool pool")
    return f"pool-{pool}.key"


def _write_once(path: Path, content: bytes) -> None:
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its key counts
    finally:
        os.unlink(draft)


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a key (64 hex digits): {error}") from None
    if len(key) != 32:
        raise UsageError(f"{path}: a key has 32 bytes (64 hex digits), this one {len(key)}")
    return key
