//! The images of critest, under the names that it pulls them by.
//!
//! Nobody's registry is asked: each is made here after the recipe that its publisher keeps
//! (`images/` of cri-tools, `test/images` of Kubernetes), from busybox and Debian's nginx.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::busybox::Busybox;
use super::layers::Hand;
use super::oci::{Image, Layer};
use super::{Images, NGINX};
use crate::cache::{Cache, fingerprint};
use crate::run::Run;

/// The first container of every pod.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// What most specs run.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// The one that a spec pulls by its digest.
pub(crate) const BY_DIGEST: &str = "gcr.io/k8s-staging-cri-tools/test-image-digest:latest";

const KUBERNETES: &str = "registry.k8s.io/e2e-test-images";
const CRI_TOOLS: &str = "gcr.io/k8s-staging-cri-tools";
const PAUSE_SOURCE: &str = include_str!("pause.c");
const PRIVILEGES_SOURCE: &str = include_str!("nonewprivs.c");

/// Changed when the recipes below change.
const RECIPE: &str = "2";

/// A directory with one OCI archive for each, built if it is missing.
pub(crate) fn build(cache: &Cache, images: &Images) -> Result<PathBuf> {
    let busybox = Busybox::build(cache)?;
    let nginx = Image::read(&images.archive(NGINX))?;
    let base = nginx.layers.get(..2).context("nginx has no base of two layers")?;
    let ids: Vec<&str> = base.iter().map(|layer| layer.diff_id.as_str()).collect();
    let parts = [&[RECIPE, PAUSE_SOURCE, PRIVILEGES_SOURCE], &ids[..]].concat();
    cache.once(&format!("cri-images-{}", fingerprint(&parts)), |dir| {
        for image in all(&busybox, base, dir)? {
            image.write(&dir.join(file_name(&image.name)))?;
        }
        Ok(())
    })
}

/// `registry.k8s.io_pause_3.10.tar`
pub(crate) fn file_name(image: &str) -> String {
    format!("{}.tar", image.replace(['/', ':'], "_"))
}

fn all(busybox: &Busybox, nginx: &[Layer], dir: &Path) -> Result<Vec<Image>> {
    let one = [Layer::from_tar(&shell(busybox)?)?];
    let [shell] = &one;
    let image =
        |name: String, layers: &[Layer], run: Value| Image { name, layers: layers.into(), run };
    let sh = || json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]});
    let mut all = vec![
        image(BUSYBOX.into(), &one, sh()),
        web_server(format!("{KUBERNETES}/nginx:1.14-2"), nginx, busybox, 80)?,
        web_server(format!("{CRI_TOOLS}/hostnet-nginx-amd64:latest"), nginx, busybox, 12003)?,
        httpd(shell)?,
        privileges(dir)?,
        predefined_group(shell)?,
    ];
    let pause = Layer::from_tar(&program("pause", PAUSE_SOURCE, 0o755, dir)?)?;
    for (name, version) in [(PAUSE, "3.10"), ("registry.k8s.io/pause:3.9", "3.9")] {
        // two versions, hence two images: a spec removes one while pods run the other
        let run = json!({"Entrypoint": ["/pause"], "User": "65535:65535", "Labels": {"version": version}});
        all.push(image(name.into(), std::slice::from_ref(&pause), run));
    }
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let mut run = sh();
        run["User"] = json!(user);
        all.push(image(format!("{CRI_TOOLS}/test-image-user-{name}:latest"), &one, run));
    }
    for (name, mark) in [
        ("test-image-1:latest", "test-image-1"),
        ("test-image-2:latest", "test-image-2"),
        ("test-image-3:latest", "test-image-3"),
        ("test-image-latest:latest", "test-image-latest"),
        ("test-image-digest:latest", "test-image-digest"),
        ("test-image-tag:test", "test"),
        ("test-image-tag:all", "all"),
        ("test-image-tags:1", "tags"),
        ("test-image-tags:2", "tags"),
        ("test-image-tags:3", "tags"),
    ] {
        let mut own = Hand::new();
        own.file(mark, 0o644, mark.as_bytes())?;
        let layers = [shell.clone(), Layer::from_tar(&own.finish()?)?];
        all.push(image(format!("{CRI_TOOLS}/{name}"), &layers, sh()));
    }
    Ok(all)
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                      nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// A root file system of busybox alone, every applet a hard link as its image has it.
fn shell(busybox: &Busybox) -> Result<Vec<u8>> {
    let mut hand = Hand::new();
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "usr", "var"] {
        hand.directory(dir, 0o755)?;
    }
    for dir in ["usr/bin", "usr/sbin", "var/www"] {
        hand.directory(dir, 0o755)?;
    }
    hand.directory("tmp", 0o1777)?;
    hand.file("bin/busybox", 0o755, &busybox.program()?)?;
    for applet in busybox.applets()? {
        hand.hard_link(&applet, "bin/busybox", 0o755, (0, 0))?;
    }
    hand.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    hand.file("etc/group", 0o644, GROUP.as_bytes())?;
    hand.finish()
}

