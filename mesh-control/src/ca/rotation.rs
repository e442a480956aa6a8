//! Replaces the root in three steps, each of which is refused until every agent has made the one before: `add` publishes a
//! second root, `use` signs with it, `drop` withdraws the first. So at every moment each certificate in use leads to a root
//! that everybody trusts. The files are `files`'s; who is told what is the publisher's.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;

use super::{
    authority::{Authority, Parts},
    files::{self, FilesError},
};
use crate::xds::{
    roster::{Attendance, Roster, TrustReport},
    token::Tokens,
};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Publish a second root beside the one that signs
    Add,
    /// Sign with the second root; agents then ask for new certificates
    Use,
    /// Withdraw the root that does not sign
    Drop,
}

/// Why a step is not made. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The CA is the operator's own.
    #[error(
        "the CA is that of --ca-dir: this daemon rotates only roots of its own. Rotate it there: add the new root to \
         root-cert.pem and restart; when /debug/agents shows every agent with that bundle, put the new ca-key.pem, ca-cert.pem \
         and cert-chain.pem in place and restart; when no agent has old certificates, take the old root out and restart"
    )]
    Plugged,
    /// It is not this step's turn.
    #[error("{0}")]
    Order(&'static str),
    /// Agents that have not made the step before.
    #[error("not yet: every agent must have made the step before.\n{}", .0.join("\n"))]
    Behind(Vec<String>),
    /// The files of the state directory.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// The rotation of the root in a state directory.
pub struct Rotation {
    /// Where its files are; none when the CA is plugged in.
    pub state_dir: Option<PathBuf>,
    /// Lifetime of certificates.
    pub lifetime: Duration,
    /// Replaced at each step.
    pub authority: watch::Sender<Arc<Authority>>,
    /// The nodes there should be.
    pub tokens: Arc<Tokens>,
    /// The agents there are, and what they trust.
    pub roster: Arc<Roster>,
}

impl Rotation {
    /// Makes a step, and says what it did and what comes next.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub fn make(&self, step: Step) -> Result<String, RotationError> {
        let state = self.state_dir.as_deref().ok_or(RotationError::Plugged)?;
        let (roots, has_next) = (self.authority.borrow().roots().len(), files::has_next(state)?);
        let (parts, said) = match (step, roots, has_next) {
            (Step::Add, 1, _) => (files::add_next(state)?, ADDED),
            (Step::Add, ..) => {
                return Err(RotationError::Order("a rotation is under way: its next step is use or drop"));
            }
            (Step::Use, 2.., true) => {
                self.all_trust_the_next(state)?;
                (files::use_next(state)?, USED)
            }
            (Step::Use, 1, _) => {
                return Err(RotationError::Order("there is no second root yet: the first step is add"));
            }
            (Step::Use, ..) => return Err(RotationError::Order("the new root signs already: the next step is drop")),
            (Step::Drop, 1, _) => return Err(RotationError::Order("there is one root: nothing to drop")),
            (Step::Drop, _, true) => (files::drop_others(state)?, UNDONE),
            (Step::Drop, ..) => {
                self.all_use_the_new_one()?;
                (files::drop_others(state)?, DROPPED)
            }
        };
        self.put_in_force(parts);
        tracing::warn!(?step, "root rotation: {said}");
        Ok(said.to_owned())
    }

    /// How far the rotation is, and who is behind.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn show(&self) -> Result<String, RotationError> {
        let state = self.state_dir.as_deref().ok_or(RotationError::Plugged)?;
        let phase = match (self.authority.borrow().roots().len(), files::has_next(state)?) {
            (1, _) => return Ok("one root; no rotation is under way".to_owned()),
            (_, true) => (self.all_trust_the_next(state), "a second root is published; the next step is use"),
            (_, false) => (self.all_use_the_new_one(), "the new root signs; the next step is drop"),
        };
        match phase {
            (Ok(()), text) => Ok(format!("{text}, for which every agent is ready")),
            (Err(RotationError::Behind(who)), text) => Ok(format!("{text}, which waits for\n{}", who.join("\n"))),
            (Err(error), _) => Err(error),
        }
    }

    fn put_in_force(&self, parts: Parts) {
        self.authority.send_replace(Arc::new(Authority::new(parts, self.lifetime)));
    }

    fn all_trust_the_next(&self, state: &std::path::Path) -> Result<(), RotationError> {
        let authority = self.authority.borrow().clone();
        let bundle = bundle_hash(authority.roots());
        let next = authority.roots().get(1).and_then(|root| root_hash(root)).unwrap_or_default();
        let copy = state.join(files::ROOT_FILE).display().to_string();
        self.all(|trust| match trust {
            trust if trust.bundle != bundle => Some("it has not taken the second root up yet".to_owned()),
            trust if !trust.control_roots.contains(&next) => {
                Some(format!("its --control-root lacks the new root: put a copy of {copy} in its place"))
            }
            _ => None,
        })
    }

    fn all_use_the_new_one(&self) -> Result<(), RotationError> {
        let bundle = bundle_hash(self.authority.borrow().roots());
        self.all(|trust| match trust {
            trust if trust.bundle != bundle => Some("it does not know yet which root signs".to_owned()),
            TrustReport { old_certificates: 0, .. } => None,
            TrustReport { old_certificates, .. } => Some(format!("{old_certificates} certificates of the old root")),
        })
    }

    fn all(&self, behind: impl Fn(&TrustReport) -> Option<String>) -> Result<(), RotationError> {
        let who = laggards(&self.tokens.nodes(), &self.roster.all(), behind);
        if who.is_empty() { Ok(()) } else { Err(RotationError::Behind(who)) }
    }
}

