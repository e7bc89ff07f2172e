"""One process at a time runs a study."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from kiloseg.storage import lease
from kiloseg.storage.filesystems import LocalFolder
from kiloseg.storage.lease import FILE, Lease, StudyRunningError


@pytest.fixture
def soon(monkeypatch):
    """Clocks that run fast."""
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.2)
    monkeypatch.setattr(lease, "WATCHED_S", 2.0)
    monkeypatch.setattr(lease, "SETTLES_S", 0.3)


def sign(folder, **more):
    """Of a process of another machine."""
    known = {"token": "another", "host": "another/1", "pid": 7, "began": "1", "time": time.time()}
    (folder / FILE).write_text(json.dumps(known | more))


def test_what_is_released_is_free(tmp_path):
    Lease(LocalFolder(tmp_path), "study", contested=False).release()
    assert not (tmp_path / FILE).exists()
    Lease(LocalFolder(tmp_path), "study", contested=False).release()


def test_process_of_another_machine_that_lives_keeps_it(tmp_path):
    sign(tmp_path)
    with pytest.raises(
        StudyRunningError, match=r"process 7 on another/1, which renewed its lease 0 s ago; .* try again in 60 s"
    ):
        Lease(LocalFolder(tmp_path), "study", contested=True)


def test_process_of_another_machine_that_is_gone_loses_it(tmp_path, soon):
    sign(tmp_path, time=time.time() - 100)
    held = Lease(LocalFolder(tmp_path), "study", contested=True)
    assert json.loads((tmp_path / FILE).read_text())["host"] != "another/1"
    held.release()


def test_process_whose_clock_is_behind_keeps_it(tmp_path, soon):
    ended = threading.Event()

    def live():
        while not ended.wait(0.2):
            sign(tmp_path, time=time.time() - 100)

    sign(tmp_path, time=time.time() - 100)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(StudyRunningError, match="whose clock is 100 s behind"):
            Lease(LocalFolder(tmp_path), "study", contested=True)
    finally:
        ended.set()
        thread.join()


def test_of_two_that_take_it_at_once_one_has_it(tmp_path, soon, monkeypatch):
    together = threading.Barrier(2)
    check = lease._check_free

    def checked(folder, name):
        check(folder, name)
        together.wait()  # neither sees the other's

    monkeypatch.setattr(lease, "_check_free", checked)
    held, refused = [], []

    def take():
        try:
            held.append(Lease(LocalFolder(tmp_path), "study", contested=True))
        except StudyRunningError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == len(refused) == 1
    assert "at the same moment" in str(refused[0])
    held[0].release()


HOLD = """
import sys, time
from pathlib import Path
from kiloseg.storage import lease
from kiloseg.storage.filesystems import LocalFolder
lease.RENEWED_EVERY_S = 0.2
lease.Lease(LocalFolder(Path(sys.argv[1])), "study", contested=False)
print("held", flush=True)
time.sleep(100)
"""


def test_process_that_was_away_while_another_took_it_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        sign(tmp_path)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert json.loads((tmp_path / FILE).read_text())["token"] == "another", "and leaves it to the other"
