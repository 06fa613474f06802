//! What a seal pins of the process that is started.

use hallmark_seal::VerifiedSeal;

use super::Launch;
use super::refusal::Refusal;

/// The first arguments and the variables are as the seal pins them, if it pins any.
pub(super) fn is_as_pinned(seal: &VerifiedSeal, launch: &Launch<'_>) -> Result<(), Refusal> {
    let Some(pins) = &seal.seal().pins else { return Ok(()) };
    let entrypoint = pins.entrypoint.as_deref().unwrap_or_default();
    if !launch.args.starts_with(entrypoint) {
        let (found, expected) = (launch.args.to_vec(), entrypoint.to_vec());
        return Err(Refusal::Entrypoint { found, expected });
    }
    for pinned in pins.env.iter().flatten() {
        let name = pinned.split('=').next().unwrap_or_default();
        let same = |variable: &&String| variable.split('=').next() == Some(name);
        let found: Vec<String> = launch.env.iter().filter(same).cloned().collect();
        if found.is_empty() || found.iter().any(|variable| variable != pinned) {
            return Err(Refusal::Environment { found, expected: pinned.clone() });
        }
    }
    Ok(())
}
