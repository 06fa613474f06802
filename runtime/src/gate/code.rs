//! Where an image's code lies: the places that no unverified mount may cover.
//!
//! Asked twice: by the gate, of the destination as the links of the image lead to it, before anything is made; and by
//! the container's first process, of the place where a mount is really attached, since an earlier mount of the same
//! container may bring links of its own.

use std::path::Path;

use rustix::fs::FileType;

/// Directories that hold programs and libraries, wherever links lead to.
const CODE: [&str; 18] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/libx32",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/libexec",
];

/// Whether there is code at `path`, which has no link left in it and starts at the root of the image.
///
/// `mode`: the file's type and permissions. `is_empty`: whether the directory has no entry; asked only if it matters.
///
/// # Errors
/// What `is_empty` answers.
pub(crate) fn is_at<E>(
    path: &Path,
    mode: u32,
    is_empty: impl FnOnce() -> Result<bool, E>,
) -> Result<bool, E> {
    let in_code = CODE.iter().any(|code| path.starts_with(code));
    match FileType::from_raw_mode(mode) {
        FileType::Directory => {
            let above = CODE.iter().any(|code| Path::new(code).starts_with(path));
            Ok((in_code || above) && !is_empty()?)
        }
        FileType::RegularFile => Ok(in_code || mode & 0o111 != 0),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_lies_in_its_directories_or_may_be_executed() {
        let (directory, file, program) = (0o040_755, 0o100_644, 0o100_755);
        for (path, mode, empty, expected) in [
            ("/", directory, false, true),
            ("/usr", directory, false, true),
            ("/usr/bin", directory, false, true),
            ("/usr/bin", directory, true, false),
            ("/usr/bin/deep/er", directory, false, true),
            ("/usr/share", directory, false, false),
            ("/usr/bin/data", file, false, true),
            ("/etc/conf", file, false, false),
            ("/opt/tool", program, false, true),
            ("/dev/null", 0o020_666, false, false),
        ] {
            let found = is_at(Path::new(path), mode, || Ok::<_, ()>(empty)).unwrap();
            assert_eq!(found, expected, "{path}");
        }
    }
}
