"""The folder of tokens: made, listed, revoked, reread by a running ps, handed out by deploy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minga.deploy.identity import OWN, hand_out
from minga.errors import Refused, UsageError
from minga.messages import Hello
from minga.ps.members import Members
from minga.transport import tokens
from minga.transport.identity import Identity, Secret
from support import RunMinga


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "state")


def test_a_token_is_valid_from_its_creation_to_its_revocation(identity: Identity) -> None:
    valid = tokens.Tokens(identity)
    shared = valid.find("")
    assert shared is not None
    assert (shared.name, shared.secret) == (tokens.SHARED, identity.secret)
    assert valid.find(identity.secret.id) == shared
    made = tokens.create(identity, "desk-1")
    found = valid.find(made.id)
    assert found is not None
    assert (found.name, found.secret) == ("desk-1", made.secret)
    assert made.secret.pin == identity.secret.pin
    tokens.revoke(identity, "desk-1")
    assert valid.find(made.id) is None
    assert valid.find("") == shared


def test_a_pc_may_have_two_tokens_until_one_is_revoked(identity: Identity) -> None:
    first, second = (tokens.create(identity, "desk-1") for _ in range(2))
    other = tokens.create(identity, "desk-2")
    tokens.revoke(identity, first.id)
    assert {each.id for each in tokens.listed(identity.tokens)} == {second.id, other.id}
    tokens.revoke(identity, "desk-1")
    assert {each.id for each in tokens.listed(identity.tokens)} == {other.id}
    with pytest.raises(UsageError, match="'desk-1'") as raised:
        tokens.revoke(identity, "desk-1")
    assert raised.value.code == "token-unknown"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b", tokens.SHARED, "x" * 201])
def test_a_name_that_is_no_pc_is_refused(identity: Identity, name: str) -> None:
    with pytest.raises(UsageError) as raised:
        tokens.create(identity, name)
    assert raised.value.code == "token-name"


def test_files_that_are_no_tokens_let_nobody_in(identity: Identity) -> None:
    made = tokens.create(identity, "desk-1")
    path = identity.tokens / made.file
    path.with_name(f".{made.file}.part").write_text(str(made.secret))
    path.with_name("desk-2.00000000").write_text(str(made.secret))
    path.with_name("note").write_text("hello")
    assert [each.name for each in tokens.listed(identity.tokens)] == ["desk-1"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert identity.tokens.stat().st_mode & 0o777 == 0o700


def test_the_id_says_nothing_about_the_token(identity: Identity) -> None:
    made = tokens.create(identity, "desk-1")
    assert made.id not in made.secret.token.hex()
    assert made.id not in str(made.secret)
    assert len({tokens.create(identity, "desk-1").id for _ in range(50)}) == 50


def test_a_worker_process_belongs_to_one_token(identity: Identity) -> None:
    one, other = (tokens.create(identity, name) for name in ("desk-1", "desk-2"))
    renewed = tokens.create(identity, "desk-1")
    members, hello = Members(), Hello(protocol=0, uuid="ab")
    members.admit(hello, "10.0.0.1", 0.0, one)
    for token in (other, None):
        with pytest.raises(Refused, match="desk-1") as raised:
            members.admit(hello, "10.0.0.2", 1.0, token)
        assert raised.value.code == "uuid-held"
    assert members.admit(hello, "10.0.0.1", 2.0, renewed).token_id == renewed.id
    kept = Members()
    kept.restore(members.state(), 0.0)
    with pytest.raises(Refused):
        kept.admit(hello, "10.0.0.2", 3.0, other)
    kept.admit(hello, "10.0.0.1", 4.0, renewed)


def test_deploy_hands_each_pc_what_it_needs_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    hand_out(folder, ["a"], ["a", "b"])
    hand_out(folder, ["a"], ["a", "b", "c"])  # tokens stay
    made = {each.name: each for each in tokens.listed(folder / "tokens")}
    assert set(made) == {"a", "b", "c"}
    parts = {
        pc.name: {str(each.relative_to(pc)) for each in pc.rglob("*") if each.is_file()}
        for pc in (folder / "pcs").iterdir()
    }
    files = {f"tokens/{each.file}" for each in made.values()}
    assert parts == {
        "a": {OWN, "token", "ps.crt", "ps.key", *files},
        "b": {OWN},
        "c": {OWN},
    }
    for name, token in made.items():
        assert Secret.read(folder / "pcs" / name / OWN) == token.secret
    tokens.revoke(Identity.load_or_create(folder), "b")
    hand_out(folder, ["a"], ["a", "c"])
    assert not (folder / "pcs" / "b").exists()
    assert len([*(folder / "pcs" / "a" / "tokens").iterdir()]) == 2


def test_deploy_takes_pcs_that_are_named_by_their_addresses(tmp_path: Path) -> None:
    hand_out(tmp_path, ["10.0.0.1"], ["fd00::2"])
    assert {each.name for each in (tmp_path / "pcs").iterdir()} == {"10.0.0.1", "fd00::2"}


def test_the_commands_make_list_and_revoke(run_minga: RunMinga, tmp_path: Path) -> None:
    made = run_minga("token", "new", "desk-1")
    assert made.returncode == 0, made.stderr
    secret = Secret.parse(made.stdout)
    (row,) = json.loads(run_minga("token", "list", "--json").stdout)
    assert (row["name"], row["id"]) == ("desk-1", secret.id)
    assert run_minga("token", "list").stdout.split()[:2] == ["desk-1", secret.id]
    assert run_minga("token", "revoke", "desk-1").stdout == f"revoked desk-1 {secret.id}\n"
    again = run_minga("token", "revoke", "desk-1")
    assert again.returncode == 2
    assert "error[token-unknown]" in again.stderr
    assert "minga token new NAME" in run_minga("token", "list").stderr
