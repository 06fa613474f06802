//! What a program sees and may do: namespaces, mounts, masks, credentials, limits.

mod bundle;

use std::os::unix::fs::symlink;

use bundle::{Bundle, skipped, text};
use serde_json::{Value, json};

fn shell(script: &str) -> Bundle {
    Bundle::new(&["sh", "-c", script])
}

#[test]
fn a_program_is_alone() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "echo $$; hostname; ls /proc | grep -c '^[0-9]'; for n in /proc/self/ns/*; do readlink $n; done; echo HOME=$HOME",
    );
    // `spec`, as runc's, asks for a cgroup namespace on v2 only
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    if !namespaces.contains(&json!({"type": "cgroup"})) {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let output = bundle.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["1", "hallmark"]);
    assert!(lines.contains(&"HOME=/root"), "{output}");
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(!output.contains(own.to_str().unwrap()), "{kind} is the host's");
    }
}

#[test]
fn paths_are_masked_and_read_only() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "cat /proc/keys | head -c 1; ls -A /proc/acpi; ls -A /masked; cat /maskedfile; \
         touch /proc/sys/x 2>/dev/null || echo ro1; touch /readonly/x 2>/dev/null || echo ro2; \
         touch /masked/x 2>/dev/null || echo ro3; touch /y && echo rw",
    );
    bundle.config["root"]["readonly"] = json!(false);
    for dir in ["masked", "readonly"] {
        std::fs::create_dir(bundle.in_root(dir)).unwrap();
        std::fs::write(bundle.in_root(dir).join("secret"), "secret").unwrap();
    }
    std::fs::write(bundle.in_root("maskedfile"), "secret").unwrap();
    for path in ["/masked", "/maskedfile", "/not/there"] {
        bundle.config["linux"]["maskedPaths"].as_array_mut().unwrap().push(json!(path));
    }
    bundle.config["linux"]["readonlyPaths"].as_array_mut().unwrap().push(json!("/readonly"));
    assert_eq!(bundle.output(), "ro1\nro2\nro3\nrw\n");
}

#[test]
fn the_root_is_read_only_when_asked() {
    if skipped() {
        return;
    }
    let mut bundle = shell("touch /x 2>/dev/null || echo ro; touch /tmp/x && echo rw");
    std::fs::create_dir(bundle.in_root("tmp")).unwrap();
    let mount =
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    assert_eq!(bundle.output(), "ro\nrw\n");
    assert!(std::fs::metadata(bundle.in_root("x")).is_err());
}

