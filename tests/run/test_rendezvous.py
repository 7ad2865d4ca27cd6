"""Processes that connect, and those that cannot: each one ends with the same fault, within seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import pytest
import torch
from cluster import free_ports
from torch.distributed import TCPStore

from slowfast.run import rendezvous
from slowfast.run.rendezvous import join_group, meet

FORK = multiprocessing.get_context("fork")


def attempt(number: int, place: dict[str, str], timeout: float, results) -> None:
    os.environ.update(place, SLURMD_NODENAME=f"node{number}")
    begun = time.monotonic()
    try:
        if "GLOO_SOCKET_IFNAME" in place:
            join_group("gloo", torch.device("cpu"), timeout, lambda: None)
        store = meet(timeout, lambda: None)
        store.set(place["RANK"], place["RANK"])
        store.wait([str(rank) for rank in range(int(place["WORLD_SIZE"]))])
        outcome = "met"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    results.put((number, outcome, time.monotonic() - begun))
    if outcome == "met":
        time.sleep(0.5)  # the store of rank 0 ends with it


def together(ranks: Sequence[int], worlds: Sequence[int], port: int, host="127.0.0.1", timeout=20.0, **more: str):
    """Return the results of processes of these ranks, and the seconds that the slowest took."""
    results = FORK.Queue()
    children = []
    for number, (rank, world) in enumerate(zip(ranks, worlds, strict=True)):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": host, "MASTER_PORT": str(port), **more}
        children.append(FORK.Process(target=attempt, args=(number, place, timeout, results)))
        children[-1].start()
    found = sorted(results.get(timeout=60) for _ in ranks)
    for child in children:
        child.join(10)
    return [outcome for _, outcome, _ in found], max(seconds for *_, seconds in found)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 3.0)
    monkeypatch.setattr(rendezvous, "NOTICE", 0.3)


def test_a_group_connects(port):
    assert together([2, 0, 1], [3] * 3, port)[0] == ["met"] * 3


def test_an_interface_that_a_machine_does_not_have_is_an_error(port):
    outcomes, seconds = together([0, 1], [2] * 2, port, GLOO_SOCKET_IFNAME="eth77")
    assert all(outcome.startswith("ValueError: GLOO_SOCKET_IFNAME 'eth77'") for outcome in outcomes), outcomes
    assert seconds < 15


@pytest.mark.parametrize(
    ("ranks", "worlds", "message"),
    [
        ([0, 1, 1], [3] * 3, "ValueError: rank 1 was started 2 times, on node"),
        ([0, 2], [2, 3], "ValueError: the processes of this job do not expect the same number of processes"),
    ],
)
def test_processes_that_are_not_one_group_end_with_the_same_fault(ranks, worlds, message, port, capfd):
    outcomes, seconds = together(ranks, worlds, port)
    assert len(set(outcomes)) == 1 and outcomes[0].startswith(message) and seconds < 15
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n"], ids=["silent", "talking"])
def test_a_port_in_use_is_an_error(answer, impatient):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve():
            while answer:
                connection, _ = listener.accept()
                connection.sendall(answer)

        server = FORK.Process(target=serve, daemon=True)
        server.start()
        outcomes, seconds = together([0, 1], [2, 2], port)
        server.kill()
    assert f"port {port}, which is in use" in outcomes[0]
    assert f"127.0.0.1:{port} is not rank 0" in outcomes[1]
    assert seconds < 10


@pytest.mark.slow
def test_a_second_process_with_rank_0_on_a_machine_is_an_error(impatient, port):
    outcomes, seconds = together([0, 0], [2, 2], port, timeout=4.0)
    refused, waited = sorted(outcomes, key=lambda outcome: "port" not in outcome)
    assert f"port {port}" in refused and "--shard_id" in refused and "rank 1" in waited and seconds < 10


@pytest.mark.slow
def test_a_first_node_without_an_address_is_an_error(impatient, port):
    outcomes, seconds = together([0, 1], [2, 2], port, host="no-such-host.invalid")
    assert all("no-such-host.invalid" in outcome for outcome in outcomes) and seconds < 10


@pytest.mark.parametrize(("rank", "missing"), [(1, "rank 0 at 127.0.0.1"), (0, "rank 1")])
def test_a_process_that_does_not_join_is_named(rank, missing, impatient, port, capfd):
    [outcome], seconds = together([rank], [2], port, timeout=2.0)
    assert outcome.startswith(f"ValueError: rank {rank} of 2 on node0: waited 2 s") and missing in outcome
    assert seconds < 4
    assert f"waiting for {missing}" in capfd.readouterr().err


def test_entries_of_an_earlier_attempt_in_a_store_are_ignored(port):
    """The store of torchrun's agent outlives its workers, and a worker of rank 1 can be faster than that of rank 0."""
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    for _ in range(3):
        assert together([1, 0], [2, 2], port, TORCHELASTIC_USE_AGENT_STORE="True")[0] == ["met", "met"]
    outcomes, _ = together([0, 0], [2, 2], port, TORCHELASTIC_USE_AGENT_STORE="True")
    assert all(outcome.startswith("ValueError: rank 0 was started 2 times, on node") for outcome in outcomes)
    assert together([1, 0], [2, 2], port, TORCHELASTIC_USE_AGENT_STORE="True")[0] == ["met", "met"]
    del agent


