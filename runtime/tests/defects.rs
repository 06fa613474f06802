//! The classes of defects that runtimes had, each with what defends this one and the test that fails without it.
//!
//! [`CLASSES`] is checked against the sources: a defence or a test that is renamed or removed fails here.

mod bundle;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use bundle::{Bundle, skipped, text};
use serde_json::json;

/// A class: its number and name, the function that defends, the test that fails when it does not; each below `runtime`.
type Class = (u8, &'static str, (&'static str, &'static str), (&'static str, &'static str));

const CLASSES: &[Class] = &[
    (
        1,
        "the runtime overwritten through /proc/self/exe",
        ("src/exe.rs", "protect"),
        ("tests/isolation.rs", "the_runtimes_binary_cannot_be_written_to"),
    ),
    (
        2,
        "host descriptors leaked to a program",
        ("src/init/program.rs", "close_the_hosts"),
        ("tests/isolation.rs", "nothing_of_the_host_is_open"),
    ),
    (
        2,
        "host descriptors leaked to an added program",
        ("src/init/program.rs", "close_the_hosts"),
        ("tests/exec.rs", "nothing_of_ours_is_open_in_it"),
    ),
    (
        3,
        "links swapped under mount points",
        ("src/init/root.rs", "resolve"),
        ("src/init/root.rs", "links_end_inside_the_root_and_dangling_ones_are_made"),
    ),
    (
        4,
        "/proc or /sys of the image being a link",
        ("src/init/root.rs", "ordinary_directory"),
        ("tests/isolation.rs", "proc_and_sys_behind_links_are_refused"),
    ),
    (
        5,
        "a mask made of something else than the null device",
        ("src/init/masks.rs", "null_device"),
        ("tests/defects.rs", "a_replaced_null_device_masks_nothing"),
    ),
    (
        6,
        "a console that is no terminal of the container",
        ("src/init/console.rs", "require_devpts"),
        ("tests/defects.rs", "a_replaced_multiplexer_is_no_console"),
    ),
    (
        7,
        "settings written to something mounted over procfs",
        ("../integrity/sys/src/procfs.rs", "open_file"),
        ("tests/defects.rs", "a_sysctl_reaches_the_kernel_or_nothing"),
    ),
    (
        7,
        "a label that is not applied",
        ("src/selinux.rs", "require"),
        ("tests/isolation.rs", "a_label_that_nothing_enforces_is_refused"),
    ),
    (
        8,
        "/dev of the image being a link",
        ("src/init/root.rs", "resolve"),
        ("tests/isolation.rs", "a_linked_dev_ends_inside_the_root"),
    ),
    (
        9,
        "capabilities that stay",
        ("src/init/credentials.rs", "apply"),
        ("tests/isolation.rs", "no_capabilities_means_none"),
    ),
    (
        9,
        "an added capability that is inheritable",
        ("src/spec/capability.rs", "add"),
        ("tests/exec.rs", "an_added_capability_is_not_inheritable"),
    ),
    (
        10,
        "a user looked up in the image",
        ("src/cli/commands.rs", "user"),
        ("tests/defects.rs", "a_user_is_a_number"),
    ),
    (
        11,
        "a cgroup path that climbs",
        ("src/cgroup/path.rs", "parse"),
        ("src/cgroup/path.rs", "climbing_the_root_and_systemd_forms_are_refused"),
    ),
    (
        11,
        "a cgroup of somebody else",
        ("src/cgroup/mod.rs", "refuse_if_in_use"),
        ("src/cgroup/kernel.rs", "a_group_with_processes_is_not_taken_and_not_removed"),
    ),
    (
        12,
        "an id that is a path",
        ("src/state/id.rs", "parse"),
        ("tests/failures.rs", "an_id_is_a_plain_name"),
    ),
    (
        13,
        "flags of a mount that get lost",
        ("src/init/bind.rs", "set_attributes"),
        ("tests/isolation.rs", "binds_have_the_options_they_name"),
    ),
    (
        13,
        "a mount inside /proc",
        ("src/init/mounts.rs", "guard_proc"),
        ("tests/isolation.rs", "nothing_covers_proc"),
    ),
    (
        14,
        "a filter that another architecture walks around",
        ("src/seccomp/arch.rs", "wanted"),
        ("src/seccomp/oracle.rs", "architectures_decide_alike"),
    ),
    (
        14,
        "a filter that is not in force",
        ("src/init/security.rs", "seccomp"),
        ("tests/isolation.rs", "seccomp_is_in_force"),
    ),
    (
        15,
        "a sysctl of the host",
        ("src/spec/system.rs", "sysctls"),
        ("src/spec/system.rs", "a_sysctl_needs_its_namespace"),
    ),
    (
        16,
        "a hook whose failure is passed over",
        ("src/hooks.rs", "run"),
        ("tests/hooks.rs", "a_failing_hook_undoes_the_container"),
    ),
    (
        17,
        "a state directory of somebody else",
        ("src/state/directory.rs", "open_or_make"),
        ("src/state/directory.rs", "a_root_that_is_a_link_or_open_to_others_is_refused"),
    ),
    (
        17,
        "another process under the same number",
        ("src/state/process.rs", "find"),
        ("tests/failures.rs", "a_reused_pid_is_not_taken_for_the_container"),
    ),
    (
        18,
        "a namespace of another kind",
        ("src/init/namespaces.rs", "open_joined"),
        ("tests/isolation.rs", "namespaces_are_joined_by_path_and_their_type_is_checked"),
    ),
    (
        19,
        "the runtime looked into while it becomes the container",
        ("src/init/namespaces.rs", "hide"),
        ("tests/defects.rs", "nobody_looks_into_a_process_that_waits"),
    ),
    (
        20,
        "a tmpfs for every masked path",
        ("src/init/masks.rs", "one_mask"),
        ("tests/defects.rs", "masked_directories_share_one_file_system"),
    ),
    (
        20,
        "a hook that floods the log",
        ("src/hooks.rs", "text"),
        ("tests/defects.rs", "a_hook_does_not_flood_the_log"),
    ),
    (
        21,
        "judged is not what is mounted",
        ("src/gate/overlay.rs", "of_descriptors"),
        ("src/gate/tamper.rs", "a_sealed_stack_is_mounted_from_its_descriptors"),
    ),
    (
        21,
        "layers in another order, left out or added",
        ("src/gate/stack.rs", "judge"),
        ("src/gate/tamper.rs", "a_stack_that_is_not_as_sealed_is_refused_with_the_layer"),
    ),
    (
        21,
        "an upper with content",
        ("src/gate/upper.rs", "belongs_to"),
        ("src/gate/tamper.rs", "the_upper_stays_with_its_stack"),
    ),
    (
        21,
        "a mount over the image's code",
        ("src/gate/mounts.rs", "may_be_unverified"),
        ("src/gate/tamper.rs", "mounts_may_cover_data_and_not_code"),
    ),
    (
        21,
        "the same through a link of an earlier mount",
        ("src/init/mounts.rs", "guard_code"),
        ("src/init/mounts.rs", "a_link_of_an_earlier_mount_does_not_lead_over_code"),
    ),
    (
        21,
        "a verified volume swapped after the judgement",
        ("src/init/attach.rs", "open_binds"),
        ("src/init/attach.rs", "a_judged_volume_is_bound_whatever_its_name_leads_to"),
    ),
    (
        21,
        "restore, which brings code pages along",
        ("src/cli/mod.rs", "run"),
        ("tests/defects.rs", "nothing_is_restored"),
    ),
];

/// Whether `name` is a function of a file below this package.
fn has_function(file: &str, name: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

#[test]
fn every_class_has_its_defence_and_its_test() {
    let numbers: std::collections::BTreeSet<u8> = CLASSES.iter().map(|class| class.0).collect();
    assert_eq!(numbers, (1..=21).collect());
    for (number, name, defence, test) in CLASSES {
        for (file, function) in [defence, test] {
            assert!(has_function(file, function), "{number}, {name}: no {function} in {file}");
        }
    }
}

#[test]
fn a_replaced_null_device_masks_nothing() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["cat", "/masked"]);
    std::fs::write(bundle.in_root("masked"), "secret").unwrap();
    std::fs::write(bundle.path("evil"), "evil").unwrap();
    let evil = json!({"destination": "/dev/null", "type": "bind", "source": bundle.path("evil"), "options": ["bind"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(evil);
    bundle.config["linux"]["maskedPaths"] = json!(["/masked"]);
    bundle.write();
    // no standard stream is the null device, which would be looked at as well
    let input = std::fs::File::open(bundle.path("evil")).unwrap();
    let directory = bundle.path("");
    let mut run = bundle.command(&["run", "--bundle", directory.to_str().unwrap(), bundle.id()]);
    let output = run.stdin(input).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let error = bundle.last_error();
    assert!(error.contains("can't mask paths: container's /dev/null is invalid"), "{error}");
    bundle.assert_nothing_left();
}

#[test]
fn a_replaced_multiplexer_is_no_console() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["process"]["terminal"] = json!(true);
    std::fs::write(bundle.path("evil"), "evil").unwrap();
    let evil = json!({"destination": "/dev/pts/ptmx", "type": "bind", "source": bundle.path("evil"), "options": ["bind"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(evil);
    bundle.write();
    let socket = bundle.path("console.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let directory = bundle.path("");
    let words = ["create", "--bundle", directory.to_str().unwrap(), "--console-socket"];
    let output = bundle.quiet(&[&words[..], &[socket.to_str().unwrap(), "ID"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let error = bundle.last_error();
    assert!(error.contains("expected a terminal device of devpts"), "{error}");
    bundle.assert_nothing_left();
}

#[test]
fn a_sysctl_reaches_the_kernel_or_nothing() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    assert_eq!(bundle.output(), "");
    // a file system that takes every write, in the place of the kernel's settings
    let directory = bundle.path("");
    let inner = bundle.command(&["run", "--bundle", directory.to_str().unwrap(), bundle.id()]);
    let script = "mount -t tmpfs tmpfs /proc/sys && mkdir -p /proc/sys/net/ipv4 && \
                  : >/proc/sys/net/ipv4/ip_forward && exec \"$@\"";
    let mut run = Command::new("unshare");
    run.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    run.arg(inner.get_program()).args(inner.get_args());
    let output = run.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let error = bundle.last_error();
    assert!(error.contains("/proc/sys/net/ipv4/ip_forward"), "{error}");
    bundle.assert_nothing_left();
}

#[test]
fn a_user_is_a_number() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    std::fs::write(bundle.in_root("etc/passwd"), "1000:x:0:0::/root:/bin/sh\nevil:x:0:0::/:\n")
        .unwrap();
    assert!(bundle.create().status.success());
    assert!(bundle.runtime(&["start", "ID"]).status.success());
    let exec = bundle.runtime(&["exec", "--user", "1000", "ID", "id", "-u"]);
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "1000\n", "{}", text(&exec));
    for user in ["evil", "0x0", "-1", "4294967295", "+", "1000:evil", " 0"] {
        let exec = bundle.runtime(&["exec", "--user", user, "ID", "id", "-u"]);
        assert!(!exec.status.success(), "{user}: {}", text(&exec));
        assert!(exec.stdout.is_empty(), "{user}: {}", text(&exec));
    }
}

/// Seen by root of the host without CAP_SYS_PTRACE, who may look into every other process with fewer capabilities.
#[test]
fn nobody_looks_into_a_process_that_waits() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let pid = bundle.state()["pid"].to_string();
    let look = || {
        let mut look = Command::new("setpriv");
        look.args(["--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]);
        look.arg("readlink").arg(format!("/proc/{pid}/exe")).output().unwrap()
    };
    let waiting = look();
    assert!(!waiting.status.success(), "{}", text(&waiting));
    assert!(bundle.runtime(&["start", "ID"]).status.success());
    let running = look();
    assert!(running.status.success(), "{}", text(&running));
}

#[test]
fn masked_directories_share_one_file_system() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["stat", "-c", "%d", "/a", "/b", "/c"]);
    for dir in ["a", "b", "c"] {
        std::fs::create_dir(bundle.in_root(dir)).unwrap();
    }
    bundle.config["linux"]["maskedPaths"] = json!(["/a", "/b", "/c"]);
    let output = bundle.output();
    let devices: std::collections::BTreeSet<&str> = output.lines().collect();
    assert_eq!((output.lines().count(), devices.len()), (3, 1), "{output}");
}

#[test]
fn a_hook_does_not_flood_the_log() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    let flood = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 1";
    bundle.config["hooks"] = json!({"prestart": [bundle.hook("flood", flood)]});
    let error = bundle.refusal();
    assert!(error.contains("0123456789") && error.len() < 8192, "{} bytes", error.len());
}

#[test]
fn nothing_is_restored() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["true"]);
    symlink("/nowhere", bundle.path("checkpoint")).unwrap();
    for verb in ["restore", "checkpoint"] {
        let output = bundle.runtime(&[verb, "ID"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(bundle.last_error().contains(verb), "{verb}: {}", text(&output));
        bundle.assert_nothing_left();
    }
}