#[test]
fn proc_and_sys_behind_links_are_refused() {
    if skipped() {
        return;
    }
    for (name, file_system) in [("proc", "proc"), ("sys", "sysfs")] {
        let bundle = Bundle::new(&["true"]);
        std::fs::create_dir(bundle.in_root("real")).unwrap();
        symlink("real", bundle.in_root(name)).unwrap();
        let error = bundle.refusal();
        let expected =
            format!("filesystem \"{file_system}\" must be mounted on ordinary directory");
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn nothing_covers_proc() {
    if skipped() {
        return;
    }
    let tmpfs =
        |destination: &str| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    for (mount, expected) in [
        (tmpfs("/proc"), "cannot be mounted because it is not of type proc"),
        (tmpfs("/proc/self"), "cannot be mounted because it is inside /proc"),
        (tmpfs("/link/net"), "cannot be mounted because it is inside /proc"),
        (json!({"destination": "/proc", "type": "bind", "source": "/etc"}), "not of type proc"),
    ] {
        let mut bundle = Bundle::new(&["true"]);
        symlink("/proc/self", bundle.in_root("link")).unwrap();
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        let error = bundle.refusal();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_linked_dev_ends_inside_the_root() {
    if skipped() {
        return;
    }
    let bundle = shell("ls -d /elsewhere/null /dev/null; stat -c %t:%T /dev/null");
    symlink("../../../../elsewhere", bundle.in_root("dev")).unwrap();
    assert_eq!(bundle.output(), "/dev/null\n/elsewhere/null\n1:3\n");
    assert!(std::fs::symlink_metadata("/elsewhere").is_err(), "something was made on the host");
}

#[test]
fn binds_have_the_options_they_name() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "awk '$5 ~ \"^/(a|b|c/d)$\" {print $5, $6}' /proc/self/mountinfo; cat /c/d; echo x >/a/file || true",
    );
    let source = bundle.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "text\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let source = source.to_str().unwrap();
    mounts.push(json!({"destination": "/a", "type": "bind", "source": source, "options": ["rbind", "rro", "nosuid"]}));
    mounts.push(json!({"destination": "/b", "type": "bind", "source": source, "options": ["bind", "ro", "noexec", "nodev", "noatime"]}));
    mounts.push(json!({"destination": "/c/d", "type": "bind", "source": format!("{source}/file"), "options": ["bind"]}));
    // mount points of binds are made in the root
    bundle.config["root"]["readonly"] = json!(false);
    let output = bundle.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "/a ro,nosuid,relatime", "{output}");
    assert_eq!(lines[1], "/b ro,nodev,noexec,noatime", "{output}");
    assert!(lines[2].starts_with("/c/d rw"), "{output}");
    assert_eq!(lines[3], "text");
    assert_eq!(std::fs::read_to_string(bundle.path("source/file")).unwrap(), "text\n");
}

#[test]
fn a_tmpfs_starts_with_what_it_covers_when_asked() {
    if skipped() {
        return;
    }
    let mut bundle = shell("cat /data/dir/file; stat -c %a /data; echo x >/data/new");
    std::fs::create_dir_all(bundle.in_root("data/dir")).unwrap();
    std::fs::write(bundle.in_root("data/dir/file"), "text\n").unwrap();
    std::fs::set_permissions(
        bundle.in_root("data"),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let mount = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    assert_eq!(bundle.output(), "text\n711\n");
    assert!(std::fs::metadata(bundle.in_root("data/new")).is_err());
}

#[test]
fn nothing_of_the_host_is_open() {
    if skipped() {
        return;
    }
    let bundle = shell("ls /proc/self/fd");
    // 3 is ls' own
    assert_eq!(bundle.output(), "0\n1\n2\n3\n");
    for cwd in ["/proc/self/fd/7", "/proc/self/fd/8/../.."] {
        let mut bundle = shell("pwd");
        bundle.config["process"]["cwd"] = json!(cwd);
        let output = bundle.run();
        // there, or refused: but never the host
        assert_ne!(output.status.code(), Some(0), "{cwd}: {}", text(&output));
        bundle.assert_nothing_left();
    }
}

#[test]
fn credentials_are_exactly_those_asked_for() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "id -u; id -g; id -G; umask; grep -E '^(Cap|NoNewPrivs)' /proc/self/status | awk '{print $2}'",
    );
    let process = &mut bundle.config["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27});
    process["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    let output = bundle.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..4], ["1000", "1001", "1001 5 6", "0027"]);
    let kill = "0000000000000020";
    // inheritable, permitted, effective, bounding, ambient; exec leaves a user only what is ambient
    assert_eq!(lines[4..], [kill, kill, kill, "0000000000000021", kill, "1"]);
}

#[test]
fn no_capabilities_means_none() {
    if skipped() {
        return;
    }
    let mut bundle = shell("grep ^Cap /proc/self/status | awk '{print $2}'");
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(bundle.output(), "0000000000000000\n".repeat(5));
}

#[test]
fn limits_sysctls_and_scores_are_set() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "ulimit -n; ulimit -Hn; sysctl -n net.ipv4.ip_forward; cat /proc/self/oom_score_adj; grep -c 'lo:' /proc/net/dev; cat /sys/class/net/lo/operstate",
    );
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    assert_eq!(bundle.output(), "64\n128\n1\n500\n1\nunknown\n");
}

#[test]
fn seccomp_is_in_force() {
    if skipped() {
        return;
    }
    for no_new_privileges in [true, false] {
        let mut bundle = shell("mkdir /tmp 2>&1; grep ^Seccomp: /proc/self/status");
        bundle.config["root"]["readonly"] = json!(false);
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
        });
        let output = bundle.output();
        assert!(
            output.contains("Disk quota exceeded") || output.contains("Quota exceeded"),
            "{output}"
        );
        assert!(output.ends_with("Seccomp:\t2\n"), "{output}");
    }
}

