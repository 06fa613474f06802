//! The tests, by what they use.

pub(crate) mod attacks;
mod bundle;
mod callers;
mod clients;
mod cri;
mod handed_over;
pub(crate) mod kernel;
mod selinux;

use crate::table::{Site, Test};

/// Every test of a site, in the order in which they are run.
pub(crate) fn all(site: Site) -> Vec<Test> {
    let rooms = [
        clients::TESTS,
        callers::TESTS,
        attacks::TESTS,
        handed_over::TESTS,
        kernel::TESTS,
        selinux::TESTS,
        if site == Site::Host { callers::ON_HOST } else { &[] },
    ];
    rooms.into_iter().flatten().map(copy).collect()
}

/// The tests with crictl, for a kit that has it.
pub(crate) fn with_crictl() -> Vec<Test> {
    cri::TESTS.iter().map(copy).collect()
}

fn copy(test: &Test) -> Test {
    Test { name: test.name, needs: test.needs, run: test.run }
}
