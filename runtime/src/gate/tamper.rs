//! The runtime's part of the tamper table, on real layers, mounts and overlays.
//!
//! [`rows!`] makes the table and a `match` over [`Refusal`] from one list: a new variant does not compile until it has
//! a row. Before and after every row the untouched container is launched as well.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hallmark_trust::Enforcement;
use hallmark_verity::{ImageDigest, LayerDigest};

use super::world::{World, bind, claim, layer, privately, sh};
use super::*;

/// A row: which refusal, a piece of its message, how to get there.
type Row = (&'static str, &'static str, fn(&mut World));

macro_rules! rows {
    ($($variant:ident, $fragment:expr, $tamper:expr;)*) => {
        const ROWS: &[Row] = &[$((stringify!($variant), $fragment, $tamper),)*];

        /// Not called: it is here to have no wildcard.
        const _: fn(&Refusal) = |refusal| match refusal {
            $(Refusal::$variant { .. } => {})*
        };
    };
}

rows! {
    Hook, "hook /opt/evil with arguments [], expected one of gate.hooks", |w| w.hook("/opt/evil", &[]);
    Layers, "expected EROFS", |w| w.lowers[0] = w.dir.join("a.tree");
    MountHidesCode, "hides code of the image", |w| {
        let source = w.dir.join("a.tree");
        w.mount(&source, "/usr/bin", MountKind::Bind);
    };
    MountNamespaceJoined, "mount namespace /proc/1/ns/mnt", |w| {
        w.namespace = MountNamespace::Joined("/proc/1/ns/mnt".into());
    };
    MountNamespaceMissing, "no mount namespace", |w| w.namespace = MountNamespace::Inherited;
    NoLayers, "is the directory", |w| w.options = "bind".to_owned();
    NotHandedOver, "mounted by the caller", |w| w.handed_over = false;
    ProgramUnverified, "would be started from", |w| {
        w.args = vec!["/sbin/tini".to_owned()];
        let source = w.dir.join("a.tree/usr/bin/app");
        w.mount(&source, "/sbin/tini", MountKind::Bind);
    };
    UpperNotEmpty, "holds bin before the first start", |w| fs::create_dir(w.upper().join("bin")).unwrap();
    UpperOfOtherStack, "was written on stack 00", |w| {
        let work = w.upper().parent().unwrap().join("work");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(work, "trusted.hallmark.stack", b"00", flags).unwrap();
    };
}

#[test]
fn every_refusal_has_a_row_and_an_untouched_twin() {
    privately(|dir| {
        let world = World::new(dir);
        for (variant, fragment, tamper) in ROWS {
            assert_eq!(world.fresh().launch().unwrap().verdict.outcome, Outcome::Permitted);
            let mut tampered = world.fresh();
            tamper(&mut tampered);
            let message = if tampered.options == "bind" {
                let source = world.fresh().upper();
                let error =
                    tampered.launch_with(&bind(&source, "rw")).map(|l| l.verdict).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused);
                error.to_string()
            } else {
                tampered.refused()
            };
            assert!(message.starts_with("hallmark: refused: container c1"), "{variant}: {message}");
            assert!(message.contains(fragment), "{variant}: {message}");
            assert!(
                message.contains("exec control launch-only; to run it: "),
                "{variant}: {message}"
            );
        }
        assert!(world.fresh().launch().is_ok());
    });
}