#[test]
fn a_user_namespace_maps_and_hides() {
    if skipped() {
        return;
    }
    let mut bundle = shell(
        "id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; cat /sys/fs/cgroup/*/cgroup.procs 2>/dev/null | head -1; echo x >/dev/null && echo ok",
    );
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    std::fs::set_permissions(bundle.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    // mount points are made by the container's root, who may not write to the host's directory
    for dir in ["proc", "dev", "sys"] {
        std::fs::create_dir(bundle.in_root(dir)).unwrap();
    }
    let output = bundle.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(lines[2], "1:3");
    assert_eq!(*lines.last().unwrap(), "ok");
}

/// As containerd makes a pod whose containers share a user namespace.
#[test]
fn a_user_namespace_is_joined_with_those_it_owns() {
    if skipped() {
        return;
    }
    let mapped = |bundle: &mut Bundle| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        bundle.config["linux"]["uidMappings"] = map.clone();
        bundle.config["linux"]["gidMappings"] = map;
        bundle.config["process"]["user"] = json!({"uid": 7, "gid": 8});
        bundle.config["process"]["oomScoreAdj"] = json!(300);
        std::fs::set_permissions(
            bundle.path(""),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        for dir in ["proc", "dev", "sys"] {
            std::fs::create_dir(bundle.in_root(dir)).unwrap();
        }
    };
    let mut pod = Bundle::new(&["sleep", "100"]);
    mapped(&mut pod);
    pod.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let created = pod.create();
    assert!(created.status.success(), "{}", text(&created));
    assert!(pod.runtime(&["start", "ID"]).status.success());
    let pid = pod.state()["pid"].to_string();
    let mut member = shell("id -u; cat /proc/self/oom_score_adj; echo $$; cat /proc/self/uid_map");
    mapped(&mut member);
    member.config["hostname"] = json!("");
    let namespaces = member.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| {
        !["network", "ipc", "uts"].contains(&namespace["type"].as_str().unwrap())
    });
    for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        namespaces.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
    let output = member.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["7", "300", "1"]);
    assert!(lines[3].contains("100000"), "{output}");
    let exec = pod.runtime(&["exec", "ID", "id", "-u"]);
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "7\n", "{}", text(&exec));
}

#[test]
fn namespaces_are_joined_by_path_and_their_type_is_checked() {
    if skipped() {
        return;
    }
    let mut host = Bundle::new(&["sleep", "100"]);
    host.config["hostname"] = json!("first");
    host.start();
    let pid = host.state()["pid"].to_string();
    let join = |bundle: &mut Bundle, kind: &str, file: &str| {
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        namespaces.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    };
    let mut guest = shell("hostname; tr '\\0' ' ' </proc/1/cmdline");
    guest.config["hostname"] = json!("");
    join(&mut guest, "uts", "uts");
    join(&mut guest, "pid", "pid");
    assert_eq!(guest.output(), "first\nsleep 100 ");
    let mut wrong = Bundle::new(&["true"]);
    join(&mut wrong, "network", "ipc");
    let error = wrong.refusal();
    assert!(error.contains("expected a network namespace"), "{error}");
    let mut nothing = Bundle::new(&["true"]);
    nothing.config["linux"]["namespaces"][1] = json!({"type": "network", "path": "/etc/passwd"});
    let error = nothing.refusal();
    assert!(error.contains("expected a namespace"), "{error}");
}

#[test]
fn a_time_namespace_has_its_offsets() {
    if skipped() {
        return;
    }
    let mut bundle = shell("cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    let output = bundle.output();
    let uptime: u64 = output.lines().last().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000, "{output}");
}

#[test]
fn a_label_that_nothing_enforces_is_refused() {
    if skipped() || std::fs::metadata("/sys/fs/selinux/enforce").is_ok() {
        return;
    }
    let labels: [fn(&mut Value); 3] = [
        |config| config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0"),
        |config| config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0"),
        |config| config["process"]["apparmorProfile"] = json!("docker-default"),
    ];
    for set in labels {
        let mut bundle = Bundle::new(&["true"]);
        set(&mut bundle.config);
        let error = bundle.refusal();
        assert!(error.contains("expected it on"), "{error}");
    }
}

#[test]
fn the_host_sees_no_mount_of_the_container() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(bundle.create().status.success());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = bundle.path("rootfs");
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
    drop(before);
}

#[test]
fn the_runtimes_binary_cannot_be_written_to() {
    if skipped() {
        return;
    }
    // a first process that waits for start is still the runtime
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let exe = format!("/proc/{}/exe", bundle.state()["pid"]);
    let reference = std::fs::read(env!("CARGO_BIN_EXE_hallmark-runtime")).unwrap();
    assert!(std::fs::read(&exe).unwrap() == reference, "not the same program");
    // as if it had ended, which is when a busy text becomes writable
    let opened = std::fs::File::open(&exe).unwrap();
    assert!(bundle.runtime(&["delete", "--force", "ID"]).status.success());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let error = std::fs::OpenOptions::new().write(true).open(path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(30), "expected a read-only file system: {error}");
}
