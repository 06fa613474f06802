//! Whether a process may write over code through `/proc/<pid>/mem`.
//!
//! Such a write goes through a read-only mapping of a signed file, and IPE judges the file, not the page. The boot
//! parameter `proc_mem.force_override=never` closes it (Linux 6.12, `fs/proc/base.c`); `always` and `ptrace` do not.
//! There is no sysctl, and what a kernel without the parameter does is a choice of its build that it does not tell. So
//! only the parameter counts.

/// What the last valid `proc_mem.force_override=` of a kernel's command line says.
///
/// As the kernel reads it: words are divided by white space outside of double quotes, nothing after `--` is its own,
/// `-` and `_` in a name are the same, an unknown value changes nothing (`lib/cmdline.c` `next_arg`,
/// `kernel/params.c` `parameq`).
pub(crate) fn force_override(command_line: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(command_line);
    let mut found = None;
    for word in words(&text) {
        if word == "--" {
            break;
        }
        let Some((name, value)) = word.split_once('=') else { continue };
        if name.replace('-', "_") == "proc_mem.force_override" {
            let known = ["always", "ptrace", "never"].into_iter().find(|known| *known == value);
            found = known.or(found);
        }
    }
    found
}

/// Words with their double quotes taken away, as `next_arg` does at a word's or a value's ends.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        match letter {
            '"' => quoted = !quoted,
            letter if letter.is_ascii_whitespace() && !quoted => words.push(String::new()),
            letter => words.last_mut().into_iter().for_each(|word| word.push(letter)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_valid_parameter_counts() {
        for (line, expected) in [
            ("quiet proc_mem.force_override=never root=/dev/vda\n", Some("never")),
            ("proc_mem.force_override=never proc_mem.force_override=always", Some("always")),
            ("proc_mem.force_override=never proc-mem.force-override=ptrace", Some("ptrace")),
            ("proc_mem.force_override=never proc_mem.force_override=nonsense", Some("never")),
            ("\"proc_mem.force_override=never\"", Some("never")),
            ("proc_mem.force_override=\"never\"", Some("never")),
            ("foo=\"a proc_mem.force_override=never b\"", None),
            ("init=/init -- proc_mem.force_override=never", None),
            ("proc_mem.force_override", None),
            ("xproc_mem.force_override=never", None),
            ("proc_mem.force_override=", None),
            ("", None),
        ] {
            assert_eq!(force_override(line.as_bytes()), expected, "{line:?}");
        }
    }
}
