//! The tests, by what they use.

pub(crate) mod attacks;
mod clients;
pub(crate) mod kernel;

use crate::table::Test;

/// Every test, in the order in which they are run.
pub(crate) fn all() -> Vec<Test> {
    clients::TESTS.iter().chain(attacks::TESTS).chain(kernel::TESTS).map(copy).collect()
}

fn copy(test: &Test) -> Test {
    Test { name: test.name, needs: test.needs, run: test.run }
}
