//! The images of the tests: two from Debian packages, two small ones, built once.

pub(crate) mod attacks;
pub(crate) mod busybox;
pub(crate) mod cri;
pub(crate) mod layers;
pub(crate) mod oci;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache::{Cache, fingerprint, remove_tree};
use crate::debian::{self, Variant};
use layers::Hand;
use oci::{Image, Layer};

/// Two layers: a Debian base, and python3.
pub(crate) const PYTHON: &str = "example.test/python:1";
/// Ten layers, an empty one twice: a Debian base, nginx, and what a site adds.
pub(crate) const NGINX: &str = "example.test/nginx:1";
/// Three small layers around a static busybox; `ONE` and `TWO` share none.
pub(crate) const ONE: &str = "example.test/one:1";
pub(crate) const TWO: &str = "example.test/two:1";

/// Three small layers, and a configuration that says everything it can.
pub(crate) const SETTINGS: &str = "example.test/settings:1";

/// Changed when the recipes below change, so that the cache builds anew.
const RECIPE: &str = "4";

const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "chmod",
    "cp",
    "date",
    "dd",
    "echo",
    "env",
    "false",
    "grep",
    "hostname",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mount",
    "mv",
    "nc",
    "ping",
    "ps",
    "pwd",
    "rm",
    "seq",
    "sha256sum",
    "sleep",
    "stat",
    "stty",
    "tail",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "vi",
    "wc",
    "wget",
];

/// The archives, by image.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    dir: PathBuf,
}

impl Images {
    /// Builds what is missing.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let entry = format!("images-{}", fingerprint(&[RECIPE, debian::SUITE]));
        let dir = cache.once(&entry, |dir| build(cache, dir))?;
        Ok(Self { dir })
    }

    /// The images in a directory that was copied.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The archive of an image.
    pub(crate) fn archive(&self, image: &str) -> PathBuf {
        self.dir.join(file_name(image))
    }

    /// Every image.
    pub(crate) fn names() -> [&'static str; 4] {
        [ONE, TWO, PYTHON, NGINX]
    }
}

/// `one.tar` of `example.test/one:1`.
pub(crate) fn file_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    format!("{}.tar", last.split(':').next().unwrap_or(last))
}

fn build(cache: &Cache, dir: &Path) -> Result<()> {
    let roots = cache.root().join("images-roots");
    remove_tree(&roots)?;
    fs::create_dir_all(&roots)?;
    let tar = |name: &str, packages: &[&str]| -> Result<PathBuf> {
        let path = roots.join(format!("{name}.tar"));
        let log = cache.log(&format!("image-{name}"));
        debian::bootstrap(Variant::Essential, packages, &path, &log)?;
        Ok(path)
    };
    let base = tar("base", &[])?;
    let python = tar("python", &["python3"])?;
    let nginx = tar("nginx", &["nginx-light", "libcap2-bin"])?;
    let bottom = Layer::from_tar(&layers::whole(&base)?)?;
    let out = |image: &Image| image.write(&dir.join(file_name(&image.name)));
    out(&Image {
        name: PYTHON.into(),
        layers: vec![bottom.clone(), Layer::from_tar(&layers::difference(&base, &python)?)?],
        run: settings(&["python3", "-c", "print('hello from a sealed python')"]),
    })?;
    let mut stack = vec![bottom, Layer::from_tar(&layers::difference(&base, &nginx)?)?];
    stack.extend(site()?);
    out(&Image { name: NGINX.into(), layers: stack, run: settings(&["/start"]) })?;
    out(&small(ONE, "one")?)?;
    out(&small(TWO, "two")?)?;
    remove_tree(&roots)
}

fn settings(command: &[&str]) -> Value {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    json!({"Env": [path], "Cmd": command, "WorkingDir": "/"})
}