def test_an_attempt_whose_rank_0_was_killed_while_it_waited_is_ignored(port):
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    alone = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0", **elastic}
    child = FORK.Process(target=attempt, args=(0, alone, 20.0, FORK.Queue()))
    child.start()
    agent.wait(["session"])
    agent.wait([f"{agent.get('session').decode()}/member 1"])
    child.kill()
    child.join()
    again = together([1, 0], [2, 2], port, TORCHELASTIC_RESTART_COUNT="1", TORCHELASTIC_USE_AGENT_STORE="True")
    assert again[0] == ["met", "met"]
    del agent


@pytest.mark.parametrize("of_rank_0", [0, 1])
def test_machines_that_torchrun_restarted_a_different_number_of_times_meet(of_rank_0, port):
    """An agent counts only the failures of its own processes, and restarts with the others without counting."""
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    outcomes = FORK.Queue()
    for rank, restarts in ((0, of_rank_0), (1, 1 - of_rank_0)):
        each = {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(restarts), **place}
        FORK.Process(target=attempt, args=(rank, each, 5.0, outcomes), daemon=True).start()
    assert [outcomes.get(timeout=30)[1] for _ in range(2)] == ["met", "met"]
    del agent


def test_processes_that_are_restarted_on_one_machine_meet_those_that_wait_on_another(port):
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    place = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    outcomes = FORK.Queue()

    def start(rank: int, restarts: int):
        each = {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(restarts), **place}
        child = FORK.Process(target=attempt, args=(rank // 2, each, 20.0, outcomes), daemon=True)
        child.start()
        return child

    children = [start(rank, 0) for rank in range(3)]
    agent.wait(["session"])
    session = agent.get("session").decode()
    agent.wait([f"{session}/member {number}" for number in (1, 2, 3)])
    for child in children[:2]:  # the first machine
        child.kill()
        child.join()
    start(1, 1)
    agent.wait([f"{session}/member 4"])  # it is faster than rank 0
    start(3, 0)
    agent.wait([f"{session}/member 5"])  # all registered, but rank 0 is the one that was killed
    start(0, 1)
    assert [outcomes.get(timeout=60)[1] for _ in range(4)] == ["met"] * 4
    del agent


def test_the_wait_can_be_interrupted(port):
    def stop():
        raise KeyError("stop")

    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        for name, value in place.items():
            patch.setenv(name, value)
        meet(20.0, stop)


def test_a_process_that_was_interrupted_can_be_started_again(port):
    """For example one with a wrong configuration, which the user corrects while the other machines wait."""
    interrupted, results = FORK.Event(), FORK.Queue()
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def start(rank: int, target=attempt) -> None:
        FORK.Process(target=target, args=(rank, {**place, "RANK": str(rank)}, 20.0, results), daemon=True).start()

    def leave(_: int, its_place: dict[str, str], timeout: float, __) -> None:
        register = rendezvous._register
        registered = FORK.Event()
        rendezvous._register = lambda *arguments: (register(*arguments), registered.set())[0]
        os.environ.update(its_place)
        with pytest.raises(KeyError):
            meet(timeout, lambda: {}["interrupted"] if registered.is_set() else None)
        interrupted.set()

    start(0)
    start(1, leave)
    assert interrupted.wait(20)
    start(2)
    start(1)
    assert [results.get(timeout=30)[1] for _ in range(3)] == ["met"] * 3


def test_a_process_does_not_leave_when_rank_0_has_begun(port, monkeypatch):
    """Rank 0 would wait for it until the timeout."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    begun, met, registered = FORK.Event(), FORK.Event(), []
    register = rendezvous._register

    def stop():
        if registered and begun.wait(20):
            raise InterruptedError("asked to stop")

    def join():
        os.environ.update(place, RANK="1")
        rendezvous._register = lambda *arguments: registered.append(register(*arguments))
        meet(20, stop)
        met.set()

    child = FORK.Process(target=join)
    child.start()
    for name, value in {**place, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    store = meet(20, lambda: None)
    begun.set()
    assert met.wait(20)
    child.join(10)
    del store
