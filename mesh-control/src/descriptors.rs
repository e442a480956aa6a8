//! Descriptors: one for each agent's connection, and `mesh_listen::limits::AGENTS` is more than the soft limit that most systems
//! start a process with.

use mesh_listen::limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Listeners, files, the connection to an API server.
const OTHERS: u64 = 256;

/// Raises the soft limit to the hard one, and says so when that is too little for as many agents as may come.
///
/// # Errors
/// The kernel refuses.
pub fn raise_limit() -> anyhow::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .map_err(|error| anyhow::anyhow!("raise the NOFILE limit: {error}"))?;
    let wanted = limits::AGENTS.all as u64 + OTHERS;
    if let Some(limit) = most.filter(|most| *most < wanted) {
        tracing::warn!(
            limit,
            wanted,
            "the NOFILE limit (LimitNOFILE= in a unit) is too low for as many agents as may come"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(512), maximum: most }).expect("lowered");
        raise_limit().expect("raised");
        assert_eq!(getrlimit(Resource::Nofile).current, most);
    }
}
