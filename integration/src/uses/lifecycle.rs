//! Create, start, exec, stop and what people ask in between.

use super::{Use, same};
use crate::table::Need;

pub(super) const USES: &[Use] = &[
    same(
        "create, start -a",
        "nerdctl create --runtime $RUNTIME --net none --name aa $ONE echo made >/dev/null; nerdctl ps -a --format '{{.Status}}'; nerdctl start -a aa; state aa",
        "Created\nmade\nexited",
    ),
    same(
        "start again: writes have stayed",
        r#"run --net none --name aa $ONE sh -c 'echo x >> /srv/log; wc -l < /srv/log'; nerdctl start -a aa"#,
        "1\n2",
    ),
    same("run --rm: nothing is left", "once --name aa $ONE true; nerdctl ps -aq | wc -l", "0"),
    same(
        "run --name: taken",
        "up --name aa $ONE sleep 60; up --name aa $ONE true 2>err; echo $?; grep -o 'already used' err | sort -u",
        "1\nalready used",
    ),
    same(
        "run --cidfile, --pidfile",
        "up --cidfile id --pidfile pid $ONE sleep 60; wc -c < id; [ -d /proc/$(cat pid) ]; echo $?",
        "64\n0",
    ),
    same("exec", "up --name aa $ONE sleep 60; nerdctl exec aa cat /etc/top", "one"),
    same(
        "exec -e -w",
        "up --name aa $ONE sleep 60; nerdctl exec -e A=b -w /etc aa sh -c 'echo $A; pwd'",
        "b\n/etc",
    ),
    same("exec -u", "up --name aa $ONE sleep 60; nerdctl exec -u 1000:7 aa sh -c 'id -u; id -g'", "1000\n7"),
    same(
        "exec -it: a terminal",
        r#"up --name aa $ONE sleep 60; terminal "$KIT/bin/nerdctl exec -it aa tty""#,
        "/dev/pts/0",
    ),
    same(
        "exec -i: input to its end",
        "up --name aa $ONE sleep 60; (echo abc; sleep 2) | nerdctl exec -i aa tr a-z A-Z",
        "ABC",
    ),
    same(
        "exec -d",
        "up --name aa $ONE sleep 60; nerdctl exec -d aa touch /srv/done; until_is /srv/done nerdctl exec aa ls /srv/done; echo $?",
        "0",
    ),
    same(
        "exec: exit code",
        "up --name aa $ONE sleep 60; nerdctl exec aa sh -c 'exit 7' 2>err; echo $?; grep -o 'exit code 7' err",
        "1\nexit code 7",
    ),
    same(
        "exec: a missing program",
        "up --name aa $ONE sleep 60; nerdctl exec aa /no/such 2>err; echo $?; grep -o 'no such file or directory' err | sort -u",
        "1\nno such file or directory",
    ),
    same(
        "exec: of a stopped container",
        "up --name aa $ONE true; nerdctl wait aa; nerdctl exec aa true 2>/dev/null; echo $?",
        "0\n1",
    ),
    same(
        "exec: twenty at once",
        "up --name aa $ONE sleep 60; for i in $(seq 20); do nerdctl exec aa echo $i & done >out; wait; sort -n out | tail -n 1; wc -l < out",
        "20\n20",
    ),
    same(
        "stop: the program is asked",
        r#"up --name aa $ONE sh -c 'trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.1; done'
           until_is up nerdctl logs aa; nerdctl stop aa; nerdctl logs aa; nerdctl inspect --format '{{.State.ExitCode}}' aa"#,
        "aa\nup\nbye\n3",
    ),
    same(
        "stop -t: the program is killed",
        "up --name aa $ONE sleep 60; nerdctl stop -t 1 aa; nerdctl inspect --format '{{.State.ExitCode}}' aa",
        "aa\n137",
    ),
    same(
        "stop: with --stop-signal",
        r#"up --name aa --stop-signal USR1 $ONE sh -c 'trap "exit 4" USR1; echo up; while :; do sleep 0.1; done'
           until_is up nerdctl logs aa; nerdctl stop aa; nerdctl inspect --format '{{.State.ExitCode}}' aa"#,
        "aa\n4",
    ),
    same(
        "kill -s",
        r#"up --name aa $ONE sh -c 'trap "echo hup" HUP; echo up; while :; do sleep 0.1; done'
           until_is up nerdctl logs aa; nerdctl kill -s HUP aa >/dev/null; until_is "up
hup" nerdctl logs aa; nerdctl logs aa; state aa"#,
        "up\nhup\nrunning",
    ),
    same(
        "kill: exit code 137",
        "up --name aa $ONE sleep 60; nerdctl kill aa >/dev/null; nerdctl wait aa; state aa",
        "137\nexited",
    ),
    same(
        "restart: another process, the same files",
        "up --name aa $ONE sh -c 'touch /srv/$$; echo x >> /srv/starts; sleep 60'; until_is 1 nerdctl exec aa sh -c 'wc -l < /srv/starts'
         nerdctl restart -t 0 aa; until_is 2 nerdctl exec aa sh -c 'wc -l < /srv/starts'; echo $?",
        "aa\n0",
    ),
    same(
        "pause, unpause",
        "up --name aa $ONE sleep 60; nerdctl pause aa; state aa; nerdctl unpause aa; state aa; nerdctl exec aa echo on",
        "aa\npaused\naa\nrunning\non",
    ),
    same("wait: exit codes of two", "up --name aa $ONE sh -c 'sleep 1; exit 5'; up --name bb $ONE true; nerdctl wait aa bb", "5\n0"),
    same(
        "rm: a running container needs -f",
        "up --name aa $ONE sleep 60; nerdctl rm aa 2>/dev/null; echo $?; nerdctl rm -f aa; nerdctl ps -aq | wc -l",
        "1\naa\n0",
    ),
    same("rename", "up --name aa $ONE sleep 60; nerdctl rename aa bb; nerdctl exec bb echo here", "here"),
    same(
        "ps: filters and format",
        "up --name aa --label k=v $ONE sleep 60; up --name bb $ONE true; nerdctl wait bb
         nerdctl ps --filter label=k=v --format '{{.Names}}'; nerdctl ps -a --filter status=exited --format '{{.Names}} {{.Status}}' | sed 's/) .*/)/'",
        "0\naa\nbb Exited (0)",
    ),
    same(
        "inspect: state, image, pid",
        "up --name aa $ONE sleep 60; nerdctl inspect --format '{{.State.Running}} {{.Image}} {{.Config.Hostname}}' aa | cut -d ' ' -f 1,2
         [ -d /proc/$(nerdctl inspect --format '{{.State.Pid}}' aa) ]; echo $?",
        "true example.test/one:1\n0",
    ),
    same("top", "up --name aa $ONE sleep 61; nerdctl top aa | grep -o 'sleep 61'", "sleep 61"),
    same(
        "stats: the limit and the processes",
        "up --name aa -m 64m $ONE sleep 60; until_is '64MiB 1' sh -c \"$KIT/bin/nerdctl stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' aa | cut -d / -f 2 | sed 's/^ //'\"; echo $?",
        "0",
    )
    .needs(&[Need::Memory]),
    same(
        "update -m",
        "up --name aa -m 64m $ONE sleep 60; nerdctl update -m 32m aa >/dev/null
         nerdctl exec aa sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true'",
        "33554432",
    )
    .needs(&[Need::Memory]),
    same(
        "update --cpu-shares, --pids-limit",
        "up --name aa $ONE sleep 60; nerdctl update --cpu-shares 300 --pids-limit 50 aa >/dev/null
         nerdctl exec aa sh -c 'cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/pids/pids.max'",
        "300\n50",
    )
    .needs(&[Need::CgroupV1]),
    same(
        "events: of one run, each once",
        "timeout 20 $KIT/bin/nerdctl events --format '{{.Topic}}' >events & sleep 1
         once $ONE true; until_is 1 grep -c /tasks/delete events; kill $!; grep /tasks/ events | sort",
        "/tasks/create\n/tasks/delete\n/tasks/exit\n/tasks/start",
    ),
    same(
        "restart policy: always",
        "up --name aa --restart always $ONE sh -c 'echo x >> /srv/starts; sleep 1'
         until_is yes sh -c \"$KIT/bin/nerdctl exec aa sh -c '[ \\$(wc -l < /srv/starts) -ge 2 ] && echo yes'\"; echo $?",
        "0",
    ),
    same(
        "restart policy: on-failure, twice",
        "up --name aa --restart on-failure:2 $ONE sh -c 'echo x; exit 3'
         until_is 3 sh -c \"$KIT/bin/nerdctl logs aa | wc -l\"; sleep 3; nerdctl logs aa | wc -l; nerdctl inspect --format '{{.RestartCount}}' aa",
        "3\n2",
    ),
    same(
        "restart policy: none after a stop",
        "up --name aa --restart unless-stopped $ONE sleep 60; nerdctl stop -t 0 aa; sleep 3; state aa",
        "aa\nexited",
    ),
    same(
        "health check: healthy, then not",
        "up --name aa --health-cmd 'cat /srv/data >/dev/null' --health-interval 1s --health-retries 1 $ONE sleep 60
         nerdctl container healthcheck aa; nerdctl inspect --format '{{.State.Health.Status}}' aa
         nerdctl exec aa rm /srv/data; nerdctl container healthcheck aa; nerdctl inspect --format '{{.State.Health.Status}}' aa",
        "healthy\nunhealthy",
    ),
    same(
        "container prune",
        "up --name aa $ONE true; up --name bb $ONE sleep 60; nerdctl wait aa; nerdctl container prune -f >/dev/null; nerdctl ps -a --format '{{.Names}}'",
        "0\nbb",
    ),
    same(
        "a shim that was killed: the container is gone, its name is free",
        "up --name aa $ONE sleep $((60 + 7)); kill -9 $(cat /proc/[0-9]*/stat | awk -v p=$(nerdctl inspect --format '{{.State.Pid}}' aa) '$1 == p { print $4 }')
         until_is '' sh -c 'grep -a -l sleep[^.]67 /proc/[0-9]*/cmdline'; nerdctl rm -f aa; up --name aa $ONE sleep 60; state aa",
        "aa\nrunning",
    ),
];
