"""Databases: PostgreSQL and Redis, their own clients over forwards."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, as_user, need
from support.hosts import TARGET_ADDRESS

ROWS = 20_000

PASSWORD = "correct-horse"


@pytest.fixture(scope="module")
def postgres(shared_corporate: Corporate) -> Iterator[None]:
    need("pg_ctlcluster")
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = shared_corporate.folder("postgres", owner="postgres")
    (folder / "password").write_text(PASSWORD)
    shutil.chown(folder / "password", "postgres")
    initdb: list[str | Path] = [*as_user("postgres"), programs / "initdb", "-D", folder / "data"]
    initdb += ["--no-sync", "--auth=scram-sha-256", f"--pwfile={folder}/password"]
    subprocess.run(
        [*initdb, "--encoding=UTF8", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.77.1.0/24 scram-sha-256\n")
    with shared_corporate.serve(
        *(programs / "postgres", "-D", folder / "data", "-c", f"listen_addresses={TARGET_ADDRESS}"),
        *("-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
        directory=folder,
        user="postgres",
        tcp=[5432],
        ended_by=signal.SIGINT,  # "fast shutdown"
    ) as server:
        server.wait_log("ready to accept connections")
        yield


def psql(
    corporate: Corporate, *commands: str, password: str = PASSWORD
) -> "subprocess.CompletedProcess[str]":
    return corporate.run(
        *(need("psql"), "-X", "-At", "-v", "ON_ERROR_STOP=1"),
        "host=127.0.0.1 user=postgres dbname=postgres",
        *(argument for command in commands for argument in ("-c", command)),
        check=False,
        env={**os.environ, "PGPASSWORD": password},
    )


@pytest.mark.usefixtures("postgres")
def test_psql(corporate: Corporate) -> None:
    done = psql(
        corporate,
        f"create table lines as select n, md5(n::text) as hash from generate_series(1, {ROWS}) n",
        "select inet_client_addr()",
        "select count(*), sum(n) from lines",
        "copy lines to stdout",
    )
    assert done.returncode == 0, done.stderr
    _, client, total, *lines = done.stdout.splitlines()
    assert client == "10.77.1.1"
    assert total == f"{ROWS}|{ROWS * (ROWS + 1) // 2}"
    assert len(lines) == ROWS


@pytest.mark.usefixtures("postgres")
def test_wrong_password_is_an_error_of_postgresql(corporate: Corporate) -> None:
    done = psql(corporate, "select 1", password="wrong")
    assert done.returncode == 2
    assert "password authentication failed" in done.stderr


@pytest.fixture(scope="module")
def redis(shared_corporate: Corporate) -> Iterator[None]:
    with shared_corporate.serve(
        *(need("redis-server"), "--bind", TARGET_ADDRESS, "--port", "6379", "--save", ""),
        *("--appendonly", "no", "--requirepass", PASSWORD),
        directory=shared_corporate.folder("redis"),
        tcp=[6379],
    ):
        yield


@pytest.mark.usefixtures("redis")
def test_redis(corporate: Corporate) -> None:
    client = [need("redis-cli"), "-h", "127.0.0.1", "--no-auth-warning", "-a", PASSWORD]
    assert corporate.run(*client, "set", "printer", "third floor").stdout == "OK\n"
    assert corporate.run(*client, "get", "printer").stdout == "third floor\n"
    commands = "".join(f"set key{number} {number}\n" for number in range(ROWS))
    output = corporate.run(*client, "--pipe", input=commands).stdout
    assert f"errors: 0, replies: {ROWS}" in output
    assert corporate.run(*client, "dbsize").stdout == f"{ROWS + 1}\n"
    refused = corporate.run(*client[:3], "get", "printer")
    assert "NOAUTH" in refused.stdout
