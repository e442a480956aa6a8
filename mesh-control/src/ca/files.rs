//! Where the CA's key and certificates are kept: generated into the state directory on first start, or plugged in by
//! the operator. A key is written with mode 0600 and only a rotation replaces it; a directory with one half missing is an
//! error rather than a reason to generate anew, because a new root would cut every workload off.
//!
//! A rotation is these files too, so that it outlives a restart: `root-cert.pem` with two roots and `next-key.pem` beside
//! `ca-key.pem` after its first step, two roots and one key after the second. Each step is one rename.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::FromDer};

pub use super::authority::Parts;
use super::authority::root_params;

/// How long a generated root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What agents take as `--control-root`.
pub const ROOT_FILE: &str = "root-cert.pem";
const KEY_FILE: &str = "ca-key.pem";
const NEXT_KEY_FILE: &str = "next-key.pem";
const CERTIFICATE_FILE: &str = "ca-cert.pem";
const CHAIN_FILE: &str = "cert-chain.pem";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of key and certificate is there without the other.
    #[error(
        "{present} is there but {missing} is not; restore it, or remove both to make a new root (every workload then needs new certificates)"
    )]
    Half {
        /// The file that exists.
        present: PathBuf,
        /// The file that does not.
        missing: PathBuf,
    },
    /// Others may read the key.
    #[error("{path} can be read by others (mode {mode:o}); chmod 600 it (for a mounted Secret: defaultMode: 0400)")]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What a file holds is not what it should.
    #[error("{path}: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The cryptography library refused.
    #[error("the root could not be made")]
    Library(#[source] rcgen::Error),
}

/// Loads the authority of `plugged`, or the one in `state`, generating it when there is none. Writes the roots to
/// `state` in both cases.
///
/// # Errors
/// The files are at fault; nothing is overwritten then.
pub fn load(state: &Path, plugged: Option<&Path>) -> Result<Parts, FilesError> {
    fs::create_dir_all(state).map_err(|source| FilesError::File { path: state.to_owned(), source })?;
    let parts = match plugged {
        Some(directory) => self::plugged(directory)?,
        None => {
            generate_unless_there(state)?;
            own(state)?
        }
    };
    write(&state.join(ROOT_FILE), &parts.roots.concat(), 0o644)?;
    Ok(parts)
}

/// Loads the authority that an operator has put into a directory.
///
/// # Errors
/// The files are at fault.
pub fn plugged(directory: &Path) -> Result<Parts, FilesError> {
    check_mode(&directory.join(KEY_FILE))?;
    let path = directory.join(CERTIFICATE_FILE);
    let issuer = <[Certificate; 1]>::try_from(certificates(&Text::read(path.clone())?)?);
    let [issuer] = issuer.map_err(|_| content(&path, "has to hold one certificate"))?;
    read(directory, &issuer, &path)
}

/// A root that signs itself, from its key and certificate in PEM; `place` is what to name when they are wrong.
///
/// # Errors
/// They are no CA, or do not belong together.
pub fn root(place: &Path, key: &str, certificate: &str) -> Result<Parts, FilesError> {
    let text = |name: &str, text: &str| Text { place: place.join(name), text: text.to_owned() };
    let roots = text(ROOT_FILE, certificate);
    let all = certificates(&roots)?;
    let issuer = all.first().ok_or_else(|| content(&roots.place, "holds no certificate"))?;
    parts(&text(KEY_FILE, key), (issuer, &roots.place), &roots, None)
}

/// A new root: key and certificate, PEM.
///
/// # Errors
/// The cryptography library refused.
pub fn generate() -> Result<(String, String), FilesError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(FilesError::Library)?;
    let root = root_params(ROOT_LIFETIME).self_signed(&key).map_err(FilesError::Library)?;
    Ok((key.serialize_pem(), root.pem()))
}

/// The authority in a state directory.
fn own(state: &Path) -> Result<Parts, FilesError> {
    check_mode(&state.join(KEY_FILE))?;
    let path = state.join(ROOT_FILE);
    let root = root_of(&key(state.join(KEY_FILE))?, &path)?;
    read(state, &root.ok_or_else(|| content(&path, "does not belong to ca-key.pem"))?, &path)
}

