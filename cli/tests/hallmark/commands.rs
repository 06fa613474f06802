//! The `hallmark` command as people and pipelines use it: exit code, standard output, standard error, files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::{Image, blob_name};
use serde_json::Value;
use tempfile::TempDir;

/// What a command said and how it ended.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn hallmark(directory: &Path, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_hallmark"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let said = Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    if said.code == 0 {
        assert_eq!(said.err, "", "{arguments:?}");
    } else if said.code != 2 || said.err.starts_with("hallmark: ") {
        assert_eq!(said.err.lines().count(), 1, "{arguments:?}: one line: {}", said.err);
    }
    said
}

#[track_caller]
fn done(directory: &Path, arguments: &[&str]) -> String {
    let said = hallmark(directory, arguments);
    assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
    said.out
}

#[track_caller]
fn ends(directory: &Path, arguments: &[&str], code: i32, words: &[&str]) {
    let said = hallmark(directory, arguments);
    assert_eq!(said.code, code, "{arguments:?}: {}{}", said.out, said.err);
    for word in words {
        assert!(said.err.contains(word), "{arguments:?}: {word:?} in {}", said.err);
    }
}

/// A directory with two pairs of keys: `a` signed by a CA, `b` on its own.
fn workplace() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    done(directory.path(), &["keygen", "--out", "a", "--cn", "a", "--algorithm", "p256", "--ca"]);
    done(directory.path(), &["keygen", "--out", "b", "--cn", "b", "--algorithm", "p256"]);
    directory
}

const SEAL: [&str; 5] = ["seal", "--key", "a/key.pem", "--cert", "a/cert.pem"];
const VERIFY: [&str; 3] = ["verify", "--keys", "a/ca.pem"];

