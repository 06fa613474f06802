//! Users, capabilities, seccomp, labels, privileges.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same("--user: numbers", "once --user 1000:7 $ONE sh -c 'id -u; id -g'", "1000\n7"),
    same("--user: a name", "once --user www-data $NGINX sh -c 'id -un; id -gn'", "www-data\nwww-data"),
    same("--user: one that is not there", "once --user nobody-here $ONE true 2>err; echo $?; grep -o 'no users found' err", "1\nno users found"),
    same("--group-add", "once --user 1000:7 --group-add 33 $ONE sh -c 'id -G'", "7 33"),
    same("--user: may write to its streams", "once --user 1000 $ONE sh -c 'echo said > /dev/stdout; echo x > /dev/stderr'", "said"),
    same("--umask", "once --umask 0077 $ONE sh -c umask", "0077"),
    same("capabilities: the usual ones", "once $ONE grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"),
    same("--cap-drop ALL", "once --cap-drop ALL $ONE grep -e CapEff -e CapBnd /proc/self/status", "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000"),
    same("--cap-drop ALL --cap-add", "once --cap-drop ALL --cap-add NET_ADMIN $ONE grep CapEff /proc/self/status", "CapEff:\t0000000000001000"),
    same("--cap-add: a link is made", "once --cap-add NET_ADMIN $ONE ip link set lo down; echo $?", "0"),
    same("without the capability: it is not", "once $ONE ip link set lo down 2>/dev/null; echo $?", "2"),
    same("seccomp: a filter", "once $ONE grep Seccomp: /proc/self/status", "Seccomp:\t2"),
    same("seccomp=unconfined", "once --security-opt seccomp=unconfined $ONE grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    same(
        "seccomp=FILE: a call is denied",
        r#"echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":77}]}' >p.json
           once --security-opt seccomp=$PWD/p.json $ONE sh -c 'mkdir /srv/x 2>&1; touch /srv/y; echo $?' | grep -o -e 'File descriptor in bad state' -e '^0$'"#,
        "File descriptor in bad state\n0",
    ),
    same("no-new-privileges", "once --security-opt no-new-privileges $ONE grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
    same("without no-new-privileges", "once --security-opt no-new-privileges=false $ONE grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0"),
    same("apparmor=unconfined", "once --security-opt apparmor=unconfined $ONE echo ran", "ran"),
    same("label=disable", "once --security-opt label=disable $ONE echo ran", "ran"),
    same("label=type:…, on a kernel without SELinux", "once --security-opt label=type:container_t $ONE echo ran", "ran"),
    same(
        "masked and read-only paths",
        "once $ONE sh -c 'wc -c < /proc/keys; ls /proc/scsi | wc -l; echo x 2>/dev/null > /proc/sysrq-trigger; echo $?'",
        "0\n0\n1",
    ),
    same("systempaths=unconfined", "once --security-opt systempaths=unconfined $ONE sh -c 'grep -c -e /proc/sysrq-trigger -e /proc/kcore /proc/mounts'", "0\nexit status: 1"),
    same(
        "--privileged: capabilities",
        "once --privileged $ONE grep CapEff /proc/self/status | cut -f 2 | tr a-f A-F >c; echo \"obase=16; ibase=16; $(cat c)\" >/dev/null
         host=$(grep CapBnd /proc/self/status | cut -f 2); printf '%x\\n' $(( 0x$host ^ 0x$(cat c) ))",
        "0",
    )
    .but("300410000", "MAC_ADMIN, MAC_OVERRIDE, SYS_MODULE and SYS_BOOT could undo what the kernel enforces, and are kept from every container"),
    same("--privileged: devices and a writable /sys", "once --privileged $ONE sh -c 'stat -c %t,%T /dev/kmsg; grep -c \" /sys sysfs rw\" /proc/mounts'", "1,b\n1"),
    same("--privileged: mounts a tmpfs", "once --privileged $ONE sh -c 'mkdir /mnt; mount -t tmpfs none /mnt; grep -c \" /mnt \" /proc/mounts'", "1"),
    same("without privileges: no mount", "once $ONE sh -c 'mkdir /mnt; mount -t tmpfs none /mnt' 2>&1 | grep -o 'permission denied'", "permission denied"),
    same("exec --privileged", "up --name aa $ONE sleep 60; nerdctl exec --privileged aa ip link set lo down; echo $?", "0"),
    same(
        "--userns-remap: root inside is nobody outside",
        "run -d --net none --name aa --userns-remap root $ONE sleep 60 >/dev/null; nerdctl exec aa sh -c 'id -u; touch /srv/x; stat -c %u /etc/top'
         stat -c %u /proc/$(nerdctl inspect --format '{{.State.Pid}}' aa)",
        "0\n0\n100000",
    ),
    same("a program that is set-uid", "once --user 33 $NGINX sh -c 'stat -c %a /srv/sticky'", "4711"),
    same(
        "an image that nobody sealed",
        "nerdctl load -q -i $KIT/attacks/unsealed.tar >/dev/null; once example.test/unsealed:1 2>&1 | grep -o -e 'hello from unsealed' -e 'hallmark: refused'; nerdctl rmi -f example.test/unsealed:1 >/dev/null",
        "hello from unsealed",
    )
    .but("hallmark: refused", "nobody whom the node trusts has signed it"),
];