/// The root among those of a file that belongs to a key.
fn root_of(key: &KeyPair, path: &Path) -> Result<Option<Certificate>, FilesError> {
    let is_of_key = |root: &Certificate| {
        parse(root, path).is_ok_and(|root| root.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
    };
    Ok(certificates(&Text::read(path.to_owned())?)?.into_iter().find(is_of_key))
}

/// True when a root is there beside the one that signs, and its key.
///
/// # Errors
/// The files cannot be read.
pub fn has_next(state: &Path) -> Result<bool, FilesError> {
    let path = state.join(NEXT_KEY_FILE);
    Ok(path.exists() && root_of(&key(path)?, &state.join(ROOT_FILE))?.is_some())
}

/// Makes a second root, which agents are to trust and which signs nothing yet.
///
/// # Errors
/// It cannot be made or written; the authority is as before.
pub fn add_next(state: &Path) -> Result<Parts, FilesError> {
    let (key, root) = generate()?;
    let path = state.join(ROOT_FILE);
    let roots = Text::read(path.clone())?.text + &root;
    write(&state.join(NEXT_KEY_FILE), &key, 0o600)?;
    write(&path, &roots, 0o644)?;
    own(state)
}

/// The second root signs from now on; the key of the first is gone.
///
/// # Errors
/// The key cannot be put in place; the authority is as before.
pub fn use_next(state: &Path) -> Result<Parts, FilesError> {
    let path = state.join(NEXT_KEY_FILE);
    check_mode(&path)?;
    fs::rename(&path, state.join(KEY_FILE)).map_err(|source| FilesError::File { path, source })?;
    let parts = own(state)?;
    write(&state.join(ROOT_FILE), &parts.roots.concat(), 0o644)?;
    Ok(parts)
}

/// Only the root that signs stays.
///
/// # Errors
/// It cannot be written; the authority is as before.
pub fn drop_others(state: &Path) -> Result<Parts, FilesError> {
    let path = state.join(ROOT_FILE);
    let root = root_of(&key(state.join(KEY_FILE))?, &path)?;
    let root = root.ok_or_else(|| content(&path, "does not belong to ca-key.pem"))?;
    write(&path, &root.pem, 0o644)?;
    // Without its root this key is nobody's; it is in the way of nothing if it stays.
    let _ = fs::remove_file(state.join(NEXT_KEY_FILE));
    own(state)
}

fn generate_unless_there(state: &Path) -> Result<(), FilesError> {
    let (key_path, root_path) = (state.join(KEY_FILE), state.join(ROOT_FILE));
    match (key_path.exists(), root_path.exists()) {
        (true, true) => return Ok(()),
        (true, false) => return Err(FilesError::Half { present: key_path, missing: root_path }),
        (false, true) => return Err(FilesError::Half { present: root_path, missing: key_path }),
        (false, false) => {}
    }
    let (key, root) = generate()?;
    write(&key_path, &key, 0o600)?;
    write(&root_path, &root, 0o644)
}

fn check_mode(path: &Path) -> Result<(), FilesError> {
    let metadata = fs::metadata(path).map_err(|source| FilesError::File { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    let is_good = mode & 0o077 == 0 || is_for_our_group(mode, metadata.uid(), rustix::process::geteuid().as_raw());
    if is_good { Ok(()) } else { Err(FilesError::Exposed { path: path.to_owned(), mode }) }
}

/// A mounted Secret that a user who is not root may read: root's own file, which fsGroup has given to the pod's group to read
/// and nobody else. There is no other way in Kubernetes.
fn is_for_our_group(mode: u32, owner: u32, us: u32) -> bool {
    us != 0 && owner == 0 && mode & 0o037 == 0
}

/// A certificate, both as it was written and as it is compared.
#[derive(Clone)]
struct Certificate {
    pem: String,
    der: Vec<u8>,
}

/// A text and the place to name when something is wrong with it.
struct Text {
    place: PathBuf,
    text: String,
}

impl Text {
    fn read(place: PathBuf) -> Result<Text, FilesError> {
        match fs::read_to_string(&place) {
            Ok(text) => Ok(Text { place, text }),
            Err(source) => Err(FilesError::File { path: place, source }),
        }
    }
}

fn key(path: PathBuf) -> Result<KeyPair, FilesError> {
    key_of(&Text::read(path)?)
}

fn key_of(text: &Text) -> Result<KeyPair, FilesError> {
    KeyPair::from_pem(&text.text).map_err(|_| content(&text.place, "is not a private key in PEM"))
}

/// `certificate` is the one that signs, from `path`.
fn read(directory: &Path, certificate: &Certificate, path: &Path) -> Result<Parts, FilesError> {
    let text = |name: &str| Text::read(directory.join(name));
    let chain = if directory.join(CHAIN_FILE).exists() { Some(text(CHAIN_FILE)?) } else { None };
    parts(&text(KEY_FILE)?, (certificate, path), &text(ROOT_FILE)?, chain.as_ref())
}

fn parts(
    key: &Text,
    (certificate, path): (&Certificate, &Path),
    roots: &Text,
    chain: Option<&Text>,
) -> Result<Parts, FilesError> {
    let key = key_of(key)?;
    let not_after = check_issuer(certificate, &key, path)?;
    let chain_path = chain.map_or_else(|| path.with_file_name(CHAIN_FILE), |chain| chain.place.clone());
    let mut roots = certificates(roots)?;
    let is_root =
        |certificate: &Certificate, roots: &[Certificate]| roots.iter().any(|root| root.der == certificate.der);
    let mut intermediates = chain.map(certificates).transpose()?.unwrap_or_default();
    // The chain may or may not begin with the issuer and end with the root: both are sent exactly once.
    intermediates.retain(|link| !is_root(link, &roots) && link.der != certificate.der);
    if !is_root(certificate, &roots) {
        intermediates.insert(0, certificate.clone());
    }
    check_chain(&intermediates, &roots, &chain_path)?;
    // Agents take the first root for the one that signs.
    let top = intermediates.last().unwrap_or(certificate);
    roots.sort_by_key(|root| !is_signed_by(top, root, &chain_path));
    let issuer =
        Issuer::from_ca_cert_pem(&certificate.pem, key).map_err(|_| content(path, "is not a CA certificate"))?;
    let texts = |list: Vec<Certificate>| list.into_iter().map(|certificate| certificate.pem).collect();
    Ok(Parts { issuer, intermediates: texts(intermediates), roots: texts(roots), not_after })
}

fn check_issuer(certificate: &Certificate, key: &KeyPair, path: &Path) -> Result<SystemTime, FilesError> {
    let certificate = parse(certificate, path)?;
    if !certificate.is_ca() {
        return Err(content(path, "is not a CA certificate (basicConstraints CA:TRUE)"));
    }
    let may_sign = certificate.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
    if !may_sign {
        return Err(content(path, "may not sign certificates (keyUsage keyCertSign)"));
    }
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(content(path, "does not belong to ca-key.pem"));
    }
    if !certificate.validity().is_valid() {
        return Err(content(path, "is expired or not yet valid"));
    }
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Each intermediate is signed by the next, and the last by one of the roots.
fn check_chain(intermediates: &[Certificate], roots: &[Certificate], path: &Path) -> Result<(), FilesError> {
    for (index, below) in intermediates.iter().enumerate() {
        let next = intermediates.get(index + 1).map_or(roots, std::slice::from_ref);
        if !next.iter().any(|above| is_signed_by(below, above, path)) {
            return Err(content(path, "does not lead from ca-cert.pem to root-cert.pem"));
        }
    }
    Ok(())
}

fn is_signed_by(below: &Certificate, above: &Certificate, path: &Path) -> bool {
    match (parse(below, path), parse(above, path)) {
        (Ok(below), Ok(above)) => below.verify_signature(Some(above.public_key())).is_ok(),
        _ => false,
    }
}

fn parse<'a>(certificate: &'a Certificate, path: &Path) -> Result<X509Certificate<'a>, FilesError> {
    let parsed = X509Certificate::from_der(&certificate.der);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|_| content(path, "holds something that is no X.509 certificate"))
}

