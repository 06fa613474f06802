//! `list`: the containers below `--root`.

use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use super::{Globals, state};
use crate::error::{Context, ErrorKind, Result};
use crate::state::{Container, RootDirectory};

/// How the list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Ids,
    Json,
    Table,
}

pub(crate) fn list(globals: &Globals, format: Format) -> Result<String> {
    let mut containers: Vec<Value> = Vec::new();
    if let Some(root) = RootDirectory::open(&globals.root)? {
        let owner = owner(globals)?;
        for id in root.ids()? {
            let loaded = root.container(&id).and_then(Container::of);
            match loaded {
                Ok(container) => {
                    let mut value = state::describe(&container);
                    value["owner"] = owner.clone().into();
                    containers.push(value);
                }
                // being made, or deleted meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => globals.log.error(&format!("load container {id}: {error}")),
            }
        }
    }
    Ok(match format {
        Format::Ids => containers.iter().map(|c| format!("{}\n", text(c, "id"))).collect(),
        Format::Json if containers.is_empty() => "null\n".to_owned(),
        Format::Json => format!("{}\n", Value::from(containers)),
        Format::Table => table(&containers),
    })
}

fn owner(globals: &Globals) -> Result<String> {
    let uid = std::fs::metadata(&globals.root).context(|| "stat --root")?.uid();
    Ok(if uid == 0 { "root".to_owned() } else { format!("#{uid}") })
}

fn text(container: &Value, key: &str) -> String {
    match container.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn table(containers: &[Value]) -> String {
    let keys = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut rows = vec![keys.map(str::to_uppercase)];
    rows.extend(containers.iter().map(|container| keys.map(|key| text(container, key))));
    let width = |column: usize| {
        rows.iter().map(|row| row.get(column).map_or(0, String::len)).max().unwrap_or(0).max(11)
    };
    let widths: Vec<usize> = (0..keys.len()).map(width).collect();
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
        let one = serde_json::json!({"id": "a-long-container-name", "pid": 7, "status": "running",
            "bundle": "/b", "created": "now", "owner": "root"});
        let table = table(&[one]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("PID"), lines[1].find('7'));
        assert_eq!(lines[0].find("OWNER"), lines[1].find("root"));
    }
}
