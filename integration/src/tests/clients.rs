//! nerdctl and ctr as people use them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::images::{NGINX, ONE, PYTHON, TWO};
use crate::node::Node;
use crate::run::{Run, within};
use crate::table::{Bench, Need, Test};

pub(super) const TESTS: &[Test] = &[
    Test { name: "nerdctl: run says, exits and removes", needs: &[], run: run_and_exit },
    Test { name: "nerdctl: run -it has a terminal", needs: &[], run: terminal },
    Test { name: "nerdctl: run -i passes input on", needs: &[], run: input },
    Test { name: "nerdctl: run -d, exec, logs, stop, start, rm", needs: &[], run: detached },
    Test { name: "nerdctl: inspect and ps tell the state", needs: &[], run: inspect },
    Test { name: "nerdctl: stats counts memory", needs: &[Need::Memory], run: stats },
    Test { name: "nerdctl: cp both ways", needs: &[], run: copy },
    Test { name: "nerdctl: writes stay in the container", needs: &[], run: writes },
    Test { name: "nerdctl: run as a user, read-only, with a bind", needs: &[], run: options },
    Test { name: "ctr: run, exec and kill", needs: &[], run: ctr },
    Test { name: "ctr: import --local unpacks the same", needs: &[], run: import_local },
    Test { name: "python: two layers of real Debian packages", needs: &[], run: python },
    Test { name: "nginx: ten layers, one repeated, serve a page", needs: &[], run: nginx },
    Test {
        name: "snapshotter: killed, containers go on; started, images run",
        needs: &[],
        run: killed,
    },
    Test { name: "images: two share nothing and run side by side", needs: &[], run: side_by_side },
];

fn load<'a>(bench: &'a mut Bench, image: &str) -> Result<&'a mut Node> {
    let archive = bench.sealed(image);
    let node = bench.node()?;
    node.load(&archive)?;
    Ok(node)
}

fn expect(found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "found {found:?}, expected {expected:?}");
    Ok(())
}

fn run_and_exit(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    expect(&node.run(&["--rm", ONE]).good()?, "hello from one")?;
    let ran = node.run(&["--rm", ONE, "sh", "-c", "echo out; echo err >&2; exit 7"]).ran()?;
    ensure!(ran.status.code() == Some(7), "exit {}", ran.status);
    expect(ran.stdout.trim(), "out")?;
    ensure!(ran.stderr.lines().any(|line| line == "err"), "standard error: {:?}", ran.stderr);
    let missing = node.run(&["--rm", ONE, "/no/such"]).bad()?;
    ensure!(missing.contains("no such file"), "a missing program says: {missing}");
    Ok(())
}

fn terminal(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    // the client sends the size a moment after the start
    let inside = "tty; until stty size 2>&1 | grep \"33 77\"; do sleep 0.2; done";
    let run = words(&node.run(&["--rm", "-it", ONE, "sh", "-c"]));
    // timeout(1) would put the client into the background of the terminal
    let line = format!("stty rows 33 cols 77; {} '{inside}'", run[4..].join(" "));
    let said = within(90, "script")
        .env("PATH", node.kit.path())
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .good()?;
    ensure!(said.contains("/dev/pts/0") || said.contains("/dev/console"), "tty says {said:?}");
    ensure!(said.contains("33 77"), "the size did not arrive: {said:?}");
    Ok(())
}