fn content(path: &Path, reason: &'static str) -> FilesError {
    FilesError::Content { path: path.to_owned(), reason }
}

/// The certificates of a file, without what stands between them.
fn certificates(file: &Text) -> Result<Vec<Certificate>, FilesError> {
    const END: &str = "-----END CERTIFICATE-----";
    let (path, text) = (&file.place, &file.text);
    let mut found = Vec::new();
    for part in text.split_inclusive(END) {
        let Some(start) = part.find("-----BEGIN ") else { continue };
        let pem = format!("{}\n", &part[start..]);
        let block = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok);
        let block = block.filter(|block| block.label == "CERTIFICATE");
        let der = block.ok_or_else(|| content(path, "holds something that is no certificate"))?.contents;
        found.push(Certificate { pem, der });
    }
    if found.is_empty() { Err(content(path, "holds no certificate")) } else { Ok(found) }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), FilesError> {
    let failed = |source| FilesError::File { path: path.to_owned(), source };
    // Written beside and moved into place: a crash leaves the old file or the new one, never half of one.
    let beside = path.with_extension("pem.new");
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::is_for_our_group;

    #[test]
    fn a_key_that_root_gave_to_our_group_alone_is_taken() {
        assert!(is_for_our_group(0o440, 0, 65_532));
        // We are root ourselves; it is ours to close; others may read or the group may write.
        for (mode, owner, us) in [(0o440, 0, 0), (0o440, 65_532, 65_532), (0o444, 0, 65_532), (0o460, 0, 65_532)] {
            assert!(!is_for_our_group(mode, owner, us), "{mode:o} {owner} {us}");
        }
    }
}