#[test]
fn a_sealed_stack_is_mounted_from_its_descriptors() {
    privately(|dir| {
        let world = World::new(dir).fresh();
        let launched = world.launch().unwrap();
        assert!(launched.warnings.is_empty());
        assert_eq!(
            launched.hardening,
            Hardening::of(Enforcement::Enforce, ExecControl::LaunchOnly, Processes::Contained)
        );
        let verdict = serde_json::to_value(&launched.verdict).unwrap();
        assert_eq!(verdict["outcome"], "permitted");
        assert_eq!(verdict["evidence"], "rehashed");
        assert_eq!(verdict["execControl"], "launch-only");
        assert_eq!(verdict["image"], ImageDigest::of(b"manifest").to_string());
        assert_eq!(verdict["layers"].as_array().unwrap().len(), 2);

        // swapped after the judgement: what was judged is what is mounted
        sh(&format!("mount --bind {0}/b.tree {0}/a && mount -t tmpfs tmpfs {0}/b", dir.display()));
        let root = world.attach(&launched);
        assert_eq!(fs::read_to_string(root.join("etc/conf")).unwrap(), "conf");
        assert_eq!(fs::read_to_string(root.join("etc/other")).unwrap(), "upper");
        fs::write(root.join("etc/conf"), "changed").unwrap();
        assert_eq!(fs::read_to_string(world.upper().join("etc/conf")).unwrap(), "changed");
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = table.lines().find(|line| line.contains(root.to_str().unwrap())).unwrap();
        // what is the kernel's default is not shown
        assert!(ours.contains("redirect_dir=nofollow"), "{ours}");
        assert!(!ours.contains("metacopy=on") && !ours.contains("userxattr"), "{ours}");
    });
}

#[test]
fn a_stack_that_is_not_as_sealed_is_refused_with_the_layer() {
    privately(|dir| {
        let world = World::new(dir);
        let (a, b) = (world.lowers[1].clone(), world.lowers[0].clone());
        let digest = LayerDigest::of(b"a");
        world.flip("a.img", 50_000);
        let message = world.fresh().refused();
        assert!(message.contains(&format!("layer 1 ({digest}): root hash is ")), "{message}");
        assert!(
            message.contains(", the seal says ") && message.contains("; evidence rehashed"),
            "{message}"
        );
        world.flip("a.img", 50_000);
        world.fresh().launch().unwrap();

        let stacks: [(&str, Vec<PathBuf>); 4] = [
            ("order changed", vec![a.clone(), b.clone()]),
            ("one left out", vec![a.clone()]),
            ("one left out", vec![b.clone()]),
            ("one twice", vec![b.clone(), a.clone(), b.clone()]),
        ];
        for (why, lowers) in stacks {
            let message = World { lowers, ..world.fresh() }.refused();
            assert!(
                message.contains("no seal for this stack") || message.contains("root hash is"),
                "{why}: {message}"
            );
        }
        let (c, sealed) = layer(dir, "c", "touch c");
        claim(dir, &[sealed]);
        let message = World { lowers: vec![c, a], ..world.fresh() }.refused();
        assert!(message.contains("no seal for this stack of 2 layers"), "{message}");
        fs::remove_dir_all(dir.join("claims")).unwrap();
        assert!(world.fresh().refused().contains("no claim in"));
    });
}

#[test]
fn the_upper_stays_with_its_stack() {
    privately(|dir| {
        let world = World::new(dir).fresh();
        let first = world.launch().unwrap();
        let root = world.attach(&first);
        fs::write(root.join("written"), "by the container").unwrap();
        drop(first);
        sh(&format!("umount {}", root.display()));
        // the same container again, with what it wrote
        let second = world.launch().unwrap();
        assert_eq!(fs::read(world.attach(&second).join("written")).unwrap(), b"by the container");
        // looked into by somebody before the first start, with an overlay of their own
        let other = world.fresh();
        let (upper, lowers) = (other.upper(), &other.lowers);
        let work = upper.parent().unwrap().join("work");
        sh(&format!(
            "mount -t overlay overlay -o lowerdir={}:{},upperdir={},workdir={} /mnt && umount /mnt",
            lowers[0].display(),
            lowers[1].display(),
            upper.display(),
            work.display()
        ));
        other.launch().unwrap();
        let other = world.fresh();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(other.upper(), "trusted.overlay.opaque", b"y", flags).unwrap();
        assert!(other.refused().contains("trusted.overlay.opaque"));
    });
}