const ADDED: &str = "a second root is published and signs nothing yet. Next: give every node the new root-cert.pem of the \
                     state directory as its --control-root (agents read it again by themselves), then --step use";
const USED: &str =
    "the new root signs, and the old one's key is gone. Agents are asking for new certificates. Next: --step drop";
const DROPPED: &str = "the old root is withdrawn. Next: give every node the new root-cert.pem as its --control-root";
const UNDONE: &str = "the second root is withdrawn before anything was signed with it: all is as before --step add";

/// One line for each node whose agent is behind, or away, or silent.
fn laggards(nodes: &[String], agents: &[Attendance], behind: impl Fn(&TrustReport) -> Option<String>) -> Vec<String> {
    // Of two streams of a node the later one is its agent: the other has not been missed yet. But the agent before it may come
    // back after it, from a broken connection.
    let in_charge = agents.iter().filter(|agent| !agent.is_taken_over);
    let latest: BTreeMap<&str, &Attendance> = in_charge.map(|agent| (agent.node.as_str(), agent)).collect();
    let why = |node: &str| match latest.get(node) {
        None => Some("it has a token and is not connected: start it, or take its line out of --node-tokens".to_owned()),
        Some(Attendance { trust: None, .. }) => Some("it does not say which roots it trusts".to_owned()),
        Some(Attendance { trust: Some(trust), .. }) => behind(trust),
    };
    let away = nodes.iter().map(String::as_str).filter(|node| !latest.contains_key(node));
    let all = latest.keys().copied().chain(away);
    all.filter_map(|node| Some(format!("{node}: {}", why(node)?))).collect()
}

/// As agents name a bundle: SHA-256 of its PEM texts in order, hexadecimal.
fn bundle_hash(roots: &[String]) -> String {
    hexadecimal(roots.concat().as_bytes())
}

/// As agents name a root: SHA-256 of the certificate.
fn root_hash(root: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(root.as_bytes()).ok()?;
    Some(hexadecimal(&der))
}

