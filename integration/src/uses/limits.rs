//! Resource limits.

use super::{Use, same};
use crate::table::Need;

pub(super) const USES: &[Use] = &[
    same(
        "-m: the limit",
        "once -m 64m $ONE sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true'",
        "67108864",
    )
    .needs(&[Need::Memory]),
    same(
        "-m: more is killed, and said",
        r#"run --net none --name aa -m 20m $ONE sh -c 'x=$(dd if=/dev/zero bs=1M count=100 2>/dev/null | tr "\0" x); echo $x | wc -c' >/dev/null 2>&1; echo $?"#,
        "137",
    )
    .needs(&[Need::Memory]),
    same(
        "-m: an event tells of it",
        r#"timeout 30 $KIT/bin/nerdctl events --format '{{.Topic}}' >events & sleep 1
           once -m 20m $ONE sh -c 'x=$(dd if=/dev/zero bs=1M count=100 2>/dev/null | tr "\0" x); echo $x | wc -c' >/dev/null 2>&1
           until_is 1 grep -c /tasks/oom events; kill $!; grep /tasks/oom events"#,
        "/tasks/oom",
    )
    .needs(&[Need::Memory]),
    same(
        "--memory-reservation, --memory-swappiness",
        "once -m 64m --memory-reservation 32m --memory-swappiness 7 $ONE sh -c 'cd /sys/fs/cgroup/memory; cat memory.soft_limit_in_bytes memory.swappiness'",
        "33554432\n7",
    )
    .needs(&[Need::CgroupV1]),
    same("--cpus", "once --cpus 0.5 $ONE sh -c 'cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us'", "50000\n100000").needs(&[Need::CgroupV1]),
    same("--cpu-shares", "once --cpu-shares 512 $ONE cat /sys/fs/cgroup/cpu/cpu.shares", "512").needs(&[Need::CgroupV1]),
    same("--cpuset-cpus", "once --cpuset-cpus 0 $ONE grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0"),
    same("--pids-limit: the limit", "once --pids-limit 20 $ONE cat /sys/fs/cgroup/pids/pids.max", "20").needs(&[Need::CgroupV1]),
    same(
        "--pids-limit: no more processes",
        "once --pids-limit 5 $ONE sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait' 2>&1 | grep -o -m 1 \"can't fork\"",
        "can't fork",
    ),
    same("--ulimit", "once --ulimit nofile=100:200 $ONE sh -c 'ulimit -n; ulimit -Hn'", "100\n200"),
    same("--oom-score-adj", "once --oom-score-adj 300 $ONE cat /proc/self/oom_score_adj", "300"),
    same("--sysctl", "once --sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=9000 $ONE cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", "1\n9000"),
    same(
        "--sysctl: one of the host's own",
        "once --sysctl vm.swappiness=1 $ONE true 2>/dev/null; [ $? -ne 0 ]; echo $?",
        "0",
    ),
    same(
        "--cgroup-parent",
        "up --name aa --cgroup-parent /uses $ONE sleep 60; grep -o -m 1 '/uses/[0-9a-f]*' /proc/$(nerdctl inspect --format '{{.State.Pid}}' aa)/cgroup | cut -c 1-6
         nerdctl rm -f aa; find /sys/fs/cgroup -depth -type d -name uses -exec rmdir {} +",
        "/uses/\naa",
    ),
];