fn words(command: &std::process::Command) -> Vec<String> {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

fn input(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let run = words(&node.run(&["--rm", "-i", ONE, "tr", "a-z", "A-Z"])).join(" ");
    // the client loses an end of input that comes before the task exists
    let wait = if bench.is_slow() { 15 } else { 2 };
    let line = format!("(echo abc; sleep {wait}) | {run}");
    let path = bench.kit.path();
    expect(&within(120, "sh").env("PATH", path).args(["-c", &line]).good()?, "ABC")
}

fn detached(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    node.run(&["-d", "--name", "steady", ONE, "sh", "-c", script]).good()?;
    wait_for(|| Ok(node.nerdctl(&["logs", "steady"]).good()?.contains("up")))?;
    expect(&node.nerdctl(&["exec", "steady", "cat", "/etc/top"]).good()?, "one")?;
    let environment =
        node.nerdctl(&["exec", "-e", "A=b", "-w", "/etc", "steady", "sh", "-c", "echo $A; pwd"]);
    expect(&{ environment }.good()?, "b\n/etc")?;
    node.nerdctl(&["exec", "steady", "false"]).bad()?;
    node.nerdctl(&["stop", "steady"]).good()?;
    let logs = node.nerdctl(&["logs", "steady"]).good()?;
    ensure!(logs.contains("bye"), "SIGTERM did not arrive: {logs:?}");
    node.nerdctl(&["start", "steady"]).good()?;
    expect(&node.nerdctl(&["exec", "steady", "echo", "again"]).good()?, "again")?;
    node.nerdctl(&["rm", "steady"]).bad()?;
    node.nerdctl(&["rm", "-f", "steady"]).good()?;
    expect(&node.nerdctl(&["ps", "-a", "-q"]).good()?, "")
}

fn inspect(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let state = || -> Result<Value> {
        let text = node.nerdctl(&["inspect", "seen"]).good()?;
        Ok(serde_json::from_str::<Value>(&text)?[0]["State"].clone())
    };
    node.run(&["-d", "--name", "seen", ONE, "sleep", "600"]).good()?;
    let running = state()?;
    ensure!(running["Status"] == "running" && running["Pid"].as_u64() > Some(0), "{running}");
    // the client leaves out a container whose state does not come soon enough
    let listed = || node.nerdctl(&["ps", "--format", "{{.Names}} {{.Status}}"]).good();
    wait_for(|| Ok(listed()?.starts_with("seen Up"))).context("nerdctl ps")?;
    let processes = node.nerdctl(&["top", "seen"]).good()?;
    ensure!(processes.contains("sleep 600"), "nerdctl top: {processes:?}");
    node.nerdctl(&["kill", "seen"]).good()?;
    wait_for(|| Ok(state()?["Status"] == "exited"))?;
    let code = state()?["ExitCode"].as_i64();
    ensure!(code == Some(137), "exit code {code:?}");
    Ok(())
}

fn stats(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let limits = ["-d", "--name", "counted", "--memory", "64m", "--cpus", "0.5"];
    node.run(&[&limits[..], &["--pids-limit", "20", ONE, "sleep", "600"]].concat()).good()?;
    // the client shows zeros when its first sample comes late
    let shows = |expected: &str| {
        let format = "{{.MemUsage}} {{.PIDs}}";
        let line = node.nerdctl(&["stats", "--no-stream", "--format", format, "counted"]).good()?;
        Ok(line.contains(expected) && line.ends_with(" 1"))
    };
    wait_for(|| shows("64MiB")).context("limit of 64 MiB and one process")?;
    node.nerdctl(&["update", "-m", "32m", "counted"]).good()?;
    wait_for(|| shows("32MiB")).context("limit of 32 MiB after update")
}

fn copy(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    node.run(&["-d", "--name", "copied", ONE, "sleep", "600"]).good()?;
    std::fs::write("/tmp/in", "carried in\n")?;
    node.nerdctl(&["cp", "/tmp/in", "copied:/tmp/in"]).good()?;
    expect(&node.nerdctl(&["exec", "copied", "cat", "/tmp/in"]).good()?, "carried in")?;
    node.nerdctl(&["cp", "copied:/etc/top", "/tmp/out"]).good()?;
    expect(&std::fs::read_to_string("/tmp/out")?, "one")?;
    Ok(())
}

fn writes(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let change = "echo changed > /etc/top; rm /etc/bottom; mkdir /new; cat /etc/top; ls -d /new";
    expect(&node.run(&["--name", "written", ONE, "sh", "-c", change]).good()?, "changed\n/new")?;
    let fresh =
        node.run(&["--rm", ONE, "sh", "-c", "cat /etc/top /etc/bottom; ls -d /new"]).ran()?;
    expect(&fresh.stdout, "oneone")?;
    ensure!(!fresh.status.success(), "/new leaked into another container");
    Ok(())
}

fn options(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    expect(&node.run(&["--rm", "--user", "1000:1000", ONE, "id", "-u"]).good()?, "1000")?;
    let refused = node.run(&["--rm", "--read-only", ONE, "touch", "/etc/x"]).bad()?;
    ensure!(refused.contains("Read-only"), "{refused}");
    std::fs::create_dir_all("/tmp/bound")?;
    std::fs::write("/tmp/bound/file", "bound\n")?;
    let bind = ["--rm", "-v", "/tmp/bound:/mnt/b:ro", ONE, "cat", "/mnt/b/file"];
    expect(&node.run(&bind).good()?, "bound")?;
    expect(&node.run(&["--rm", "--hostname", "h1", ONE, "hostname"]).good()?, "h1")?;
    let seccomp = node.run(&["--rm", ONE, "grep", "Seccomp:", "/proc/self/status"]).good()?;
    ensure!(seccomp.ends_with('2'), "no filter: {seccomp:?}");
    let capabilities = ["--rm", "--cap-drop", "ALL", ONE, "grep", "CapEff", "/proc/self/status"];
    let none = node.run(&capabilities).good()?;
    ensure!(none.ends_with("0000000000000000"), "{none:?}");
    Ok(())
}

fn ctr(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    let how = ["--snapshotter", node.snapshotter_name(), "--runtime", node.runtime_name()];
    let once = [&["run", "--rm"], &how[..], &[ONE, "t1"]].concat();
    expect(&node.ctr(&once).good()?, "hello from one")?;
    let long = [&["run", "-d"], &how[..], &[ONE, "t2", "sleep", "600"]].concat();
    node.ctr(&long).good()?;
    let exec = ["tasks", "exec", "--exec-id", "e1", "t2", "cat", "/etc/middle"];
    expect(&node.ctr(&exec).good()?, "one")?;
    let tasks = node.ctr(&["tasks", "ls"]).good()?;
    ensure!(tasks.contains("RUNNING"), "{tasks}");
    node.ctr(&["tasks", "pause", "t2"]).good()?;
    let tasks = node.ctr(&["tasks", "ls"]).good()?;
    ensure!(tasks.contains("PAUSED"), "{tasks}");
    node.ctr(&["tasks", "resume", "t2"]).good()?;
    node.ctr(&["tasks", "kill", "--signal", "KILL", "t2"]).good()?;
    wait_for(|| Ok(node.ctr(&["tasks", "ls"]).good()?.contains("STOPPED")))?;
    node.ctr(&["tasks", "rm", "t2"]).ran()?;
    node.ctr(&["containers", "rm", "t2"]).good()?;
    Ok(())
}

fn import_local(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    let import = ["images", "import", "--local", "--snapshotter", node.snapshotter_name()];
    node.ctr(&import).arg(archive).good()?;
    expect(&node.run(&["--rm", ONE]).good()?, "hello from one")
}

fn python(bench: &mut Bench) -> Result<()> {
    let node = load(bench, PYTHON)?;
    expect(&node.run(&["--rm", PYTHON]).good()?, "hello from a sealed python")?;
    let script = "import ssl, json, subprocess; print(json.dumps(subprocess.check_output(['id','-u'],text=True)))";
    expect(&node.run(&["--rm", PYTHON, "python3", "-c", script]).good()?, "\"0\\n\"")
}

fn nginx(bench: &mut Bench) -> Result<()> {
    let node = load(bench, NGINX)?;
    node.run(&["-d", "--name", "nginx", NGINX]).good()?;
    let fetch = "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    wait_for(|| {
        let page = node.nerdctl(&["exec", "nginx", "bash", "-c", fetch]).ran()?;
        Ok(page.stdout.contains("hello from a sealed nginx"))
    })?;
    let look =
        "cd /srv; ls; ls old; stat -c '%u %g %h' owned linked; stat -c %a sticky old; cat pointer";
    let seen = node.nerdctl(&["exec", "nginx", "sh", "-c", look]).good()?;
    let expected = "index.html\nlinked\nold\nowned\npointer\nsticky\nnew.html\n\
                    33 33 2\n33 33 2\n4711\n750\nhello from a sealed nginx";
    expect(&seen, expected)
}

