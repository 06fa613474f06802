//! The table.

use super::compare::Series;
use crate::node::Node;
use crate::table::Counts;

/// One line of the table.
#[derive(Debug)]
pub(super) enum Row {
    /// Ours and a peer's, with the most that the ratio should be.
    Ratio {
        what: String,
        ours: String,
        peer: String,
        ratio: f64,
        cpu: Option<f64>,
        goal: Option<f64>,
    },
    /// Something counted, that is as it should be or not.
    Count { what: String, found: String, goal: String, met: bool },
    /// Not measured here.
    Skipped { what: String, needs: &'static str },
}

impl Row {
    /// The times of side `ours` beside those of side `peer`.
    pub(super) fn times(
        what: impl Into<String>,
        series: &Series,
        (ours, peer): (usize, usize),
        goal: Option<f64>,
    ) -> Self {
        let ratio = series.ratio(ours, peer);
        Self::Ratio {
            what: what.into(),
            ours: seconds(series.median(ours).wall),
            peer: seconds(series.median(peer).wall),
            ratio: ratio.wall,
            cpu: Some(ratio.cpu).filter(|cpu| cpu.is_finite()),
            goal,
        }
    }

    /// Two sizes, in KiB.
    pub(super) fn sizes(what: impl Into<String>, ours: f64, peer: f64, goal: Option<f64>) -> Self {
        let shown = |kib: f64| format!("{:.1} MiB", kib / 1024.0);
        Self::Ratio {
            what: what.into(),
            ours: shown(ours),
            peer: shown(peer),
            ratio: ours / peer,
            cpu: None,
            goal,
        }
    }
}

/// Enough digits, in the unit that a person reads.
fn seconds(seconds: f64) -> String {
    match seconds {
        long if long >= 1.0 => format!("{long:.2} s"),
        short => format!("{:.1} ms", short * 1e3),
    }
}

/// The head of a subject's rows.
pub(super) fn title(subject: &str, rounds: usize) {
    println!("\n{subject} ({rounds} rounds)");
    println!("  {:66} {:>10} {:>10} {:>7} {:>7}  goal", "", "ours", "peer", "ratio", "cpu");
}

/// Prints a row and says how it counts. A ratio without a goal is for the record.
pub(super) fn show(row: &Row) -> Counts {
    let mut counts = Counts::default();
    match row {
        Row::Ratio { what, ours, peer, ratio, cpu, goal } => {
            let cpu = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.2}x"));
            let verdict = match goal {
                None => "none: for the record".to_owned(),
                Some(goal) if ratio <= goal => format!("at most {goal:.2}x: met"),
                Some(goal) => format!("at most {goal:.2}x: not met"),
            };
            println!("  {what:66} {ours:>10} {peer:>10} {ratio:>6.2}x {cpu:>7}  {verdict}");
            match goal {
                Some(goal) if ratio > goal => counts.failed += 1,
                _ => counts.passed += 1,
            }
        }
        Row::Count { what, found, goal, met } => {
            println!("  {what:66} {found:>37}  {goal}: {}", if *met { "met" } else { "not met" });
            if *met {
                counts.passed += 1;
            } else {
                counts.failed += 1;
            }
        }
        Row::Skipped { what, needs } => {
            println!("skipped: needs {needs}: {what}");
            counts.skipped += 1;
        }
    }
    counts
}

/// Prints why a subject could not be measured.
pub(super) fn broken(error: &anyhow::Error, node: Option<&Node>) {
    println!("FAIL  {error:#}\n{}", node.map(Node::last_words).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_not_met_is_a_failure_and_a_record_is_not() {
        let row = |goal| Row::sizes("x", 2.0, 1.0, goal);
        assert_eq!(show(&row(None)).passed, 1);
        assert_eq!(show(&row(Some(2.0))).passed, 1);
        assert_eq!(show(&row(Some(1.9))).failed, 1);
    }
}
