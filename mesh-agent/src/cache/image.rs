//! The bytes of the file. Pure: bytes in, contents out, and nothing is believed before the checksum is.
//!
//! ```text
//! 0        8         12        20            52
//! "MESHVIEW" format u32 length u64 SHA-256      protobuf `Contents`, `length` bytes
//! ```
//! Numbers are big-endian. The checksum is over all but itself.

use mesh_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use prost::Message;

use crate::digest::sha256;

use super::Contents;

const MAGIC: [u8; 8] = *b"MESHVIEW";
/// Changes with the layout or with what it means.
const FORMAT: u32 = 1;
const HEADER: usize = 20;
const CHECKSUM: usize = 32;

/// Why bytes are no cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Something else.
    #[error("it is no cached View")]
    Magic,
    /// Of an agent that wrote another format.
    #[error("it has format {0}, this agent reads format {FORMAT}")]
    Format(u32),
    /// Shorter or longer than it says.
    #[error("it has {found} bytes, not {expected}")]
    Length {
        /// What there is.
        found: u64,
        /// What it says.
        expected: u64,
    },
    /// It was changed after it was written.
    #[error("its checksum does not match: it is damaged")]
    Checksum,
    /// Whole, and not understood.
    #[error("it is not understood: {0}")]
    Message(String),
    /// Control had not answered for a type when it was written.
    #[error("it lacks {0}")]
    Incomplete(&'static str),
}

pub(crate) fn encode(contents: &Contents) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + CHECKSUM + contents.encoded_len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_be_bytes());
    bytes.extend((contents.encoded_len() as u64).to_be_bytes());
    bytes.extend([0; CHECKSUM]);
    contents.encode(&mut bytes).expect("a vector grows");
    let checksum = sha256([&bytes[..HEADER], &bytes[HEADER + CHECKSUM..]]);
    bytes[HEADER..HEADER + CHECKSUM].copy_from_slice(&checksum);
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Contents, ImageError> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(ImageError::Magic)?;
    if *magic != MAGIC {
        return Err(ImageError::Magic);
    }
    let short = ImageError::Length { found: bytes.len() as u64, expected: (HEADER + CHECKSUM) as u64 };
    let (format, rest) = rest.split_first_chunk::<4>().ok_or(short.clone())?;
    let format = u32::from_be_bytes(*format);
    if format != FORMAT {
        return Err(ImageError::Format(format));
    }
    let (length, rest) = rest.split_first_chunk::<8>().ok_or(short.clone())?;
    let (checksum, body) = rest.split_first_chunk::<CHECKSUM>().ok_or(short)?;
    let (expected, found) = (u64::from_be_bytes(*length), body.len() as u64);
    if expected != found {
        return Err(ImageError::Length { found, expected });
    }
    if sha256([&bytes[..HEADER], body]) != *checksum {
        return Err(ImageError::Checksum);
    }
    let contents = Contents::decode(body).map_err(|error| ImageError::Message(error.to_string()))?;
    let has = |type_url: &str| contents.kinds.iter().any(|kind| kind.type_url == type_url);
    match [ADDRESS_TYPE, AUTHORIZATION_TYPE].into_iter().find(|type_url| !has(type_url)) {
        Some(missing) => Err(ImageError::Incomplete(missing)),
        None => Ok(contents),
    }
}
