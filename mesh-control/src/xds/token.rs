//! Who a caller is: the tokens of node agents, read from a file of lines `NODE TOKEN`. The file is read again when it
//! changes, so a token can be added, replaced or withdrawn while running. Tokens are kept as hashes and never logged.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use aws_lc_rs::digest;
use tonic::metadata::MetadataMap;

/// Shorter tokens can be guessed.
const SHORTEST: usize = 16;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{path} can be read by others (mode {mode:o}); chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A line is not `NODE TOKEN`.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it; never the token.
        reason: &'static str,
    },
}

type Nodes = HashMap<[u8; 32], String>;
/// What tells one version of the file from the next.
type Stamp = (u64, i64, i64, u64);

/// A token that was shown, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its node.
    pub node: String,
    hash: [u8; 32],
}

/// The tokens.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    nodes: RwLock<(Nodes, Option<Stamp>)>,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`TokensError`]; the operator is at fault.
    pub fn read(path: &Path) -> Result<Tokens, TokensError> {
        let nodes = RwLock::new((read(path)?, stamp(path)));
        Ok(Tokens { path: path.to_owned(), nodes })
    }

    /// The node whose token a request carries as `authorization: Bearer TOKEN`.
    pub fn node_of(&self, metadata: &MetadataMap) -> Option<String> {
        self.shown(metadata).map(|shown| shown.node)
    }

    /// That token and its node, to be asked of again: see [`Self::holds`].
    pub fn shown(&self, metadata: &MetadataMap) -> Option<Shown> {
        let token = super::caller::bearer(metadata)?;
        self.refresh();
        // Looked up by hash: the time it takes says nothing of how much of a token was right.
        let hash = hash(token);
        let node = self.nodes.read().unwrap_or_else(PoisonError::into_inner).0.get(&hash).cloned()?;
        Some(Shown { node, hash })
    }

    /// Whether a token that was shown before is still its node's.
    pub fn holds(&self, shown: &Shown) -> bool {
        self.refresh();
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).0.get(&shown.hash) == Some(&shown.node)
    }

    /// Every node that has a token, by name.
    pub fn nodes(&self) -> Vec<String> {
        self.refresh();
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.0.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Reads the file again when it is another. A file with a mistake keeps the tokens as they were.
    fn refresh(&self) {
        let now = stamp(&self.path);
        if self.nodes.read().unwrap_or_else(PoisonError::into_inner).1 == now {
            return;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.1 = now;
        match read(&self.path) {
            Ok(fresh) => {
                tracing::info!(nodes = fresh.len(), "node tokens read again");
                nodes.0 = fresh;
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "node tokens stay as they were"),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

fn read(path: &Path) -> Result<Nodes, TokensError> {
    let failed = |source| TokensError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TokensError::Exposed { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let mut nodes = Nodes::new();
    for (index, line) in text.lines().enumerate() {
        let refuse = |reason| TokensError::Line { path: path.to_owned(), line: index + 1, reason };
        let mut words = line.split_whitespace();
        let Some(node) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        let (Some(token), None) = (words.next(), words.next()) else { return Err(refuse("is not NODE TOKEN")) };
        if token.len() < SHORTEST {
            return Err(refuse("the token is shorter than 16 characters"));
        }
        if nodes.insert(hash(token), node.to_owned()).is_some() {
            return Err(refuse("the token is another node's too"));
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str, mode: u32) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mesh-control-tokens-{}-{name}", std::process::id()));
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        path
    }

    fn bearer(token: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
        metadata
    }

    #[test]
    fn a_token_names_its_node_until_it_is_withdrawn() {
        let path = file("withdrawn", "# nodes\nnode-a 0123456789abcdef\nnode-b fedcba9876543210\n", 0o600);
        let tokens = Tokens::read(&path).expect("good");
        assert_eq!(tokens.node_of(&bearer("fedcba9876543210")).as_deref(), Some("node-b"));
        assert_eq!(tokens.node_of(&bearer("fedcba987654321")), None);
        assert_eq!(tokens.node_of(&MetadataMap::new()), None);
        let [shown_a, shown_b] =
            ["0123456789abcdef", "fedcba9876543210"].map(|text| tokens.shown(&bearer(text)).expect(text));
        assert!(tokens.holds(&shown_a) && tokens.holds(&shown_b));

        fs::write(&path, "node-a 0123456789abcdef\n").expect("written");
        assert_eq!(tokens.node_of(&bearer("fedcba9876543210")), None);
        assert_eq!(tokens.node_of(&bearer("0123456789abcdef")).as_deref(), Some("node-a"));
        assert!(tokens.holds(&shown_a) && !tokens.holds(&shown_b));
        fs::write(&path, "node-c 0123456789abcdef\n").expect("written");
        assert!(!tokens.holds(&shown_a), "it is another node's now");
        fs::remove_file(path).expect("removed");
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_by_line_and_never_shows_a_token() {
        let cases = [
            ("exposed", "node-a 0123456789abcdef", 0o644, "chmod 600"),
            ("short", "\nnode-a secret", 0o600, ":2: the token is shorter"),
            ("words", "node-a 0123456789abcdef x", 0o600, ":1: is not NODE TOKEN"),
            ("twice", "a 0123456789abcdef\nb 0123456789abcdef", 0o600, ":2: the token is another"),
        ];
        for (name, text, mode, expected) in cases {
            let path = file(name, text, mode);
            let message = Tokens::read(&path).expect_err(name).to_string();
            assert!(message.contains(expected), "{name}: {message}");
            assert!(!message.contains("secret") && !message.contains("0123"), "{name}: {message}");
            fs::remove_file(path).expect("removed");
        }
    }
}