fn with<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, more].concat()
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[test]
fn an_archive_is_sealed_and_verified_and_a_changed_one_refused() {
    let place = workplace();
    let path = place.path();
    Image::new().write_archive(&path.join("app.tar"));
    fs::set_permissions(path.join("app.tar"), fs::Permissions::from_mode(0o640)).unwrap();
    ends(path, &with(&VERIFY, &["app.tar"]), 1, &["found no seal", "hallmark seal"]);

    let said = done(
        path,
        &with(&SEAL, &["app.tar", "--serial", "7", "--pin", "entrypoint", "--pin", "env"]),
    );
    assert_eq!(said.lines().filter(|line| line.starts_with("layer ")).count(), 4, "{said}");
    let said = done(path, &with(&VERIFY, &["app.tar"]));
    assert!(said.starts_with("verified image sha256:"), "{said}");
    for words in ["serial 7", "for registry.example/app\n", "signed by CN=a (sha256:", " signed\n"]
    {
        assert!(said.contains(words), "{words:?} in {said}");
    }
    let mode = fs::metadata(path.join("app.tar")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    // one byte of one layer
    let sealed = fs::read(path.join("app.tar")).unwrap();
    let image = Image::new();
    let layer = &image.files[&blob_name(&image.layers[2])];
    let at = sealed.windows(layer.len()).position(|window| window == layer.as_slice()).unwrap();
    let mut changed = sealed.clone();
    changed[at + 600] ^= 1;
    fs::write(path.join("changed.tar"), &changed).unwrap();
    ends(path, &with(&VERIFY, &["changed.tar"]), 1, &["layer 2", "found sha256:", "expected"]);
    ends(path, &with(&SEAL, &["changed.tar"]), 3, &["layer 2"]);
    assert_eq!(fs::read(path.join("changed.tar")).unwrap(), changed);

    // and the good one still is
    done(path, &with(&VERIFY, &["app.tar"]));
    assert_eq!(files(path).len(), 8, "{:?}", files(path));
}

#[test]
fn what_is_not_sealed_by_a_trusted_key_is_refused() {
    let place = workplace();
    let path = place.path();
    Image::new().write_layout(&path.join("app"));
    done(path, &["seal", "app", "--key", "b/key.pem", "--cert", "b/cert.pem"]);
    ends(path, &with(&VERIFY, &["app"]), 1, &["CN=b", "not in the keyring"]);
    // the seal of another key beside it does no harm
    done(path, &with(&SEAL, &["app"]));
    done(path, &with(&VERIFY, &["app"]));
    done(path, &["verify", "app", "--keys", "b/cert.pem"]);

    fs::write(path.join("none.pem"), "").unwrap();
    ends(path, &["verify", "app", "--keys", "none.pem"], 3, &["no certificate"]);
    let long_ago = ["app", "--not-after", "2020-01-01T00:00:00Z"];
    ends(
        path,
        &with(&SEAL, &long_ago),
        2,
        &["--not-after 2020-01-01T00:00:00Z", "expected a time after"],
    );
}

#[test]
fn revoked_seals_and_low_serials_are_refused() {
    let place = workplace();
    let path = place.path();
    Image::new().write_layout(&path.join("app"));
    let said = done(path, &with(&SEAL, &["app", "--serial", "3"]));
    let seal = said.lines().last().unwrap().strip_prefix("sealed ").unwrap();
    for (list, words) in [
        (format!("seals = [\"{seal}\"]"), Some("revocation list")),
        (format!("images = [\"{}\"]", Image::new().manifest), Some("revocation list")),
        ("[[serials]]\nrepository = \"registry.example/**\"\nminimum = 4".into(), Some("serial 3")),
        ("[[serials]]\nrepository = \"registry.example/**\"\nminimum = 3".into(), None),
    ] {
        fs::write(path.join("revoked.toml"), format!("version = 1\n{list}\n")).unwrap();
        let command = with(&VERIFY, &["app", "--revocations", "revoked.toml"]);
        match words {
            Some(words) => ends(path, &command, 1, &[words]),
            None => drop(done(path, &command)),
        }
    }
}

#[test]
fn an_image_of_other_layers_under_the_same_seal_is_refused() {
    let place = workplace();
    let path = place.path();
    Image::new().write_layout(&path.join("app"));
    done(path, &with(&SEAL, &["app"]));
    let index = |image: &Path| -> Value {
        serde_json::from_slice(&fs::read(image.join("index.json")).unwrap()).unwrap()
    };
    let referrer = index(&path.join("app"))["manifests"][1].clone();
    // the same layers in another order, with the referrer of the first image in its index
    let other = Image::reordered();
    assert_ne!(other.manifest, Image::new().manifest);
    other.write_layout(&path.join("app"));
    let mut merged = index(&path.join("app"));
    merged["manifests"].as_array_mut().unwrap().push(referrer);
    fs::write(path.join("app/index.json"), serde_json::to_vec(&merged).unwrap()).unwrap();
    ends(path, &with(&VERIFY, &["app"]), 1, &["found no seal"]);
    // a claim dropped by hand into the claims directory is filed by stack and is for the other image
    done(path, &with(&SEAL, &["app", "--claims-dir", "claims"]));
    let claim = files(&path.join("claims")).pop_first().unwrap();
    Image::new().write_layout(&path.join("first"));
    done(path, &with(&SEAL, &["first", "--claims-dir", "claims"]));
    let first = files(&path.join("claims")).into_iter().find(|file| *file != claim).unwrap();
    fs::copy(&claim, &first).unwrap();
    Image::new().write_layout(&path.join("bare"));
    let command = with(&VERIFY, &["bare", "--claims-dir", "claims"]);
    ends(path, &command, 1, &["is for image", other.manifest.as_str()]);
}

#[test]
fn claims_are_kept_by_stack_and_found_again() {
    let place = workplace();
    let path = place.path();
    let image = Image::new();
    image.write_layout(&path.join("app"));
    image.write_layout(&path.join("bare"));
    done(path, &with(&SEAL, &["app", "--claims-dir", "claims"]));
    done(path, &with(&VERIFY, &["bare", "--claims-dir", "claims"]));
    ends(path, &with(&VERIFY, &["bare"]), 1, &["found no seal"]);
    let file = files(&path.join("claims")).pop_first().unwrap();
    assert_eq!(files(&path.join("claims")).len(), 1);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let name = file.file_stem().unwrap().to_str().unwrap();
    assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");

    done(
        path,
        &["seal", "app", "--key", "b/key.pem", "--cert", "b/cert.pem", "--claims-dir", "claims"],
    );
    let claims: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(claims["claims"].as_array().unwrap().len(), 2);

    fs::write(&file, "{}").unwrap();
    let command = with(&SEAL, &["app", "--claims-dir", "claims"]);
    ends(path, &command, 3, &[name, "move the file away"]);
    assert_eq!(fs::read(&file).unwrap(), b"{}", "not ours to replace");
}

#[test]
fn a_layout_keeps_what_it_holds_and_a_platform_is_picked() {
    let place = workplace();
    let path = place.path();
    Image::new().write_layout(&path.join("app"));
    let before = files(&path.join("app"));
    done(path, &with(&SEAL, &["app"]));
    let index: Value =
        serde_json::from_slice(&fs::read(path.join("app/index.json")).unwrap()).unwrap();
    assert_eq!(index["kept"], "as it is");
    let added = &index["manifests"][1];
    assert_eq!(added["artifactType"], "application/vnd.hallmark.seal.v1");
    assert!(files(&path.join("app")).is_superset(&before));

    Image::multi_platform().write_archive(&path.join("multi.tar"));
    let said = done(path, &with(&SEAL, &["multi.tar"]));
    assert!(said.starts_with(&format!("image {}\n", Image::new().manifest)), "{said}");
    done(path, &with(&VERIFY, &["multi.tar"]));
    let arm = ["multi.tar", "--platform", "linux/arm64"];
    ends(path, &with(&VERIFY, &arm), 1, &["found no seal"]);
    done(path, &with(&SEAL, &arm));
    done(path, &with(&VERIFY, &arm));
    done(path, &with(&VERIFY, &["multi.tar"]));
    let riscv = ["multi.tar", "--platform", "linux/riscv64"];
    ends(
        path,
        &with(&SEAL, &riscv),
        3,
        &["linux/arm64", "linux/amd64", "linux/riscv64", "--platform"],
    );
    ends(path, &with(&SEAL, &["multi.tar", "--platform", "linux"]), 2, &["os/architecture"]);
}

#[test]
fn several_images_are_told_apart_by_name() {
    let place = workplace();
    let path = place.path();
    let mut both = Image::new();
    let second = Image::reordered();
    let index =
        |image: &Image| -> Value { serde_json::from_slice(&image.files["index.json"]).unwrap() };
    let mut merged = index(&both);
    let mut entry = index(&second)["manifests"][0].clone();
    entry["annotations"]["io.containerd.image.name"] = "registry.example/other:1".into();
    merged["manifests"].as_array_mut().unwrap().push(entry);
    both.files.extend(second.files);
    both.set_index(&merged);
    both.write_archive(&path.join("both.tar"));
    let names = ["registry.example/app:1", "registry.example/other:1", "--name"];
    ends(path, &with(&SEAL, &["both.tar"]), 3, &names);
    for name in [names[0], second.manifest.as_str()] {
        done(path, &with(&SEAL, &["both.tar", "--name", name]));
        done(path, &with(&VERIFY, &["both.tar", "--name", name]));
    }
    ends(path, &with(&SEAL, &["both.tar", "--name", "nobody"]), 3, &["\"nobody\""]);
}

#[test]
fn broken_images_are_refused_and_leave_nothing() {
    let place = workplace();
    let path = place.path();
    let good = Image::new();
    let manifest = blob_name(&good.manifest);
    let without = |name: &str| {
        let mut image = good.clone();
        image.files.remove(name);
        image
    };
    let mut changed_manifest = good.clone();
    changed_manifest.files.get_mut(&manifest).unwrap().push(b' ');
    let mut other_config = good.clone();
    let document = String::from_utf8(good.files[&manifest].clone()).unwrap();
    let layers =
        document.replacen("application/vnd.oci.image.layer.v1.tar\"", "application/x-shell\"", 1);
    let (digest, size) = other_config.add_blob(layers.as_bytes());
    other_config.set_index(&serde_json::json!({"manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}]}));
    for (what, image, words) in [
        ("no index", without("index.json"), "index.json"),
        ("no manifest", without(&manifest), &manifest[..]),
        ("no layer", without(&blob_name(&good.layers[0])), &good.layers[0][7..]),
        ("manifest changed", changed_manifest, "expected sha256:"),
        ("media type", other_config, "application/x-shell"),
    ] {
        let directory = path.join("broken");
        image.write_layout(&directory);
        image.write_archive(&path.join("broken.tar"));
        let before = files(path);
        for place in ["broken", "broken.tar"] {
            ends(path, &with(&SEAL, &[place]), 3, &[words]);
        }
        assert_eq!(files(path), before, "{what}");
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::write(path.join("text.tar"), "no archive at all").unwrap();
    fs::write(path.join("image.tgz"), [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]).unwrap();
    ends(path, &with(&SEAL, &["text.tar"]), 3, &["text.tar"]);
    ends(path, &with(&SEAL, &["image.tgz"]), 3, &["compressed", "gunzip"]);
    ends(path, &with(&SEAL, &["nowhere.tar"]), 3, &["nowhere.tar"]);
    ends(
        path,
        &with(&SEAL, &["containerd://x", "--address", "nowhere.sock"]),
        3,
        &["nowhere.sock", "--address"],
    );
    ends(path, &with(&SEAL, &["containerd://"]), 2, &["NAME"]);
    ends(path, &["seal", "text.tar"], 2, &["--key"]);
}

#[test]
fn keygen_replaces_nothing_and_openssl_agrees() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path();
    let said = done(path, &["keygen", "--out", "rsa", "--cn", "a, b=c \"d\"", "--ca"]);
    assert_eq!(said, "rsa/key.pem\nrsa/cert.pem\nrsa/ca-key.pem\nrsa/ca.pem\n");
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("rsa/key.pem"), mode("rsa/ca-key.pem")), (0o600, 0o600));
    let key = fs::read(path.join("rsa/key.pem")).unwrap();
    ends(path, &["keygen", "--out", "rsa"], 3, &["rsa/key.pem"]);
    assert_eq!(fs::read(path.join("rsa/key.pem")).unwrap(), key);
    // a later file in the way: the earlier ones go again
    fs::create_dir(path.join("half")).unwrap();
    fs::write(path.join("half/cert.pem"), "mine").unwrap();
    ends(path, &["keygen", "--out", "half", "--algorithm", "p256"], 3, &["half/cert.pem"]);
    assert_eq!(files(&path.join("half")).len(), 1);
    ends(path, &["keygen", "--out", "x", "--algorithm", "p256", "--cn", ""], 2, &["--cn"]);
    done(path, &["keygen", "--out", "ec", "--algorithm", "p256"]);

    for arguments in [
        &["verify", "-x509_strict", "-CAfile", "rsa/ca.pem", "rsa/cert.pem"][..],
        &["verify", "-CAfile", "ec/cert.pem", "-partial_chain", "ec/cert.pem"],
        &["pkey", "-check", "-noout", "-in", "rsa/key.pem"],
        &["pkey", "-check", "-noout", "-in", "ec/key.pem"],
    ] {
        let Ok(output) = Command::new("openssl").args(arguments).current_dir(path).output() else {
            println!("skipped: needs openssl");
            return;
        };
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-subject", "-nameopt", "RFC2253", "-ext"])
        .args([
            "subjectKeyIdentifier,authorityKeyIdentifier,keyUsage,basicConstraints",
            "-in",
            "rsa/cert.pem",
        ])
        .current_dir(path)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for words in
        ["CN=a\\, b=c \\\"d\\\"", "Digital Signature", "CA:FALSE", "Subject Key Identifier"]
    {
        assert!(shown.contains(words), "{words:?} in {shown}");
    }
}

#[test]
fn policies_are_checked_signed_and_shown() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path();
    done(path, &["keygen", "--out", "a"]);
    done(path, &["keygen", "--out", "b", "--algorithm", "p256"]);
    let text = "policy_name=node policy_version=1.2.3\n# ours\nDEFAULT action=ALLOW\n\
                DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n";
    fs::write(path.join("node.pol"), text).unwrap();
    let said = done(path, &["policy", "check", "node.pol"]);
    assert!(
        said.contains("policy node version 1.2.3") && said.contains("unmatched EXECUTE DENY"),
        "{said}"
    );
    let sign = |policy| ["policy", "sign", policy, "--key", "a/key.pem", "--cert", "a/cert.pem"];
    assert_eq!(done(path, &sign("node.pol")), "node.p7b\n");
    assert_eq!(done(path, &["policy", "show", "node.p7b", "--keys", "a/cert.pem"]), text);
    ends(path, &["policy", "show", "node.p7b", "--keys", "b/cert.pem"], 1, &["keyring"]);
    let mut der = fs::read(path.join("node.p7b")).unwrap();
    let at = der.windows(5).position(|bytes| bytes == b"1.2.3").unwrap();
    der[at] = b'2';
    fs::write(path.join("changed.p7b"), der).unwrap();
    ends(path, &["policy", "show", "changed.p7b", "--keys", "a/cert.pem"], 1, &["signature"]);

    fs::write(
        path.join("open.pol"),
        text.replace("op=EXECUTE action=DENY", "op=EXECUTE action=ALLOW"),
    )
    .unwrap();
    ends(
        path,
        &["policy", "check", "open.pol"],
        1,
        &["unverified code", "action=ALLOW", "expected"],
    );
    fs::write(path.join("bad.pol"), text.replace("DEFAULT", "DEFAUTL")).unwrap();
    ends(path, &["policy", "check", "bad.pol"], 1, &["line 3"]);
    ends(path, &sign("bad.pol"), 1, &["line 3"]);
    fs::write(path.join("long.pol"), format!("{text}{}", "# more\n".repeat(10_000))).unwrap();
    ends(path, &sign("long.pol"), 3, &["65535 bytes"]);
    assert!(!path.join("bad.p7b").is_file() && !path.join("long.p7b").is_file());
}

#[test]
fn posture_says_what_is_missing() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path();
    fs::write(path.join("broken.toml"), "[gate]\nmodus = \"audit\"\n").unwrap();
    fs::set_permissions(path.join("broken.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    let broken = hallmark(path, &["posture", "--config", "broken.toml"]);
    assert_eq!(broken.code, 1, "{}", broken.err);
    for line in ["device-mapper", "best evidence", "exec control"] {
        assert!(broken.out.contains(line), "{line:?} in {}", broken.out);
    }
    // a configuration that this machine can meet: audit, rehashed, launch-only, with keys and a signed policy
    done(path, &["keygen", "--out", "keys"]);
    let policy = "policy_name=node policy_version=0.0.1\nDEFAULT action=ALLOW\nDEFAULT op=EXECUTE action=DENY\n";
    fs::write(path.join("node.pol"), policy).unwrap();
    done(path, &["policy", "sign", "node.pol", "--key", "keys/key.pem", "--cert", "keys/cert.pem"]);
    let config = |evidence: &str, policy: &str| {
        let root = path.display();
        format!(
            "[gate]\nmode = \"audit\"\nminimum_evidence = \"{evidence}\"\nexec_control = \"launch-only\"\n\
             [trust]\nkeys = \"{root}/keys/cert.pem\"\npolicy = \"{root}/{policy}\"\n"
        )
    };
    let posture = |text: String| {
        fs::write(path.join("config.toml"), text).unwrap();
        hallmark(path, &["posture", "--config", "config.toml"])
    };
    let good = posture(config("rehashed", "node.p7b"));
    if good.err.contains("owned by") {
        println!("skipped: needs root, whose files a node trusts");
        return;
    }
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    assert!(good.out.contains("mode") && good.out.contains("audit"), "{}", good.out);
    let none = posture(config("rehashed", "none.p7b"));
    assert!(
        none.code == 0 && none.out.contains("active in the kernel") || none.code == 1,
        "{}",
        none.err
    );
    if fs::metadata("/dev/mapper/control").is_err() {
        let weak = posture(config("dm-verity+signature", "node.p7b"));
        assert_eq!(weak.code, 1);
        assert!(
            weak.err.contains("found at best") && weak.err.contains("dm-verity+signature"),
            "{}",
            weak.err
        );
    }
}
