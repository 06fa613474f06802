//! Namespaces, shared with the host or between containers; a first process that reaps.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same("pid: its own", "once $ONE sh -c 'echo $$'", "1"),
    same("pid host: the host's processes", "once --pid host $ONE sh -c 'grep -a -c integration /proc/1/cmdline'", "1"),
    same(
        "pid container: the other's processes",
        "up --name aa $ONE sleep 63; once --pid container:aa $ONE sh -c 'ps | grep -c \"[s]leep 63\"'",
        "1",
    ),
    same(
        "pid host: children die with the container",
        "once --pid host $ONE sh -c 'sleep $((60 + 4)) & exit 0'; until_is '' sh -c 'grep -a -l sleep[^.]64 /proc/[0-9]*/cmdline'; echo $?",
        "0",
    ),
    same("ipc host: the host's", "[ $(once --ipc host $ONE stat -L -c %i /proc/self/ns/ipc) = $(stat -L -c %i /proc/self/ns/ipc) ]; echo $?", "0"),
    same(
        "ipc container: a file in /dev/shm",
        "up --name aa --ipc shareable $ONE sh -c 'echo there > /dev/shm/f; sleep 60'; until_is there nerdctl exec aa cat /dev/shm/f; once --ipc container:aa $ONE cat /dev/shm/f",
        "there",
    ),
    same("uts: its own name", "once --hostname inside $ONE hostname; [ $(hostname) != inside ]; echo $?", "inside\n0"),
    same(
        "uts host: nerdctl sets a name all the same",
        "once --uts host $ONE true 2>err; echo $?; grep -o 'unable to set hostname without a private UTS namespace' err | sort -u",
        "1\nunable to set hostname without a private UTS namespace",
    ),
    same("cgroupns private: the root is its own", "once --cgroupns private $ONE sh -c 'grep -c -v \":/$\" /proc/self/cgroup'", "0\nexit status: 1"),
    same("cgroupns host: the host's paths", "once --cgroupns host $ONE sh -c 'grep -c -v \":/$\" /proc/self/cgroup | grep -c -v \"^0$\"'", "1")
        .but("0\nexit status: 1", "under enforce the cgroup namespace is private: the device rules of its parents are out of reach"),
    same("userns: the host's by default", "once $ONE sh -c 'cat /proc/self/uid_map' | tr -s ' '", " 0 0 4294967295"),
    same(
        "--init: tini is the first process",
        "once --init $ONE cat /proc/1/comm 2>&1 | grep -o -e '^tini$' -e 'hallmark: refused'",
        "tini",
    )
    .but("hallmark: refused", "the host's tini lies in no verified layer; an image may bring its own"),
];
