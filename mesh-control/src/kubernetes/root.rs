//! The root of all certificates in a Secret: made by whichever replica comes first, the same for all. Its certificate
//! alone is in a ConfigMap, for agents to verify this daemon by. The key is never logged and nowhere else.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};

use super::WRITER;
use crate::ca::{
    authority::Parts,
    files::{self, FilesError},
};

/// Secret with the root's key and certificate.
const SECRET: &str = "mesh-ca";
/// ConfigMap with the roots.
const ROOTS: &str = "mesh-ca-root";
const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "root-cert.pem";
/// Between two attempts while the API server does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// What the Secret holds is no root.
    #[error(transparent)]
    Content(#[from] FilesError),
    /// The Secret lacks a part.
    #[error(
        "the Secret {namespace}/{SECRET} has no {part}; restore it, or delete the Secret to make a new root (every workload then needs new certificates)"
    )]
    Half {
        /// Where the Secret is.
        namespace: String,
        /// What is missing.
        part: &'static str,
    },
}

/// The root of the Secret, made when there is none. Waits for as long as the API server does not answer.
///
/// # Errors
/// What the Secret holds is no root; nothing is overwritten then.
pub async fn load(client: &Client, namespace: &str) -> Result<Parts, RootError> {
    loop {
        match find_or_make(client, namespace).await {
            Ok(Some(secret)) => return parts(&secret, namespace),
            Ok(None) => {}
            Err(Attempt::Root(error)) => return Err(error),
            Err(Attempt::Api(error)) => {
                let reason = super::sentence(&error);
                tracing::warn!(secret = %format!("{namespace}/{SECRET}"), reason, "the root cannot be read yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

enum Attempt {
    Api(kube::Error),
    Root(RootError),
}

/// The Secret, or nothing when another replica has just made it.
async fn find_or_make(client: &Client, namespace: &str) -> Result<Option<Secret>, Attempt> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(found) = secrets.get_opt(SECRET).await.map_err(Attempt::Api)? {
        return Ok(Some(found));
    }
    let (key, root) = files::generate().map_err(|error| Attempt::Root(error.into()))?;
    let text = |text: String| ByteString(text.into_bytes());
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(KEY.to_owned(), text(key)), (CERTIFICATE.to_owned(), text(root))])),
        ..Secret::default()
    };
    match secrets.create(&PostParams { field_manager: Some(WRITER.to_owned()), ..PostParams::default() }, &secret).await
    {
        Ok(made) => {
            tracing::info!(secret = %format!("{namespace}/{SECRET}"), "a new root was made");
            Ok(Some(made))
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(Attempt::Api(error)),
    }
}

fn parts(secret: &Secret, namespace: &str) -> Result<Parts, RootError> {
    let text = |part: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(part));
        let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
        text.ok_or_else(|| RootError::Half { namespace: namespace.to_owned(), part })
    };
    let place = PathBuf::from(format!("Secret {namespace}/{SECRET}"));
    Ok(files::root(&place, text(KEY)?, text(CERTIFICATE)?)?)
}

/// Keeps the roots in the ConfigMap, until it is written once.
pub async fn show(client: Client, namespace: String, roots: String) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(ROOTS.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(CERTIFICATE.to_owned(), roots)])),
        ..ConfigMap::default()
    };
    while let Err(error) = maps.patch(ROOTS, &PatchParams::apply(WRITER).force(), &Patch::Apply(&map)).await {
        let reason = super::sentence(&error);
        tracing::warn!(map = %format!("{namespace}/{ROOTS}"), reason, "the roots cannot be shown to agents yet");
        tokio::time::sleep(PAUSE).await;
    }
}