#[test]
fn a_view_of_one_layer_is_judged_and_read_only() {
    privately(|dir| {
        let world = World::new(dir);
        let (lower, sealed) = layer(dir, "c", "mkdir bin && touch bin/app");
        claim(dir, &[sealed]);
        let launched = world.launch_with(&bind(&lower, "ro")).unwrap();
        let root = world.attach(&launched);
        assert!(root.join("bin/app").is_file());
        assert!(fs::write(root.join("x"), "").is_err());
        let unsealed = world.launch_with(&bind(&world.lowers[0], "ro")).unwrap_err();
        assert!(unsealed.to_string().contains("no seal for this stack of 1 layers"), "{unsealed}");
    });
}

#[test]
fn a_root_that_is_a_verified_volume_is_judged_without_a_hand_over() {
    privately(|dir| {
        let world = World::new(dir);
        let (lower, sealed) = layer(dir, "c", "mkdir bin && touch bin/app");
        claim(dir, &[sealed]);
        let volume = World { handed_over: false, root: lower, ..world.fresh() };
        let launched = volume.launch().unwrap();
        assert_eq!(launched.verdict.outcome, Outcome::Permitted);
        let root = volume.attach(&launched);
        assert!(root.join("bin/app").is_file() && fs::write(root.join("x"), "").is_err());
        let unsealed = World { root: world.lowers[0].clone(), ..volume.clone() };
        assert!(unsealed.refused().contains("no seal for this stack of 1 layers"));
        let below = World { root: volume.root.join("bin"), ..volume.clone() };
        assert!(below.refused().contains("root"), "{}", below.refused());
        let directory = World { root: dir.join("a.tree"), ..volume };
        assert!(directory.refused().contains("mounted by the caller"));
    });
}

#[test]
fn audit_passes_and_writes_down_what_enforce_would_refuse() {
    privately(|dir| {
        let mut world = World::new(dir);
        world.config = dir.join("audit.toml");
        let clean = world.fresh().launch().unwrap();
        assert_eq!(clean.verdict.outcome, Outcome::Permitted);
        assert!(fs::read(dir.join("log/audit.log")).is_err());
        let none = Hardening::of(Enforcement::Audit, ExecControl::LaunchOnly, Processes::Host);
        assert_eq!(clean.hardening, none);

        let mut unsealed = world.fresh();
        unsealed.lowers.reverse();
        unsealed.hook("/opt/evil", &[]);
        let launched = unsealed.launch().unwrap();
        assert_eq!(launched.verdict.outcome, Outcome::Audit);
        assert_eq!(launched.warnings.len(), 2);
        assert_eq!(
            fs::read_to_string(unsealed.attach(&launched).join("etc/conf")).unwrap(),
            "conf"
        );
        let log = fs::read_to_string(dir.join("log/audit.log")).unwrap();
        assert_eq!(log.lines().count(), 2);
        assert!(log.contains("no seal for this stack") && log.contains("/opt/evil"), "{log}");

        let plain = World { handed_over: false, ..world.fresh() };
        let launched = plain.launch().unwrap();
        assert!(launched.rootfs.is_none());
        assert_eq!(launched.verdict.outcome, Outcome::NotJudged);
        let source = world.fresh().upper();
        let active = world.launch_with(&bind(&source, "rw")).unwrap();
        fs::write(world.attach(&active).join("x"), "").unwrap();
        assert!(source.join("x").is_file());
    });
}

