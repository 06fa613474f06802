//! `linux.cgroupsPath`: parsed to names below the hierarchy's root, so that nothing can climb out of it.

use std::collections::BTreeMap;
use std::fmt;

use super::Error;

/// The folder that takes containers without a `cgroupsPath`, and relative paths: never the runtime's own cgroup, so
/// that what is denied on a container's parent does not hit the node's daemons.
const HOME: &str = "hallmark";

/// Names from the root of every hierarchy to the container's own control group; at least one, none of them `.`,
/// `..`, empty or with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPath(Vec<String>);

impl CgroupPath {
    /// The place of container `id`: `path` if the spec has one, else `/hallmark/<id>`. A relative path starts at
    /// `/hallmark` (runtime-spec leaves the starting point to the runtime).
    ///
    /// # Errors
    /// [`Error::Path`] for `..` in any place, the hierarchy's root, an embedded NUL, or `slice:prefix:name`, which is
    /// the systemd driver's form: whoever writes it meant to pass `--systemd-cgroup`.
    pub fn parse(path: Option<&str>, id: &str) -> Result<Self, Error> {
        let text = match path {
            Some(path) if !path.is_empty() => path,
            _ => id,
        };
        let refuse = |reason| Err(Error::Path { path: text.to_owned(), reason });
        let mut names = Vec::new();
        if !text.starts_with('/') {
            names.push(HOME.to_owned());
        }
        let before = names.len();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => return refuse("\"..\" is not allowed"),
                name if name.contains('\0') => return refuse("it holds a NUL byte"),
                name => names.push(name.to_owned()),
            }
        }
        if names.len() == before {
            return refuse("it is the root of the hierarchy");
        }
        if let [slice, _, _] = text.split(':').collect::<Vec<_>>()[..]
            && (slice.is_empty() || slice.ends_with(".slice"))
        {
            return refuse(
                "it is of the systemd driver's form slice:prefix:name, which takes --systemd-cgroup",
            );
        }
        Ok(Self(names))
    }

    /// Parses what [`Display`](fmt::Display) wrote, or what lies below a hierarchy's mount point in a saved state.
    pub(super) fn parse_saved(below: &str) -> Result<Self, Error> {
        Self::parse(Some(&format!("/{below}")), "")
    }

    /// The last name.
    pub(super) fn name(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// The names above the last one, outermost first.
    pub(super) fn parents(&self) -> &[String] {
        &self.0[..self.0.len() - 1]
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

/// A sub-cgroup below a container's own, for `exec --cgroup`: relative, without `..`.
pub(super) fn parse_sub(path: &str) -> Result<Vec<&str>, Error> {
    let names: Vec<&str> =
        path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.iter().any(|name| *name == ".." || name.contains('\0')) {
        return Err(Error::SubPath(path.to_owned()));
    }
    Ok(names)
}

/// The arguments of `exec --cgroup`: controller to names; the empty controller is all of them.
pub(super) fn parse_places(places: &[String]) -> Result<BTreeMap<&str, Vec<&str>>, Error> {
    let mut parsed = BTreeMap::new();
    for place in places {
        let (controllers, path) = match place.split_once(':') {
            Some((controllers, path)) => (controllers, path),
            None if places.len() == 1 => ("", place.as_str()),
            None => {
                return Err(Error::Value(format!(
                    "invalid --cgroup argument: {place} (missing <controller>: prefix)"
                )));
            }
        };
        for controller in controllers.split(',') {
            if parsed.insert(controller, parse_sub(path)?).is_some() {
                return Err(Error::Value(format!(
                    "invalid --cgroup arguments: more than one path for controller {controller}"
                )));
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names_below_the_root() {
        for (path, names) in [
            (None, &["hallmark", "c1"][..]),
            (Some(""), &["hallmark", "c1"]),
            (Some("/default/c1"), &["default", "c1"]),
            (Some("//default/./c1/"), &["default", "c1"]),
            (Some("pod/c1"), &["hallmark", "pod", "c1"]),
            (Some("/a:b:c"), &["a:b:c"]),
        ] {
            let parsed = CgroupPath::parse(path, "c1").unwrap();
            assert_eq!(parsed.0, names, "{path:?}");
        }
    }

    #[test]
    fn climbing_the_root_and_systemd_forms_are_refused() {
        for path in [
            "/../x",
            "/a/../../b",
            "..",
            "a/..",
            "/",
            "//.",
            "/a\0b",
            "system.slice:runc:c1",
            ":p:c1",
        ] {
            let error = CgroupPath::parse(Some(path), "c1").expect_err(path);
            assert!(matches!(error, Error::Path { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn a_sub_path_stays_below() {
        assert_eq!(parse_sub("a//b/.").unwrap(), ["a", "b"]);
        assert_eq!(parse_sub("").unwrap(), Vec::<&str>::new());
        for path in ["..", "a/../..", "/../x"] {
            assert!(matches!(parse_sub(path), Err(Error::SubPath(_))), "{path}");
        }
    }

    #[test]
    fn places_are_by_controller_or_for_all() {
        let words = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let places = words(&["memory:m", "cpu,cpuacct:a/b"]);
        let parsed = parse_places(&places).unwrap();
        assert_eq!(parsed["cpuacct"], ["a", "b"]);
        assert_eq!(parsed["memory"], ["m"]);
        assert_eq!(parse_places(&words(&["x"])).unwrap()[""], ["x"]);
        for bad in [&["a", "b"][..], &["cpu:a", "cpu:b"], &["cpu:../x"], &[".."]] {
            assert!(parse_places(&words(bad)).is_err(), "{bad:?}");
        }
    }
}