fn killed(bench: &mut Bench) -> Result<()> {
    let node = load(bench, ONE)?;
    node.run(&["-d", "--name", "steady", ONE, "sleep", "600"]).good()?;
    node.kill_snapshotter()?;
    expect(&node.nerdctl(&["exec", "steady", "cat", "/etc/top"]).good()?, "one")?;
    node.run(&["--rm", ONE]).bad()?;
    node.start_snapshotter()?;
    let node = bench.node()?;
    // containerd's connection comes back in up to three seconds
    wait_for(|| Ok(node.once(&[ONE]).ran()?.stdout.contains("hello from one")))?;
    expect(&node.nerdctl(&["exec", "steady", "cat", "/etc/top"]).good()?, "one")
}

fn side_by_side(bench: &mut Bench) -> Result<()> {
    load(bench, ONE)?;
    let node = load(bench, TWO)?;
    for name in [ONE, TWO] {
        node.run(&["-d", "--name", &name.replace(['/', ':'], "-"), name, "sleep", "600"]).good()?;
    }
    expect(&node.run(&["--rm", TWO]).good()?, "hello from two")?;
    expect(&node.run(&["--rm", ONE]).good()?, "hello from one")
}

/// Waits until a condition holds, up to thirty seconds.
pub(super) fn wait_for(condition: impl Fn() -> Result<bool>) -> Result<()> {
    let started = std::time::Instant::now();
    while !condition()? {
        ensure!(started.elapsed().as_secs() < 30, "waited for 30 s in vain");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}
