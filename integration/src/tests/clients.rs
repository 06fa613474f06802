//! nerdctl and ctr as people use them.

use anyhow::{Result, ensure};

use crate::images::ONE;
use crate::run::Run;
use crate::table::{Bench, Test};

pub(super) const TESTS: &[Test] = &[
    Test { name: "nerdctl: run prints what the container says", needs: &[], run: run_prints },
];

fn run_prints(bench: &mut Bench) -> Result<()> {
    let node = bench.node()?;
    node.load(&node.kit.images().archive(ONE))?;
    let said = node.run(&["--rm", ONE]).good()?;
    ensure!(said == "hello from one", "said {said:?}");
    let code = node.run(&["--rm", ONE, "sh", "-c", "exit 7"]).ran()?;
    ensure!(code.status.code() == Some(7), "exit {:?}\n{}", code.status, code.all());
    Ok(())
}
