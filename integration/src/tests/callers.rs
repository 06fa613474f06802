//! Other people's programs that take any runtime: containerd's own shim for runc, and podman. Both mount the root
//! themselves, so there is no stack to judge: audit only.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::images::ONE;
use crate::run::{Run, within};
use crate::table::{Bench, Test};
use crate::trust::Setting;

pub(super) const TESTS: &[Test] = &[Test {
    name: "containerd's shim for runc: our runtime as its binary",
    needs: &[],
    run: shim,
}];

/// What runs on this machine only: the guest has no podman.
pub(super) const ON_HOST: &[Test] =
    &[Test { name: "podman: our runtime by --runtime", needs: &[], run: podman }];

fn expect(found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "found {found:?}, expected {expected:?}");
    Ok(())
}

/// Named by its path, nerdctl has `containerd-shim-runc-v2` run the runtime (`BinaryName`).
fn shim(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.set(Setting::Audit)?;
    node.load(&archive)?;
    let runtime = node.kit.bin("hallmark-runtime");
    let runtime = runtime.to_str().context("the kit's path is not UTF-8")?;
    let run = |arguments: &[&str]| {
        node.nerdctl(&[&["run", "--runtime", runtime, "--net", "none"], arguments].concat())
    };
    expect(&run(&["--rm", ONE]).good()?, "hello from one")?;
    let failed = run(&["--rm", ONE, "sh", "-c", "exit 7"]).ran()?;
    ensure!(failed.status.code() == Some(7), "exit {}", failed.status);
    let missing = run(&["--rm", ONE, "/no/such"]).bad()?;
    ensure!(missing.contains("no such file"), "a missing program says: {missing}");
    run(&["-d", "--name", "under", ONE, "sleep", "600"]).good()?;
    expect(&node.nerdctl(&["exec", "under", "cat", "/etc/top"]).good()?, "one")?;
    let processes = node.nerdctl(&["top", "under"]).good()?;
    ensure!(processes.contains("sleep 600"), "{processes:?}");
    node.nerdctl(&["pause", "under"]).good()?;
    node.nerdctl(&["unpause", "under"]).good()?;
    node.nerdctl(&["update", "--pids-limit", "50", "under"]).good()?;
    node.nerdctl(&["kill", "under"]).good()?;
    node.nerdctl(&["rm", "-f", "under"]).good()?;
    bench.set(Setting::Enforce)?;
    Ok(())
}

/// podman with a store of its own, which goes with the sandbox.
fn podman(bench: &mut Bench) -> Result<()> {
    let archive = bench.kit.images().archive(ONE);
    let runtime = bench.kit.bin("hallmark-runtime");
    bench.set(Setting::Audit)?;
    let podman = |arguments: &[&str]| {
        let mut command = within(90, "podman");
        for option in ["root", "runroot", "tmpdir"] {
            command.arg(format!("--{option}=/run/podman-{option}"));
        }
        command.args([
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
        ]);
        command.arg(format!("--runtime={}", runtime.display())).args(arguments);
        command
    };
    // what podman asks for otherwise takes CAP_SYS_RESOURCE, which not every machine's root has
    let limits = [
        "--network=none",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=4096:4096",
        "--cgroups=no-conmon",
    ];
    let run = |arguments: &[&str]| podman(&[&["run"], &limits[..], arguments].concat());
    podman(&["load", "--quiet", "--input"]).arg(&archive).good()?;
    expect(&run(&["--rm", ONE]).good()?, "hello from one")?;
    let failed = run(&["--rm", ONE, "sh", "-c", "exit 7"]).ran()?;
    ensure!(failed.status.code() == Some(7), "exit {}", failed.status);
    let missing = run(&["--rm", ONE, "/no/such"]).ran()?;
    // podman knows it by the runtime's words
    ensure!(missing.status.code() == Some(127), "{}: {}", missing.status, missing.all());
    run(&["-d", "--name", "under", ONE, "sleep", "600"]).good()?;
    expect(&podman(&["exec", "under", "cat", "/etc/top"]).good()?, "one")?;
    let shown = podman(&["inspect", "--format", "{{.State.Status}} {{.OCIRuntime}}", "under"]);
    expect(&{ shown }.good()?, &format!("running {}", runtime.display()))?;
    podman(&["pause", "under"]).good()?;
    podman(&["unpause", "under"]).good()?;
    podman(&["stop", "--time=1", "under"]).good()?;
    podman(&["rm", "--force", "under"]).good()?;
    podman(&["rmi", "--all"]).good()?;
    // podman leaves its store, and the group above its containers'
    for option in ["root", "runroot", "tmpdir"] {
        Command::new("rm").arg("-rf").arg(format!("/run/podman-{option}")).good()?;
    }
    let groups = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/libpod_parent*"];
    Command::new("find").args(groups).args(["-exec", "rmdir", "{}", "+"]).good()?;
    bench.set(Setting::Enforce)?;
    Ok(())
}