#[test]
fn mounts_may_cover_data_and_not_code() {
    privately(|dir| {
        let world = World::new(dir);
        let (volume, sealed) = layer(dir, "v", "mkdir bin && touch bin/tool");
        claim(dir, &[sealed]);
        let file = dir.join("a.tree/etc/conf");
        let tree = dir.join("a.tree");
        let rows: [(&Path, &str, MountKind, Option<MountDecision>); 16] = [
            (&file, "/etc/conf", MountKind::Bind, Some(MountDecision::NoExec)),
            (&file, "/etc/hosts", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "/srv/www", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "/usr/bin/newdir", MountKind::Bind, Some(MountDecision::NoExec)),
            (&volume, "/usr/bin", MountKind::Bind, Some(MountDecision::Keep)),
            (Path::new("proc"), "/proc", MountKind::Other, Some(MountDecision::Keep)),
            (Path::new("/dev/vdb"), "/srv/www", MountKind::Filled, Some(MountDecision::NoExec)),
            (Path::new("overlay"), "/usr/bin", MountKind::Filled, None),
            (&file, "/etc/conf/below/a/file", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "usr/bin", MountKind::Bind, None),
            (&tree, "/usr", MountKind::Bind, None),
            (&tree, "/", MountKind::Bind, None),
            (&tree, "/bin", MountKind::Bind, None),
            (&file, "/bin/app", MountKind::Bind, None),
            (&file, "/srv/../usr/bin/app", MountKind::Bind, None),
            (Path::new("tmpfs"), "/usr/bin", MountKind::Other, None),
        ];
        for (source, destination, kind, expected) in rows {
            let mut world = world.fresh();
            world.mount(source, destination, kind);
            match expected {
                Some(decision) => {
                    let launched = world.launch().unwrap();
                    assert_eq!(launched.mounts, [decision], "{destination}");
                }
                None => assert!(world.refused().contains("hides code"), "{destination}"),
            }
        }
    });
}

#[test]
fn a_hook_runs_as_root_allows_it() {
    privately(|dir| {
        let world = World::new(dir);
        let mut allowed = world.fresh();
        allowed.hook("/usr/bin/allowed", &["allowed", "now"]);
        allowed.hooks[1].env =
            ["PATH=/evil", "LD_PRELOAD=/evil.so", "HOME=/root"].map(Into::into).into();
        let environments = allowed.launch().unwrap().hook_environments;
        assert_eq!(environments[1], Some(vec!["PATH=/sbin".to_owned(), "HOME=/root".to_owned()]));
        let mut other = world.fresh();
        other.hook("/usr/bin/allowed", &["allowed", "later"]);
        assert!(other.refused().contains("with arguments [\"allowed\", \"later\"]"));
        let mut inside = world.fresh();
        inside.hooks[0].runs = Runs::Inside;
        assert!(inside.refused().contains("and not in the container"));
        other.config = dir.join("audit.toml");
        assert_eq!(other.launch().unwrap().hook_environments, [None, None]);
    });
}

#[test]
fn a_program_below_the_working_directory_is_looked_for_there() {
    privately(|dir| {
        let world = World::new(dir);
        for program in ["./evil", "deep/../evil"] {
            let mut world = World { args: vec![program.to_owned()], ..world.fresh() };
            world.mount(&dir.join("a.tree"), "/srv", MountKind::Filled);
            let message = world.refused();
            assert!(message.contains("/srv/evil would be started from"), "{program}: {message}");
        }
    });
}

#[test]
fn a_container_among_the_hosts_processes_has_no_power_over_them() {
    let dropped = |processes| {
        Hardening::of(Enforcement::Enforce, ExecControl::LaunchOnly, processes).drop_capabilities
    };
    for capability in ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MAC_ADMIN"] {
        assert!(dropped(Processes::Host).contains(&capability));
    }
    assert!(!dropped(Processes::Contained).contains(&"CAP_SYS_ADMIN"));
}

#[test]
fn another_process_is_not_poked_where_the_kernel_controls_execution() {
    let of = |mode, exec_control| Hardening::of(mode, exec_control, Processes::Contained);
    for (mode, exec_control, memory, pokes) in [
        (Enforcement::Enforce, ExecControl::Ipe, Memory::DenyWriteExecute, Pokes::Denied),
        (Enforcement::Enforce, ExecControl::LaunchOnly, Memory::DenyWriteExecute, Pokes::AsAsked),
        (Enforcement::Audit, ExecControl::Ipe, Memory::AsAsked, Pokes::AsAsked),
    ] {
        let found = of(mode, exec_control);
        assert_eq!((found.memory, found.pokes), (memory, pokes), "{mode:?} {exec_control:?}");
    }
}

