//! Volumes, binds, tmpfs, copies.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same(
        "-v: a bind, written by the container",
        "mkdir d; once -v $PWD/d:/mnt/d $ONE sh -c 'echo in > /mnt/d/file'; cat d/file",
        "in",
    ),
    same(
        "-v ro: a bind that cannot be written",
        "mkdir d; echo x > d/file; once -v $PWD/d:/mnt/d:ro $ONE sh -c 'cat /mnt/d/file; touch /mnt/d/y 2>&1 | grep -o Read-only'",
        "x\nRead-only",
    ),
    same(
        "-v: one file",
        "echo conf > f; once -v $PWD/f:/etc/conf:ro $ONE cat /etc/conf",
        "conf",
    ),
    same(
        "-v: one file over data of the image",
        "echo mine > f; once -v $PWD/f:/etc/top:ro $ONE cat /etc/top",
        "mine",
    ),
    same(
        "--mount type=bind",
        "mkdir d; echo x > d/file; once --mount type=bind,src=$PWD/d,dst=/mnt/d,ro $ONE cat /mnt/d/file",
        "x",
    ),
    same(
        "-v: a program in a bind",
        "mkdir d; cp /bin/busybox d/; once -v $PWD/d:/mnt/d $ONE /bin/sh -c '/mnt/d/busybox echo ran' 2>&1 | grep -o -e ran -e 'Permission denied'",
        "ran",
    )
    .but("Permission denied", "a bind that nobody signed is noexec where the kernel does not control execution"),
    same(
        "-v: a bind over the image's programs",
        "mkdir d; cp /bin/busybox d/sh; once -v $PWD/d:/bin $ONE /bin/sh -c 'echo ran' 2>&1 | grep -o -e ran -e 'hallmark: refused'",
        "ran",
    )
    .but("hallmark: refused", "what nobody signed may not take the place of signed code"),
    same(
        "volume: a name keeps what was written",
        "nerdctl volume create vol; once -v vol:/data $ONE sh -c 'echo kept > /data/f'; once -v vol:/data $ONE cat /data/f; nerdctl volume rm vol",
        "vol\nkept\nvol",
    ),
    same(
        "volume: ls, inspect, in use",
        "nerdctl volume create --label k=v vol >/dev/null; up --name aa -v vol:/data $ONE sleep 60; nerdctl volume ls -q
         nerdctl volume inspect --format '{{.Labels.k}}' vol; nerdctl volume rm vol 2>/dev/null; echo $?; nerdctl rm -f aa; nerdctl volume rm vol",
        "vol\nv\n1\naa\nvol",
    ),
    same(
        "volume: an empty one gets the image's files",
        "once -v vol:/srv $ONE sh -c 'wc -c < /srv/data'; nerdctl volume rm vol",
        "73728\nvol",
    ),
    same(
        "volume: anonymous, removed with rm -v",
        "up --name aa -v /data $ONE sleep 60; nerdctl volume ls -q | wc -l; nerdctl rm -f -v aa; nerdctl volume ls -q | wc -l",
        "1\naa\n0",
    ),
    same(
        "volume: one of the image's configuration",
        "up --name aa --entrypoint sleep $SETTINGS 60; nerdctl exec aa sh -c 'grep -c \" /srv \" /proc/mounts; wc -c < /srv/data'; nerdctl rm -f -v aa; nerdctl volume ls -q | wc -l",
        "1\n114688\naa\n0",
    ),
    same(
        "--volumes-from",
        "up --name aa -v vol:/data $ONE sh -c 'echo shared > /data/f; sleep 60'; until_is shared nerdctl exec aa cat /data/f
         once --volumes-from aa $ONE cat /data/f; nerdctl rm -f aa; nerdctl volume rm vol",
        "shared\naa\nvol",
    ),
    same(
        "--tmpfs: options",
        "once --tmpfs /mnt/t:size=64k,mode=1777 $ONE sh -c 'grep -o \"/mnt/t tmpfs .*\" /proc/mounts | grep -o size=64k; stat -c %a /mnt/t'",
        "size=64k\n1777",
    ),
    same(
        "--mount type=tmpfs",
        "once --mount type=tmpfs,dst=/mnt/t,tmpfs-size=65536 $ONE sh -c 'grep \" /mnt/t \" /proc/mounts | grep -o size=64k'",
        "size=64k",
    ),
    same(
        "--read-only: with a tmpfs",
        "once --read-only --tmpfs /mnt/t $ONE sh -c 'touch /etc/x 2>&1 | grep -o Read-only; touch /mnt/t/x; echo $?'",
        "Read-only\n0",
    ),
    same("--shm-size", "once --shm-size 1m $ONE sh -c 'grep \" /dev/shm \" /proc/mounts | grep -o size=1024k'", "size=1024k"),
    same(
        "--device",
        "once --device /dev/full:/dev/other:rw $ONE sh -c 'stat -c %t,%T /dev/other; echo x > /dev/other' 2>&1 | grep -o -e 1,7 -e 'No space' | sort",
        "1,7\nNo space",
    ),
    same(
        "a device that was not given",
        "once --cap-add MKNOD $ONE sh -c 'busybox mknod /srv/d c 1 11; cat /srv/d' 2>&1 | grep -o 'not permitted'",
        "not permitted",
    ),
    same(
        "cp: into and out of a running container",
        "up --name aa $ONE sleep 60; echo in > f; nerdctl cp f aa:/srv/f; nerdctl exec aa cat /srv/f; nerdctl cp aa:/etc/top out; cat out",
        "in\none",
    ),
    same(
        "cp: a directory",
        "up --name aa $ONE sleep 60; mkdir d; echo 1 > d/x; nerdctl cp d aa:/srv/; nerdctl exec aa cat /srv/d/x; nerdctl cp aa:/srv/d e; ls e",
        "1\nx",
    ),
    same(
        "cp: out of a stopped container",
        "run --name aa --net none $ONE sh -c 'echo said > /srv/f'; nerdctl cp aa:/srv/f out; cat out",
        "said",
    ),
    same(
        "cp: into a stopped container",
        "run --name aa --net none $ONE sh -c 'cat /srv/f 2>/dev/null || echo none'; echo in > f; nerdctl cp f aa:/srv/f; nerdctl start -a aa",
        "none\nin",
    ),
    same(
        "cp: into a container that never started",
        "nerdctl create --runtime $RUNTIME --net none --name aa $ONE cat /srv/f >/dev/null; echo in > f; nerdctl cp f aa:/srv/f; nerdctl start -a aa 2>&1 | grep -o -e '^in$' -e 'hallmark: refused'",
        "in",
    )
    .but("hallmark: refused", "at a container's first start its upper directory must be empty: no gate has seen what is in it"),
    same(
        "--rootfs: a directory of the host",
        "mkdir -p r/bin r/proc r/sys r/dev; cp /bin/busybox r/bin/sh; once --rootfs $PWD/r /bin/sh -c 'echo ran' 2>&1 | grep -o -e ran -e 'hallmark: refused'",
        "ran",
    )
    .but("hallmark: refused", "nobody signed a directory of the host"),
];