fn hexadecimal(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempFolder;

    fn agent(node: &str, trust: Option<TrustReport>) -> Attendance {
        let mut agent = Attendance::default();
        (agent.node, agent.trust) = (node.into(), trust);
        agent
    }

    fn taken_over(mut agent: Attendance) -> Attendance {
        agent.is_taken_over = true;
        agent
    }

    #[test]
    fn whoever_is_away_silent_or_behind_is_named_with_what_to_do() {
        let good = TrustReport { bundle: "new".into(), ..TrustReport::default() };
        let nodes = ["away", "behind", "good", "silent"].map(String::from);
        let agents = [
            agent("behind", Some(TrustReport::default())),
            agent("good", Some(TrustReport::default())),
            agent("good", Some(good.clone())),
            agent("silent", None),
            agent("withdrawn", Some(TrustReport::default())),
            taken_over(agent("good", Some(TrustReport::default()))),
            taken_over(agent("away", Some(good))),
        ];
        let who = laggards(&nodes, &agents, |trust| (trust.bundle != "new").then(|| "old".to_owned()));
        let expected = ["behind: old", "silent: it does not say", "withdrawn: old", "away: it has a token and is not"];
        assert_eq!(who.len(), expected.len(), "{who:?}");
        assert!(who.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{who:?}");
    }

    /// A rotation of a folder without any node.
    fn rotation(folder: &TempFolder) -> Rotation {
        let lifetime = Duration::from_secs(3600);
        let tokens = folder.0.join("tokens");
        if !tokens.exists() {
            std::fs::write(&tokens, "").expect("written");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&tokens, mode).expect("mode");
        }
        let parts = files::load(&folder.0, None).expect("an authority");
        Rotation {
            state_dir: Some(folder.0.clone()),
            lifetime,
            authority: watch::Sender::new(Arc::new(Authority::new(parts, lifetime))),
            tokens: Arc::new(Tokens::read(&tokens).expect("tokens")),
            roster: Arc::default(),
        }
    }

    #[test]
    fn the_steps_come_in_order_and_outlive_a_restart_after_each() {
        let folder = TempFolder::new();
        let roots = || rotation(&folder).authority.borrow().roots().to_vec();
        let refused = |step| matches!(rotation(&folder).make(step), Err(RotationError::Order(_)));
        let old = roots();
        assert!(refused(Step::Use) && refused(Step::Drop));
        rotation(&folder).make(Step::Add).expect("added");
        let both = roots();
        assert_eq!((both.len(), &both[0]), (2, &old[0]), "the old one signs");
        assert!(refused(Step::Add));
        rotation(&folder).make(Step::Use).expect("used");
        assert_eq!(roots(), [both[1].clone(), both[0].clone()], "the new one signs");
        assert!(refused(Step::Add) && refused(Step::Use) && !folder.0.join("next-key.pem").exists());
        rotation(&folder).make(Step::Drop).expect("dropped");
        assert_eq!(roots(), [both[1].clone()]);
        assert!(rotation(&folder).show().expect("shown").starts_with("one root"));
    }

    #[test]
    fn a_second_root_that_signs_nothing_can_be_withdrawn_again() {
        let folder = TempFolder::new();
        let old = rotation(&folder).authority.borrow().roots().to_vec();
        rotation(&folder).make(Step::Add).expect("added");
        assert_eq!(rotation(&folder).make(Step::Drop).expect("dropped"), UNDONE);
        assert_eq!(rotation(&folder).authority.borrow().roots(), old);
    }

    #[test]
    fn a_step_waits_for_every_agent_and_a_foreign_authority_is_not_rotated() {
        let folder = TempFolder::new();
        rotation(&folder).make(Step::Add).expect("added");
        let waiting = rotation(&folder);
        let _seat = waiting.roster.seat("node-a", None);
        let error = waiting.make(Step::Use).expect_err("nobody has it");
        assert!(error.to_string().contains("node-a: it does not say"), "{error}");
        assert!(waiting.show().expect("shown").contains("node-a: "));
        let plugged = Rotation { state_dir: None, ..rotation(&folder) };
        assert!(matches!(plugged.make(Step::Add), Err(RotationError::Plugged)));
    }
}
