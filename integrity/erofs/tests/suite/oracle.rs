//! What the reference tools say of an image.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek as _, Write as _, copy};
use std::path::Path;
use std::process::{Command, Output};

use hallmark_erofs::PackedLayer;
use tempfile::NamedTempFile;

/// Runs a program and gives back what it printed; fails if it failed.
pub(crate) fn run(program: &str, arguments: &[&OsStr]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Whether a program can be run, with a line that says so if not.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--help").output().is_ok();
    if !found {
        skipped(program);
    }
    found
}

/// Says on the terminal, past what the test harness captures, that something was not tested.
pub(crate) fn skipped(need: &str) {
    let line = format!("skipped: needs {need}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Copies an image to a file that has a path.
pub(crate) fn with_path(image: &mut File) -> NamedTempFile {
    let mut named = NamedTempFile::new().unwrap();
    image.rewind().unwrap();
    copy(image, &mut named).unwrap();
    named
}

/// `fsck.erofs` finds nothing wrong, and `veritysetup` finds the same root hash.
pub(crate) fn accept(packed: &PackedLayer, image: &Path) {
    if has("fsck.erofs") {
        let output = run("fsck.erofs", &["--extract".as_ref(), image.as_ref()]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("<E>") && !said.contains("<W>"), "{said}");
    }
    if has("veritysetup") {
        let offset = format!("--hash-offset={}", packed.data_blocks().0 * 4096);
        let root = packed.root_hash().to_string();
        let image = image.as_os_str();
        run("veritysetup", &["verify".as_ref(), image, image, root.as_ref(), offset.as_ref()]);
        let output = run("veritysetup", &["dump".as_ref(), image, offset.as_ref()]);
        let dump = String::from_utf8_lossy(&output.stdout);
        let says = |what: &str, value: &str| {
            dump.lines().any(|line| line.starts_with(what) && line.ends_with(value))
        };
        assert!(says("Salt:", &packed.salt().to_string()), "{dump}");
        assert!(says("Data blocks:", &packed.data_blocks().to_string()), "{dump}");
        assert!(says("Hash algorithm:", "sha256"), "{dump}");
    }
}
