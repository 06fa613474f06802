//! `ps`: the processes of a container.

use std::process::Command;

use super::Globals;
use crate::error::{Context, Error, Result};
use crate::state::{Container, ContainerId};

/// How the list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Table,
}

/// `args` are those of the host's `ps`, for the table; `-ef` if there are none.
pub(crate) fn ps(
    globals: &Globals,
    id: &ContainerId,
    format: Format,
    args: &[String],
) -> Result<String> {
    let container = Container::load(&globals.root, id)?;
    let pids = container.held().cgroup()?.pids()?;
    let pids: Vec<i32> = pids.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    match format {
        Format::Json => Ok(format!("{}\n", serde_json::Value::from(pids))),
        Format::Table => {
            let default = ["-ef".to_owned()];
            let args = if args.is_empty() { &default[..] } else { args };
            let output = Command::new("ps").args(args).output().context(|| "ps")?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::system(format!("ps: {}: {said}", output.status)));
            }
            table(&String::from_utf8_lossy(&output.stdout), &pids)
        }
    }
}

/// The heading, and the lines whose column `PID` is one of `pids`.
pub(crate) fn table(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| Error::system("couldn't find PID field in ps output"))?;
    let mut table = format!("{heading}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            table.push_str(line);
            table.push('\n');
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_container_stay() {
        let text = "UID PID CMD\nroot 1 init\nroot 42 sh\n";
        assert_eq!(table(text, &[42]).unwrap(), "UID PID CMD\nroot 42 sh\n");
        assert!(table("UID CMD\n", &[]).is_err());
    }
}
