//! Images: what they say of running them, and what is made of containers.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same("image: entry point, command, user, directory, environment", "once $SETTINGS", "1000 /srv said\nfrom=image"),
    same("image: another command for its entry point", "once $SETTINGS other", "1000 /srv other\nfrom=image"),
    same("--entrypoint, -w, -e, --env-file", "echo C=d > env; once --entrypoint sh -w /etc -e A=b --env-file env $ONE -c 'pwd; echo $A $C'", "/etc\nb d"),
    same("image: its stop signal", "up --name aa --entrypoint sh $SETTINGS -c 'trap \"exit 9\" USR2; echo up; while :; do sleep 0.1; done'; until_is up nerdctl logs aa; nerdctl stop aa; nerdctl inspect --format '{{.State.ExitCode}}' aa", "aa\n9"),
    same("images: ls, inspect, history", "nerdctl images --format '{{.Repository}}:{{.Tag}}' | grep -x $ONE; nerdctl image inspect --format '{{len .RootFS.Layers}} {{.Os}}/{{.Architecture}}' $ONE", "example.test/one:1\n3 linux/amd64"),
    same("images: tag, run, rmi", "nerdctl tag $ONE example.test/other:2; once example.test/other:2; nerdctl rmi example.test/other:2 >/dev/null; nerdctl images -q example.test/other | wc -l", "hello from one\n0"),
    same("images: save and load", "nerdctl save -o one.tar $ONE; nerdctl rmi -f $ONE >/dev/null; nerdctl load -q -i one.tar >/dev/null; nerdctl images --format '{{.Repository}}:{{.Tag}}' | grep -x $ONE;once $ONE", "example.test/one:1\nhello from one"),
    same("images: rmi of one in use", "up --name aa $ONE sleep 60; nerdctl rmi $ONE 2>/dev/null; echo $?; nerdctl exec aa echo on", "1\non"),
    same(
        "commit: what was written is in the new image",
        "run --net none --name aa $ONE sh -c 'echo new > /srv/new'; nerdctl commit --change 'CMD [\"cat\",\"/srv/new\"]' aa example.test/committed:1 >/dev/null
         nerdctl image inspect --format '{{len .RootFS.Layers}}' example.test/committed:1
         once example.test/committed:1 2>&1 | grep -o -e '^new$' -e 'hallmark: refused'; nerdctl rmi -f example.test/committed:1 >/dev/null",
        "4\nnew",
    )
    .but("4\nhallmark: refused", "nobody has signed the layer that was just made"),
    same(
        "commit: of a running container",
        "up --name aa $ONE sh -c 'echo new > /srv/new; sleep 60'; until_is new nerdctl exec aa cat /srv/new; nerdctl commit aa example.test/committed:1 >/dev/null; state aa; nerdctl image inspect --format '{{len .RootFS.Layers}}' example.test/committed:1; nerdctl rmi -f example.test/committed:1 >/dev/null",
        "running\n4",
    ),
    same("diff", "run --net none --name aa $ONE sh -c 'echo x > /srv/new; rm /etc/bottom; echo y > /etc/top'; nerdctl diff aa | grep -e /srv -e /top -e /bottom | sort", "A /srv/new\nC /etc/top\nC /srv\nD /etc/bottom"),
    same("export", "run --net none --name aa $ONE sh -c 'echo out > /srv/new'; nerdctl export aa | tar -x -O srv/new", "out"),
    same("import", "run --net none --name aa $ONE true; nerdctl export aa >root.tar; nerdctl import root.tar example.test/imported:1 >/dev/null; nerdctl image inspect --format '{{len .RootFS.Layers}}' example.test/imported:1; nerdctl rmi -f example.test/imported:1 >/dev/null", "1"),
    same("python: real Debian packages", "once $PYTHON python3 -c 'import ssl, json, subprocess; print(json.dumps(subprocess.check_output([\"id\", \"-u\"], text=True)))'", "\"0\\n\""),
    same("python: code made at run time", "once $PYTHON python3 -c 'import ctypes; print(ctypes.CDLL(None).getpid())'", "1"),
    same("perl: a shell pipeline in a Debian image", "once $NGINX bash -c 'seq 1 100 | perl -ne \"END { print \\$. }\"; echo; ls /usr/bin | sort | head -n 1000 | wc -l | grep -c \"^[0-9]\"'", "100\n1"),
    same("checkpoint: not here", "up --name aa $ONE sleep 60; nerdctl checkpoint create aa c >/dev/null 2>&1; echo $?; state aa", "1\nrunning"),
    same("info: the runtimes and the snapshotter are known", "nerdctl info --format '{{.Driver}}' | grep -c -e overlayfs -e hallmark; nerdctl version --format '{{.Client.Version}}'", "1\nv2.3.5"),
    same("namespace ls; system prune", "nerdctl namespace ls -q | grep -c -x $CONTAINERD_NAMESPACE; up --name aa $ONE true; nerdctl wait aa; nerdctl system prune -f >/dev/null; nerdctl ps -aq | wc -l", "1\n0\n0"),
];