fn predefined_group(shell: &Layer) -> Result<Image> {
    let mut own = Hand::new();
    let passwd = format!("{PASSWD}default-user:x:1000:1000:user:/home/default-user:/bin/sh\n");
    let group =
        format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    own.file("etc/passwd", 0o644, passwd.as_bytes())?;
    own.file("etc/group", 0o644, group.as_bytes())?;
    Ok(Image {
        name: format!("{CRI_TOOLS}/test-image-predefined-group:latest"),
        layers: vec![shell.clone(), Layer::from_tar(&own.finish()?)?],
        run: json!({"User": "1000", "Cmd": ["sh"]}),
    })
}

/// nginx, with a `grep` that keeps silent about what is no text: a spec wants no word on stderr.
fn web_server(name: String, nginx: &[Layer], busybox: &Busybox, port: u16) -> Result<Image> {
    let mut own = Hand::new();
    own.file("usr/local/bin/grep", 0o755, &busybox.program()?)?;
    let conf = format!(
        "pid /run/nginx.pid; error_log stderr; user www-data;\nevents {{}}\n\
         http {{ access_log off; server {{ listen {port}; root /srv; }} }}\n"
    );
    own.file("etc/nginx/nginx.conf", 0o644, conf.as_bytes())?;
    own.directory("srv", 0o755)?.file("srv/index.html", 0o644, b"a page\n")?;
    Ok(Image {
        name,
        layers: nginx.iter().cloned().chain([Layer::from_tar(&own.finish()?)?]).collect(),
        run: json!({"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["nginx", "-g", "daemon off;"]}),
    })
}

/// A web server that names itself in its log.
fn httpd(shell: &Layer) -> Result<Image> {
    let mut own = Hand::new();
    own.directory("srv", 0o755)?.file("srv/index.html", 0o644, b"a page\n")?;
    let start = "echo httpd serves; exec httpd -f -v -p 80 -h /srv";
    Ok(Image {
        name: format!("{KUBERNETES}/httpd:2.4.39-4"),
        layers: vec![shell.clone(), Layer::from_tar(&own.finish()?)?],
        run: json!({"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh", "-c", start]}),
    })
}

fn privileges(dir: &Path) -> Result<Image> {
    Ok(Image {
        name: format!("{KUBERNETES}/nonewprivs:1.3"),
        layers: vec![Layer::from_tar(&program("nnp", PRIVILEGES_SOURCE, 0o4755, dir)?)?],
        run: json!({"Entrypoint": ["/nnp"]}),
    })
}

/// A layer of one static program.
fn program(name: &str, source: &str, mode: u32, dir: &Path) -> Result<Vec<u8>> {
    let (text, built) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&text, source)?;
    Command::new("musl-gcc")
        .args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"])
        .args([&built, &text])
        .good()?;
    let mut hand = Hand::new();
    hand.file(name, mode, &fs::read(&built)?)?;
    fs::remove_file(text)?;
    fs::remove_file(built)?;
    hand.finish()
}
