//! Where the CA's key and certificates are kept: generated into the state directory on first start, or plugged in by
//! the operator. A key is written once with mode 0600 and never replaced; a directory with one half missing is an
//! error rather than a reason to generate anew, because a new root would cut every workload off.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
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
        Some(directory) => {
            check_mode(&directory.join(KEY_FILE))?;
            read(directory, CERTIFICATE_FILE)?
        }
        None => {
            generate_unless_there(state)?;
            check_mode(&state.join(KEY_FILE))?;
            read(state, ROOT_FILE)?
        }
    };
    write(&state.join(ROOT_FILE), &parts.roots.concat(), 0o644)?;
    Ok(parts)
}

fn generate_unless_there(state: &Path) -> Result<(), FilesError> {
    let (key_path, root_path) = (state.join(KEY_FILE), state.join(ROOT_FILE));
    match (key_path.exists(), root_path.exists()) {
        (true, true) => return Ok(()),
        (true, false) => return Err(FilesError::Half { present: key_path, missing: root_path }),
        (false, true) => return Err(FilesError::Half { present: root_path, missing: key_path }),
        (false, false) => {}
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(FilesError::Library)?;
    let root = root_params(ROOT_LIFETIME).self_signed(&key).map_err(FilesError::Library)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&root_path, &root.pem(), 0o644)
}

fn check_mode(path: &Path) -> Result<(), FilesError> {
    let metadata = fs::metadata(path).map_err(|source| FilesError::File { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(FilesError::Exposed { path: path.to_owned(), mode }) }
}

/// A certificate, both as it was written and as it is compared.
#[derive(Clone)]
struct Certificate {
    pem: String,
    der: Vec<u8>,
}

fn read(directory: &Path, certificate_file: &str) -> Result<Parts, FilesError> {
    let (key_path, certificate_path) = (directory.join(KEY_FILE), directory.join(certificate_file));
    let key = KeyPair::from_pem(&text(&key_path)?).map_err(|_| content(&key_path, "is not a private key in PEM"))?;
    let certificates = certificates(&certificate_path)?;
    let [certificate] = certificates.as_slice() else {
        return Err(content(&certificate_path, "has to hold one certificate"));
    };
    let not_after = check_issuer(certificate, &key, &certificate_path)?;
    let roots = self::certificates(&directory.join(ROOT_FILE))?;
    let is_root = |certificate: &Certificate| roots.iter().any(|root| root.der == certificate.der);
    let chain_path = directory.join(CHAIN_FILE);
    let mut intermediates = if chain_path.exists() { self::certificates(&chain_path)? } else { Vec::new() };
    // The chain may or may not begin with the issuer and end with the root: both are sent exactly once.
    intermediates.retain(|link| !is_root(link) && link.der != certificate.der);
    if !is_root(certificate) {
        intermediates.insert(0, certificate.clone());
    }
    check_chain(&intermediates, &roots, &chain_path)?;
    let issuer = Issuer::from_ca_cert_pem(&certificate.pem, key)
        .map_err(|_| content(&certificate_path, "is not a CA certificate"))?;
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
        let below = parse(below, path)?;
        let next = intermediates.get(index + 1).map_or(roots, std::slice::from_ref);
        let is_signed_by = |above: &Certificate| {
            parse(above, path).is_ok_and(|above| below.verify_signature(Some(above.public_key())).is_ok())
        };
        if !next.iter().any(is_signed_by) {
            return Err(content(path, "does not lead from ca-cert.pem to root-cert.pem"));
        }
    }
    Ok(())
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

fn text(path: &Path) -> Result<String, FilesError> {
    fs::read_to_string(path).map_err(|source| FilesError::File { path: path.to_owned(), source })
}

/// The certificates of a file, without what stands between them.
fn certificates(path: &Path) -> Result<Vec<Certificate>, FilesError> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = text(path)?;
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
