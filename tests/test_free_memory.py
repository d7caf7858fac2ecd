"""Free memory, read from files as Linux has them."""

from pathlib import Path

import pytest

from ntkdist import memory

GROUP = "sys/fs/cgroup/kubepods/pod"


def system(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


MACHINE = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n", "proc/self/cgroup": "1:cpu:/\n0::/kubepods/pod"}
LIMITED = {"memory.max": "500000\n", "memory.current": "300000\n", "memory.stat": "anon 9\ninactive_file 40000\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MACHINE, 800 * 1024),
        (MACHINE | {f"{GROUP}/{name}": text for name, text in LIMITED.items()}, 240_000),
        ({f"sys/fs/cgroup/{name}": text for name, text in LIMITED.items()}, 240_000),
        (MACHINE | {f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "300000\n"}, 800 * 1024),
        (MACHINE | {f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "3000\n"}, 0),
    ],
    ids=["silent", "machine", "group", "container", "no limit", "over"],
)
def test_free_memory_is_the_least_of_what_is_said(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert memory.free_memory_bytes(system(tmp_path, files)) == free


def test_this_machine_says() -> None:
    free = memory.free_memory_bytes()
    assert free is not None
    assert 2**20 < free < 2**50