#[test]
fn an_image_that_containerd_mounted_is_a_volume_of_its_lowers() {
    privately(|dir| {
        let world = World::new(dir);
        let (bottom, v) = layer(dir, "v", "mkdir bin && touch bin/tool bin/other");
        let (top, w) = layer(dir, "w", "mkdir bin && printf new >bin/tool");
        claim(dir, &[v, w]);
        let shown = dir.display();
        let mounted = |name: &str, lowers: &str| {
            sh(&format!(
                "cd {shown} && mkdir {name} {name}.fs {name}.work && mount -t overlay overlay -o \
                 index=off,workdir={shown}/{name}.work,upperdir={shown}/{name}.fs,lowerdir={lowers} {name}"
            ));
            dir.join(name)
        };
        let sealed = format!("{}:{}", top.display(), bottom.display());
        let volume = mounted("volume", &sealed);
        let mut judged = world.fresh();
        judged.mount(&volume, "/usr/bin", MountKind::Bind);
        let launched = judged.launch().unwrap();
        assert_eq!(launched.mounts, [MountDecision::Keep]);
        // not containerd's overlay: one that nobody writes to
        fs::write(volume.join("bin/late"), "").unwrap();
        let kept = Launch {
            rootfs: launched.volumes.into_iter().next().unwrap(),
            ..world.fresh().launch().unwrap()
        };
        let at = judged.attach(&kept);
        assert_eq!(fs::read_to_string(at.join("bin/tool")).unwrap(), "new");
        assert!(fs::metadata(at.join("bin/other")).is_ok());
        assert!(fs::metadata(at.join("bin/late")).is_err());
        assert!(fs::write(at.join("bin/tool"), "").is_err());

        let swapped = mounted("swapped", &format!("{}:{}", bottom.display(), top.display()));
        let beneath = mounted("beneath", &sealed);
        sh(&format!("mount -t tmpfs tmpfs {}/bin", beneath.display()));
        let writable = mounted("writable", &sealed);
        // written to, other lowers, something mounted there, a part of it, to be written to
        for (source, access) in [
            (volume, Access::ReadOnly),
            (swapped, Access::ReadOnly),
            (beneath, Access::ReadOnly),
            (writable.join("bin"), Access::ReadOnly),
            (writable, Access::ReadWrite),
        ] {
            let mut world = world.fresh();
            world.mount(&source, "/srv/www", MountKind::Bind);
            world.mounts[0].access = access;
            let launched = world.launch().unwrap();
            assert_eq!(launched.mounts, [MountDecision::NoExec], "{}", source.display());
            assert!(launched.volumes[0].is_none());
        }
    });
}

#[test]
fn a_verified_volume_is_bound_as_it_was_judged() {
    privately(|dir| {
        let world = World::new(dir);
        let (volume, sealed) = layer(dir, "v", "mkdir bin && touch bin/tool");
        claim(dir, &[sealed]);
        let mut world = world.fresh();
        world.mount(&volume, "/usr/bin", MountKind::Bind);
        world.mount(&dir.join("a.tree"), "/srv/www", MountKind::Bind);
        let launched = world.launch().unwrap();
        let judged = fs::metadata(&volume).unwrap();
        // swapped after the judgement, before the mount
        sh(&format!("mount --bind {0}/b.tree {0}/v", dir.display()));
        let [Some(kept), None] = launched.volumes.as_slice() else {
            panic!("{:?}", launched.volumes);
        };
        let kept = rustix::fs::fstat(kept).unwrap();
        assert_eq!((kept.st_dev, kept.st_ino), (judged.dev(), judged.ino()));
    });
}

#[test]
fn a_launch_that_was_refused_is_no_first_start() {
    privately(|dir| {
        let world = World::new(dir).fresh();
        let mut refused = world.clone();
        refused.hook("/opt/evil", &[]);
        assert!(refused.refused().contains("/opt/evil"));
        fs::write(world.upper().join("planted"), "").unwrap();
        assert!(world.refused().contains("holds planted before the first start"));
        fs::remove_file(world.upper().join("planted")).unwrap();
        world.launch().unwrap();
    });
}
