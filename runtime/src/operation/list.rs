//! `list`: the containers below `--root`.

use std::os::unix::fs::MetadataExt;

use super::state::{self, Description};
use super::{Globals, RootIs};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::state::{Container, RootDirectory};

/// How the list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Ids,
    Json,
    Table,
}

pub(crate) fn list(globals: &Globals, format: Format) -> Result<String> {
    let mut containers: Vec<Description> = Vec::new();
    let root = RootDirectory::open(&globals.root)?;
    if root.is_none() && globals.root_is == RootIs::AskedFor {
        let root = globals.root.display();
        return Err(Error::new(ErrorKind::Usage, format!("--root {root}: no such directory")));
    }
    if let Some(root) = root {
        let owner = owner(globals)?;
        for id in root.ids()? {
            let loaded = root.container(&id).and_then(Container::of);
            match loaded {
                Ok(container) => {
                    let described = state::describe(&container);
                    containers.push(Description { owner: owner.clone(), ..described });
                }
                // being made, or deleted meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => globals.log.error(&format!("load container {id}: {error}")),
            }
        }
    }
    Ok(match format {
        Format::Ids => containers.iter().map(|container| format!("{}\n", container.id)).collect(),
        Format::Json if containers.is_empty() => "null\n".to_owned(),
        Format::Json => format!("{}\n", serde_json::to_string(&containers)?),
        Format::Table => table(containers.iter().map(row)),
    })
}

fn owner(globals: &Globals) -> Result<String> {
    let uid = std::fs::metadata(&globals.root).context(|| "stat --root")?.uid();
    Ok(if uid == 0 { "root".to_owned() } else { format!("#{uid}") })
}

fn row(container: &Description) -> [String; 6] {
    [
        container.id.clone(),
        container.pid.to_string(),
        container.status.to_owned(),
        container.bundle.display().to_string(),
        container.created.clone(),
        container.owner.clone(),
    ]
}

fn table(containers: impl Iterator<Item = [String; 6]>) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(containers);
    let width = |column: usize| {
        rows.iter().map(|row| row.get(column).map_or(0, String::len)).max().unwrap_or(0).max(11)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut table = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            table.push_str(&format!("{cell:width$} "));
        }
        table.truncate(table.trim_end_matches(' ').len());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let one = ["a-long-container-name", "7", "running", "/b", "now", "root"].map(str::to_owned);
        let table = table([one].into_iter());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("PID"), lines[1].find('7'));
        assert_eq!(lines[0].find("OWNER"), lines[1].find("root"));
    }
}