/// `SETTINGS`: an image that says itself how it is to be run.
pub(crate) fn settings_image() -> Result<Image> {
    let mut image = small(SETTINGS, "settings")?;
    let say = "echo $(id -u) $(pwd) $0; echo from=$FROM";
    image.run = json!({
        "Entrypoint": ["/bin/sh", "-c", say], "Cmd": ["said"], "User": "1000:7",
        "WorkingDir": "/srv", "Env": ["PATH=/bin", "FROM=image"], "StopSignal": "SIGUSR2",
        "Volumes": {"/srv": {}}, "Labels": {"k": "v"}, "ExposedPorts": {"80/tcp": {}},
    });
    Ok(image)
}

/// The eight layers above nginx, with every kind of entry that a layer can hold.
fn site() -> Result<Vec<Layer>> {
    let empty = || Hand::new().finish();
    let mut conf = Hand::new();
    conf.file(
        "etc/nginx/nginx.conf",
        0o644,
        b"daemon off; pid /run/nginx.pid; error_log stderr; user www-data;\n\
          events {}\nhttp { access_log off; server { listen 8080; root /srv; } }\n",
    )?;
    let mut first = Hand::new();
    first.directory("srv", 0o755)?.file("srv/index.html", 0o644, b"first\n")?;
    first.file("srv/gone.html", 0o644, b"to be removed\n")?;
    first.directory("srv/old", 0o755)?.file("srv/old/page.html", 0o644, b"old\n")?;
    let mut second = Hand::new();
    second.file("srv/index.html", 0o644, b"hello from a sealed nginx\n")?;
    second.file("srv/.wh.gone.html", 0o644, b"")?;
    let mut opaque = Hand::new();
    opaque.directory("srv/old", 0o750)?.file("srv/old/.wh..wh..opq", 0o644, b"")?;
    opaque.file("srv/old/new.html", 0o644, b"new\n")?;
    let mut odd = Hand::new();
    odd.file_with("srv/owned", b"owned\n", (33, 33), ("user.origin", b"test"))?;
    odd.hard_link("srv/linked", "srv/owned", 0o644, (33, 33))?
        .symlink("srv/pointer", "index.html")?;
    odd.file("srv/sticky", 0o4711, b"#!/bin/sh\n")?;
    let mut start = Hand::new();
    start.file("start", 0o755, b"#!/bin/sh\nexec nginx\n")?;
    [empty()?, conf.finish()?, first.finish()?, empty()?, second.finish()?]
        .into_iter()
        .chain([opaque.finish()?, odd.finish()?, start.finish()?])
        .map(|tar| Layer::from_tar(&tar))
        .collect()
}

/// Three layers; each carries the image's own name, so that no two images share one.
pub(crate) fn small(image: &str, name: &str) -> Result<Image> {
    let busybox = fs::read("/bin/busybox").context("read /bin/busybox")?;
    let mut bottom = Hand::new();
    for dir in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
        bottom.directory(dir, if dir == "tmp" { 0o1777 } else { 0o755 })?;
    }
    bottom.file("bin/busybox", 0o755, &busybox)?;
    for applet in APPLETS {
        bottom.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    bottom.file("etc/bottom", 0o644, name.as_bytes())?;
    let mut middle = Hand::new();
    middle.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    middle.file("etc/group", 0o644, b"root:x:0:\n")?.file("etc/middle", 0o644, name.as_bytes())?;
    let mut top = Hand::new();
    let say = format!("#!/bin/sh\necho hello from {name}\n");
    top.file("bin/hello", 0o755, say.as_bytes())?.file("etc/top", 0o644, name.as_bytes())?;
    // blocks of its own, with no inode or directory in them
    top.directory("srv", 0o755)?.file(
        "srv/data",
        0o644,
        format!("{name} data\n").repeat(8192).as_bytes(),
    )?;
    let tars = [bottom.finish()?, middle.finish()?, top.finish()?];
    Ok(Image {
        name: image.into(),
        layers: tars.iter().map(|tar| Layer::from_tar(tar)).collect::<Result<_>>()?,
        run: settings(&["/bin/hello"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_site_has_eight_layers_and_repeats_the_empty_one() {
        let site = site().unwrap();
        assert_eq!(site.len(), 8);
        assert_eq!(site[0].blob, site[3].blob);
    }
}
