"""What the kernel says is left, read from trees of its files as they are, and from its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vllm_layershard.errors import NodeError
from vllm_layershard.plan import SharedNeed
from vllm_layershard.runtime.peer_memory.limits import Limit, descriptors_left, memory_limits
from vllm_layershard.runtime.peer_memory.room import Room, require_room

GIB, MIB = 1 << 30, 1 << 20
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
OTHERS = [
    "22 27 0:21 / /proc rw,relatime - proc proc rw",
    "25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k",
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755",
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct",
]
NONE_IN_V1 = 9223372036854771712
"""As the kernel writes it: the largest number of pages that it can count."""


def tree(
    root: Path, cgroup: str, mounts: list[str], files: Mapping[str, object], fds: int = 5
) -> Path:
    """A node whose kernel says this. `files` are below /sys/fs/cgroup."""
    written = {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": "\n".join(mounts) + "\n",
        "proc/self/limits": (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max cpu time              unlimited            unlimited            seconds   \n"
            "Max open files            1024                 524288               files     \n"
        ),
        "proc/sys/kernel/random/boot_id": "13e0c0c8-8942-45f7-9fba-1849ec097b54\n",
        **{f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()},
        **{f"proc/self/fd/{fd}": "" for fd in range(fds)},
    }
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def left(root: Path) -> dict[str, int]:
    return {limit.name: limit.free for limit in memory_limits(root)}


def stat(*, active: int = 0, inactive: int = 0, version: int = 2) -> str:
    total = "total_" if version == 1 else ""
    own = f"active_file {7 * GIB}\ninactive_file {7 * GIB}\n" if version == 1 else ""
    return f"anon 1\nshmem 3\n{own}{total}inactive_file {inactive}\n{total}active_file {active}"


def test_of_v2_every_cgroup_up_to_the_mount_bounds(tmp_path):
    root = tree(
        tmp_path,
        "0::/pods/a/server\n",
        [*OTHERS[:2], V2],
        {
            "pods/a/server/memory.max": "max",
            "pods/a/server/memory.current": GIB,
            "pods/a/memory.max": 8 * GIB,
            "pods/a/memory.current": 3 * GIB,
            "pods/a/memory.stat": stat(active=GIB // 2, inactive=GIB // 2),
            "pods/memory.max": 4 * GIB,
            "pods/memory.current": 5 * GIB,
            "pods/memory.stat": stat(),
        },
    )
    assert left(root) == {
        "/sys/fs/cgroup/pods/a/memory.max": 6 * GIB,
        "/sys/fs/cgroup/pods/memory.max": 0,
    }, "what was read from files can be dropped, and nothing is left of what is overdrawn"


def test_of_v1_the_hierarchy_bounds_and_what_is_no_limit_does_not(tmp_path):
    root = tree(
        tmp_path,
        "9:name=systemd:/\n6:cpuacct,cpu:/docker/a\n4:hugetlb,memory:/docker/a\n0::/\n",
        [*OTHERS, V1],
        {
            "memory/docker/a/memory.limit_in_bytes": NONE_IN_V1,
            "memory/docker/a/memory.usage_in_bytes": GIB,
            "memory/docker/memory.limit_in_bytes": 2 * GIB,
            "memory/docker/memory.usage_in_bytes": GIB,
            "memory/docker/memory.stat": stat(inactive=GIB // 4, version=1),
            "memory/docker/memory.use_hierarchy": 1,
            "memory/memory.limit_in_bytes": GIB,
            "memory/memory.usage_in_bytes": 0,
            "memory/memory.use_hierarchy": 0,
        },
    )
    assert left(root) == {"/sys/fs/cgroup/memory/docker/memory.limit_in_bytes": GIB + GIB // 4}


@pytest.mark.parametrize(
    ("path", "top", "found"),
    [
        ("/", "/", ""),  # with a namespace of its own
        ("/docker/a", "/docker/a", ""),  # without one: its own part is mounted
        ("/docker/a/b", "/docker/a", "b/"),
        ("/../x", "/", ""),  # it lies outside of its namespace
        ("/elsewhere", "/docker/a", ""),
    ],
)
def test_a_container_finds_its_own_cgroup(tmp_path, path, top, found):
    mount = V2.replace("0:30 /", f"0:30 {top}")
    files = {f"{found}memory.max": 2 * GIB, f"{found}memory.current": GIB}
    root = tree(tmp_path, f"0::{path}\n", [mount], files)
    assert left(root) == {f"/sys/fs/cgroup/{found}memory.max": GIB}


def test_a_mount_with_a_blank_in_its_path_is_found(tmp_path):
    mount = V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040own")
    files = {"my own/memory.max": GIB, "my own/memory.current": 0}
    assert left(tree(tmp_path, "0::/\n", [mount], files)) == {
        "/sys/fs/cgroup/my own/memory.max": GIB
    }


@pytest.mark.parametrize("file", ["cgroup", "mountinfo", "limits"])
@pytest.mark.parametrize("text", ["", "nonsense\n", "1 2 - 3\n", "Max open files\n", ":\n"])
def test_what_the_kernel_says_otherwise_limits_nothing(tmp_path, file, text):
    files = {"memory.max": GIB, "memory.current": 0}
    root = tree(tmp_path, "0::/\n", [V2], files)
    (root / "proc/self" / file).write_text(text)
    assert left(root) in ({}, {"/sys/fs/cgroup/memory.max": GIB})
    assert descriptors_left(root) in (None, 1019)


def test_a_node_that_says_nothing_limits_nothing(tmp_path):
    assert memory_limits(tmp_path) == []
    assert descriptors_left(tmp_path) is None


def test_files_that_are_open_are_no_longer_left(tmp_path):
    root = tree(tmp_path, "0::/\n", [V2], {})
    assert descriptors_left(root) == 1019
    limits = root / "proc/self/limits"
    limits.write_text(limits.read_text().replace("1024      ", "unlimited "))
    assert descriptors_left(root) is None


def test_shared_memory_is_what_the_file_system_has_free(tmp_path):
    (tmp_path / "dev/shm").mkdir(parents=True)
    (limit,) = memory_limits(tmp_path)
    found = os.statvfs(tmp_path)
    assert limit.name == "/dev/shm"
    assert limit.free == pytest.approx(found.f_bavail * found.f_frsize, rel=0.2)


def test_ranks_share_a_limit_if_they_are_on_one_node_and_in_one_namespace(tmp_path):
    files = {"memory.max": GIB, "memory.current": 0}
    roots = [tree(tmp_path / name, "0::/\n", [V2], files) for name in "abcd"]
    for root, namespace in zip(roots, (1, 1, 2, 1), strict=True):
        (root / "proc/self/ns").mkdir()
        (root / "proc/self/ns/cgroup").symlink_to(f"cgroup:[{namespace}]")
    (roots[3] / "proc/sys/kernel/random/boot_id").write_text("another\n")
    keys = [memory_limits(root)[0].key for root in roots]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_this_machines_own_files_are_understood():
    limits = {limit.name: limit for limit in memory_limits()}
    found = os.statvfs("/dev/shm")
    assert 0 < limits["/dev/shm"].free <= found.f_blocks * found.f_frsize
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    try:
        assert 10 <= descriptors_left() < 1 << 30
    finally:
        for fd in fds:
            os.close(fd)


def own_memory_cgroup() -> Path | None:
    """Where this process's memory cgroup is, if another can be made in it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}")
    path = Path("/sys/fs/cgroup/cgroup.subtree_control")
    delegated = path.exists() and "memory" in path.read_text().split()
    return path.parent if delegated else None


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A real one, of 64 MiB."""
    own = own_memory_cgroup()
    small = (own or Path("/nowhere")) / f"layershard-test-{os.getpid()}"
    try:
        small.mkdir()
    except OSError as error:
        # A container may mount the cgroups read-only; how limits are read is tested on files, too.
        pytest.skip(f"no memory cgroup can be made here ({error})")
    v1 = (small / "memory.limit_in_bytes").exists()
    (small / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(64 * MIB))
    yield small
    small.rmdir()


def test_a_real_cgroup_bounds_who_is_in_it_and_refuses_before_it_kills(small_cgroup):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def inside() -> None:
        (small_cgroup / "cgroup.procs").write_text(str(os.getpid()))
        theirs.send(memory_limits())
        for mib in (32, 65):
            try:
                require_room([Room.found(3, SharedNeed(mib * MIB, 1))])
                theirs.send("there is room")
            except NodeError as error:
                theirs.send(str(error))

    process = fork.Process(target=inside)
    process.start()
    limits: list[Limit] = ours.recv()
    own = [limit for limit in limits if small_cgroup.name in limit.name]
    assert len(own) == 1
    assert 32 * MIB < own[0].free <= 64 * MIB
    assert ours.recv() == "there is room"
    assert ours.recv().startswith(f"{own[0].name}: {65 * MIB:,} bytes are needed")
    process.join()
